"""Texts and shares as people read them, on a page or in a terminal."""

from __future__ import annotations

import re

# Everything but tab and newlines that a browser or a terminal would obey, or UTF-8 cannot hold (lone surrogates).
_UNPRINTABLE = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff]")


def visible(text: str) -> str:
    r"""Text with its unprintable characters written out.

    >>> visible("a\x1b[2Jb")
    'a\\x1b[2Jb'
    """
    return _UNPRINTABLE.sub(lambda match: match[0].encode("unicode_escape").decode("ascii"), text)


def clipped(text: str, most: int) -> str:
    """The beginning of a text that is longer than so many characters, with three dots in their number.

    >>> clipped("a long story", 8)
    'a lon...'
    """
    return text if len(text) <= most else f"{text[: most - 3]}..."


def percent(share: float) -> str:
    """A share in percent; what is rare is not rounded to never, nor the usual to always.

    >>> percent(0.61), percent(0.0001), percent(0.9999), percent(0)
    ('61.0 %', '< 0.1 %', '> 99.9 %', '0.0 %')
    """
    if 0 < share < 0.0005:
        return "< 0.1 %"
    if 0.9995 <= share < 1:
        return "> 99.9 %"
    return f"{100 * share:.1f} %"
