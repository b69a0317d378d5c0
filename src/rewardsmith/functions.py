"""A Python function as a scorer: `FILE.py:NAME` wherever a MODEL is asked for, or the function itself in Python."""

from __future__ import annotations

import hashlib
import re
import runpy
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeAlias

from rewardsmith.data.schema import Pair, Prompt
from rewardsmith.errors import ScoreError, SettingsError
from rewardsmith.scores import Scorer, Scores, checked

Function: TypeAlias = Callable[[Prompt, str], float]
_PLACE = re.compile(r"(?P<file>.+\.py):(?P<name>[A-Za-z_]\w*)")


class FunctionScorer:
    """A scorer made of a function of one prompt and one answer.

    >>> FunctionScorer(lambda prompt, answer: len(answer)).score([("Hi?", "Hello."), ("Hi?", "Ho.")])
    array([6., 3.], dtype=float32)
    """

    def __init__(self, function: Function) -> None:
        """Keep the function.

        Args:
            function: from a prompt (a text, or a list of messages) and an answer to a finite number.
        """
        self.function = function

    def score(self, pairs: Sequence[Pair]) -> Scores:
        """What the function says of each pair, (n,) float32.

        Raises:
            ScoreError: if it raises, or returns something that is no finite number.
        """
        try:
            values = [float(self.function(prompt, answer)) for prompt, answer in pairs]
        except Exception as error:
            raise ScoreError(
                "a function of (prompt, answer) that returns a number", f"{type(error).__name__}: {error}", "Mend it."
            ) from error
        return checked(values, len(pairs))


def as_scorer(scorer: Scorer | Function) -> Scorer:
    """A scorer as it is, a function as a scorer.

    Raises:
        SettingsError: if it is neither.
    """
    if isinstance(scorer, Scorer):
        return scorer
    if callable(scorer):
        return FunctionScorer(scorer)
    raise SettingsError(
        "a scorer, or a function of (prompt, answer)",
        f"{type(scorer).__name__}",
        "Give an object with a method `score`, or a function that returns a number.",
    )


def is_function(model: str) -> bool:
    """Whether a MODEL argument names a function in a file."""
    return _PLACE.fullmatch(model) is not None


def load_function(model: str) -> tuple[Scorer, dict[str, str]]:
    """The scorer that `FILE.py:NAME` names, a function or an object with a method `score`; and the SHA-256 of its file, by file name.

    The file is run as a program of the user's own: that is what naming it asks for.

    Raises:
        SettingsError: if there is no such file or name, or the file fails.
    """
    place = _PLACE.fullmatch(model)
    if place is None:
        raise SettingsError("FILE.py:NAME", repr(model), "Write for example my_scorer.py:score.")
    file = Path(place["file"])
    if not file.is_file():
        raise SettingsError("a Python file with a scoring function", f"no file {file}", "Check the path.")
    try:
        names = runpy.run_path(str(file))
    except Exception as error:
        raise SettingsError(
            f"a Python file that runs, in {file.name}", f"{type(error).__name__}: {error}", "Mend the file."
        ) from error
    if place["name"] not in names:
        raise SettingsError(f"a function `{place['name']}` in {file.name}", "none of this name", "Check the name.")
    return as_scorer(names[place["name"]]), {file.name: hashlib.sha256(file.read_bytes()).hexdigest()}
