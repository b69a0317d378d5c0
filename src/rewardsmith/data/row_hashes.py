"""A short hash of every row of a source, kept beside a run: when the data are others, which rows are.

A run folder holds no data. Eight bytes a row are enough to say which rows of a file are not those that the run was given. Where the rows do not fit memory,
their hashes and ids are written to disk as they come (`HashWriter`), and never held at once before somebody asks which rows differ.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
import zipfile
import zlib
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from rewardsmith.data.io import content_line
from rewardsmith.data.schema import Group, Preference
from rewardsmith.errors import DataError
from rewardsmith.storage import atomic_file

FILE_NAME = "rows.npz"
LISTED = 10
"""Rows that are listed; all are counted."""


class Place(NamedTuple):
    """A row: its number in the source, counted from 1, and its id."""

    row: int
    id: str


@dataclass(frozen=True)
class RowHashes:
    """The rows of one source, in order.

    Args:
        ids: of each.
        hashes: the first eight bytes of the SHA-256 of its content (texts and labels; neither id nor metadata), uint64 (n,).
    """

    ids: Sequence[str]
    hashes: NDArray[np.uint64]

    @classmethod
    def of(cls, examples: Iterable[Preference | Group]) -> RowHashes:
        """The hashes of examples as they were read."""
        rows = [(one.id, row_hash(content_line(one))) for one in examples]
        return cls([identity for identity, _ in rows], np.array([value for _, value in rows], dtype=np.uint64))


def row_hash(content: bytes) -> int:
    """The hash of one row's content."""
    return int.from_bytes(hashlib.sha256(content).digest()[:8], "big")


@dataclass(frozen=True)
class StoredHashes:
    """The rows of one source as files of a folder, made by `HashWriter`.

    Args:
        folder: that holds them.
    """

    folder: Path

    @property
    def hashes(self) -> Path:
        """Eight bytes a row, little-endian."""
        return self.folder / "hashes.bin"

    @property
    def ids(self) -> Path:
        """A JSON array of the ids; empty where they are the row numbers."""
        return self.folder / "ids.json"

    def load(self) -> RowHashes:
        """All rows in memory."""
        hashes = np.fromfile(self.hashes, dtype="<u8").astype(np.uint64)
        return RowHashes(_ids(self.ids.read_bytes(), len(hashes)), hashes)


class HashWriter:
    """Writes the hashes and ids of rows as they come: 8 bytes a row, and as many as its id has where rows have ids."""

    def __init__(self, folder: Path) -> None:
        """Begin two files in a folder."""
        self.stored, self._count, self._numbered = StoredHashes(folder), 0, True
        self._files = contextlib.ExitStack()
        self._hashes: IO[bytes] = self._files.enter_context(open(self.stored.hashes, "wb"))
        self._ids: IO[bytes] = self._files.enter_context(open(self.stored.ids, "wb"))

    def __enter__(self) -> HashWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._count:
            self._ids.write(b"]")
        self._files.close()
        if self._numbered:
            self.stored.ids.write_bytes(b"")

    def add(self, ids: Sequence[str], hashes: Sequence[int]) -> None:
        """Further rows."""
        self._hashes.write(np.array(hashes, dtype="<u8").tobytes())
        for identity in ids:
            self._ids.write((", " if self._count else "[").encode() + json.dumps(identity, ensure_ascii=False).encode())
            self._count += 1
            self._numbered = self._numbered and identity == str(self._count)


def _ids(text: bytes, count: int) -> list[str]:
    return json.loads(text) if text else [str(i) for i in range(1, count + 1)]


@dataclass(frozen=True)
class RowChanges:
    """How the rows of a source differ from those that a run was given.

    Args:
        changed: rows of the same id and another content, as they are now.
        added: rows that the run was not given.
        missing: rows that the run was given, by their number then.
        moved: the first row that stands elsewhere, where the rows are otherwise the same.
    """

    changed: list[Place]
    added: list[Place]
    missing: list[Place]
    moved: Place | None = None

    def __bool__(self) -> bool:
        """Whether anything differs."""
        return bool(self.changed or self.added or self.missing or self.moved)

    def lines(self) -> list[str]:
        """One line a kind of change, with the first rows."""
        lines = [
            f"{len(places):,} {kind}: {_listed(places)}"
            for kind, places in (("changed", self.changed), ("added", self.added), ("missing", self.missing))
            if places
        ]
        if self.moved is not None:
            lines.append(f"the same rows in another order, from row {self.moved.row} (id {self.moved.id}) on")
        return lines

    def as_dict(self) -> dict[str, Any]:
        """Counts and the first rows of each kind."""
        kinds = {"changed": self.changed, "added": self.added, "missing": self.missing}
        found: dict[str, Any] = {
            kind: {"count": len(places), "first": [place._asdict() for place in places[:LISTED]]}
            for kind, places in kinds.items()
        }
        return found | {"moved": None if self.moved is None else self.moved._asdict()}


def _listed(places: Sequence[Place]) -> str:
    shown = ", ".join(f"row {place.row} (id {place.id})" for place in places[:LISTED])
    return shown + (", ..." if len(places) > LISTED else "")


def changes(then: RowHashes, now: RowHashes | StoredHashes) -> RowChanges:
    """Which rows are others.

    Rows of equal content are the same row wherever they stand, so that a row which is taken out makes no other row a changed one. Of the rest, rows of the
    same id are changed rows; where a source has no ids, its row numbers are the ids.

    >>> then = RowHashes(["a", "b", "c"], np.array([1, 2, 3], dtype=np.uint64))
    >>> changes(then, RowHashes(["a", "c"], np.array([1, 9], dtype=np.uint64))).lines()
    ['1 changed: row 2 (id c)', '1 missing: row 2 (id b)']
    """
    now = now.load() if isinstance(now, StoredHashes) else now
    same = then.hashes[: len(now.hashes)] == now.hashes[: len(then.hashes)]
    first = int(np.argmin(same)) if not same.all() else len(same)
    # The common beginning may be millions of rows; only what follows is looked at row by row.
    waiting: defaultdict[int, list[int]] = defaultdict(list)
    for i in range(first, len(then.hashes)):
        waiting[int(then.hashes[i])].append(i)
    new: list[int] = []
    for i in range(first, len(now.hashes)):
        places = waiting[int(now.hashes[i])]
        if places:
            places.pop(0)
        else:
            new.append(i)
    gone: defaultdict[str, list[int]] = defaultdict(list)
    for i in sorted(i for places in waiting.values() for i in places):
        gone[then.ids[i]].append(i)
    changed, added = [], []
    for i in new:
        before = gone.get(now.ids[i])
        if before:
            before.pop(0)
            changed.append(Place(i + 1, now.ids[i]))
        else:
            added.append(Place(i + 1, now.ids[i]))
    missing = [Place(i + 1, then.ids[i]) for i in sorted(i for places in gone.values() for i in places)]
    moved = None
    if not (changed or added or missing) and first < len(now.hashes):
        moved = Place(first + 1, now.ids[first])
    return RowChanges(changed, added, missing, moved)


def write(rows: Mapping[str, RowHashes | StoredHashes], path: Path) -> None:
    """Write the hashes of all sources of a run into one compressed file; ids that are row numbers take no room."""
    with atomic_file(path, "wb") as file, zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as whole:
        for name, one in rows.items():
            if isinstance(one, StoredHashes):
                _copy(whole, f"{name}.hashes", one.hashes, np.dtype("<u8"))
                _copy(whole, f"{name}.ids", one.ids, np.dtype("u1"))
                continue
            numbered = all(identity == str(i) for i, identity in enumerate(one.ids, 1))
            ids = b"" if numbered else json.dumps(list(one.ids), ensure_ascii=False).encode()
            for part, array in (("hashes", one.hashes), ("ids", np.frombuffer(ids, dtype=np.uint8))):
                with whole.open(f"{name}.{part}.npy", "w") as member:
                    np.lib.format.write_array(member, array, allow_pickle=False)


def _copy(whole: zipfile.ZipFile, name: str, source: Path, dtype: np.dtype[Any]) -> None:
    """A file of numbers as a member that numpy reads, without holding it."""
    header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False}
    with whole.open(f"{name}.npy", "w", force_zip64=True) as member, open(source, "rb") as file:
        np.lib.format.write_array_header_1_0(
            member,
            {**header, "shape": (source.stat().st_size // dtype.itemsize,)},
        )
        shutil.copyfileobj(file, member)


def read(path: Path) -> dict[str, RowHashes]:
    """The hashes of the sources of a run; empty where there is no such file.

    Raises:
        DataError: if it cannot be read.
    """
    if not path.exists():
        return {}
    try:
        # Opened here: numpy does not close what turns out to be no archive.
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as arrays:
            found = {name: arrays[name] for name in arrays.files}
        rows = {}
        for key in found:
            name, _, kind = key.rpartition(".")
            if kind == "hashes":
                ids = _ids(found[f"{name}.ids"].tobytes(), len(found[key]))
                rows[name] = RowHashes(ids, found[key].astype(np.uint64))
    # What zipfile, zlib and numpy say of a file that is cut or of another kind.
    except (
        OSError,
        ValueError,
        KeyError,
        EOFError,
        TypeError,
        NotImplementedError,
        zipfile.BadZipFile,
        zlib.error,
    ) as error:
        raise DataError(
            f"the hashes of a run's rows at {path}",
            f"a file that cannot be read ({error})",
            "Copy it again from where the run was made; without it, all but which rows differ can be said.",
        ) from error
    return rows
