"""Rows of numbers on disk, read as they are needed: a .npy file that any reader of .npy opens, and that is believed only where it is whole."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from rewardsmith.storage import atomic_file, remove_abandoned

Kind = type[np.float32] | type[np.float64]
# Bytes that are read at once to find out whether a file is whole.
_CHUNK = 1 << 24
_DIGEST_BYTES = 32


def write_rows(path: Path, shape: tuple[int, int], kind: Kind, blocks: Iterator[NDArray[Any]]) -> None:
    """A .npy file with a SHA-256 of everything before it at its end, where readers of .npy do not look.

    Args:
        path: of the file; it is there when it is whole.
        shape: of all rows.
        kind: of their numbers.
        blocks: the rows, in parts.

    Raises:
        OutputError: if the system refuses.
    """
    remove_abandoned(path.parent)
    with atomic_file(path, "wb") as file:
        np.lib.format.write_array_header_1_0(
            file, {"descr": np.lib.format.dtype_to_descr(np.dtype(kind)), "fortran_order": False, "shape": shape}
        )
        digest = hashlib.sha256(json.dumps(shape).encode())
        for block in blocks:
            content = np.ascontiguousarray(block, dtype=kind)
            digest.update(content.data)
            file.write(content)
        file.write(digest.digest())


def load_rows(path: Path, shape: tuple[int, int], kind: Kind, *, what: str) -> NDArray[Any] | None:
    """The memory-mapped rows of a file, or None after a warning; `what` they are, for the warning."""
    try:
        values = np.load(path, mmap_mode="r", allow_pickle=False)
        if not isinstance(values, np.ndarray):  # an archive under the name
            raise ValueError("no array")
        with open(path, "rb") as file:
            file.seek(-_DIGEST_BYTES, 2)
            promised = file.read()
    except (OSError, ValueError, EOFError, OverflowError) as error:  # whatever a damaged header makes of itself
        warnings.warn(f"{what} {path.name[:12]}... are broken ({error}); making them again", stacklevel=4)
        return None
    digest = hashlib.sha256(json.dumps(shape).encode())
    fits = values.shape == shape and values.dtype == kind
    if fits:
        rows = max(1, _CHUNK // max(1, values.dtype.itemsize * shape[1]))
        for start in range(0, len(values), rows):
            digest.update(np.ascontiguousarray(values[start : start + rows]).data)
    if not fits or digest.digest() != promised:
        warnings.warn(f"{what} {path.name[:12]}... are not those that were written; making them again", stacklevel=4)
        return None
    return cast("NDArray[Any]", values)
