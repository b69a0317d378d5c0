"""How much of an answer says again what it has said: the share of its n-grams that are repeats."""

from __future__ import annotations

from typing import Literal, TypeAlias

Unit: TypeAlias = Literal["words", "characters"]


def repeated_share(text: str, n: int = 3, *, of: Unit = "words") -> float:
    """1 - distinct n-grams / all n-grams (1 - distinct-n; Li et al. 2016, "A diversity-promoting objective function for neural conversation models").

    Args:
        text: an answer. Words are what stands between white space, in lower case: languages without spaces want characters.
        n: units of an n-gram.
        of: the units.

    Returns:
        0 where no n-gram is repeated, or the text has less than two; always below 1.

    >>> repeated_share("so good so good so good", 2)
    0.6
    """
    units: list[str] | str = text.lower().split() if of == "words" else text.lower()
    total = len(units) - n + 1
    if total < 2:
        return 0.0
    distinct = {tuple(units[i : i + n]) for i in range(total)}
    return (total - len(distinct)) / total
