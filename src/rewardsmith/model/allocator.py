"""Memory that is freed stays with the process, so that the next step need not fetch it again."""

from __future__ import annotations

import ctypes
import sys

# Names of glibc's <malloc.h>.
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX = -1, -2, -4
_PAD_BYTES = 256 * 2**20


def keep_freed_memory() -> bool:
    """Tell the C library to keep freed memory for later allocations; returns whether it was told.

    glibc fetches every large block anew from the system and gives it back when it is freed: a step then spends a part of its time on making pages of zeros.
    A cast of 50 MB took 14 ms with it and 2 ms without (docs/benchmarks.md). The process keeps the memory of its largest step until it ends. Linux with
    glibc only; other systems are left as they are. A user's own MALLOC_ settings were made for a reason, but these three are then overruled.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:  # another C library, musl for one
        return False
    told = [mallopt(_MMAP_MAX, 0), mallopt(_TRIM_THRESHOLD, 2**31 - 1), mallopt(_TOP_PAD, _PAD_BYTES)]
    return all(told)
