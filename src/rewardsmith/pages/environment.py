"""Where pages come from: the templates' environment, the common style, and the writing of a page that is known as ours."""

from __future__ import annotations

import functools
from importlib.resources import files
from pathlib import Path

import jinja2

from rewardsmith.pages.text import percent, visible
from rewardsmith.storage import write_text

# By this in the first lines of a file a page of ours is known.
_MARK, _HEAD = '<meta name="generator" content="rewardsmith {verb}">', 4096


@functools.cache
def environment(folder: str) -> jinja2.Environment:
    """Templates of a folder of the package, and those that all pages share; texts are escaped, a missing name is an error.

    Args:
        folder: below the package `rewardsmith`, such as "linting".
    """
    made = jinja2.Environment(
        loader=jinja2.ChoiceLoader(
            [jinja2.PackageLoader("rewardsmith", folder), jinja2.PackageLoader("rewardsmith", "pages")]
        ),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters.update(number=lambda value: f"{value:,}", percent=percent)
    return made


def resource(folder: str, name: str) -> str:
    """The text of a file that lies beside the templates of a folder, for pages that hold their style and script."""
    return files("rewardsmith").joinpath(folder, name).read_text(encoding="utf-8")


def is_page(path: Path, verb: str) -> bool:
    """Whether a file is a page that the verb made."""
    try:
        with open(path, encoding="utf-8") as file:
            return _MARK.format(verb=verb) in file.read(_HEAD)
    except (OSError, UnicodeDecodeError):
        return False


def write_page(path: Path, page: str) -> None:
    """Write a page, whole or not at all; texts from the data may hold what neither HTML nor UTF-8 can, which is written out.

    Raises:
        OutputError: if the system refuses.
    """
    write_text(path, visible(page))
