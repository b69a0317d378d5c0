"""Memory that a long-lived server has freed goes back to the system: glibc keeps it, scattered between what lives on, and the process would only ever grow."""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable

INTERVAL = 30.0
"""Seconds between two times. Once costs up to a tenth of a second: what is needed again must be had again."""


def _trim() -> Callable[[int], int] | None:
    """Glibc's malloc_trim, or None where the C library is another one."""
    try:
        return ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):
        return None


class Reclaimer:
    """Gives freed memory back now and then; for the thread in which models run.

    Args:
        interval: seconds between two times.
        trim: what does it; None where nothing can.
    """

    def __init__(self, interval: float = INTERVAL, trim: Callable[[int], object] | None = None) -> None:
        """The first time is an interval from now."""
        self._interval, self._trim = interval, trim or _trim()
        self._last = time.monotonic()

    @property
    def due(self) -> bool:
        """Whether it is time."""
        return self._trim is not None and time.monotonic() - self._last >= self._interval

    def __call__(self) -> None:
        """Give back what is free."""
        if self._trim is not None:
            self._trim(0)
        self._last = time.monotonic()
