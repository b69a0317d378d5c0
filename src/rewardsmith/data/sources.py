"""What a source is: a file, the files of a folder or glob, or a dataset by its name; and what it is called and known by. `io` reads it."""

from __future__ import annotations

import glob
import json
from collections.abc import Iterable
from fnmatch import fnmatch
from pathlib import Path, PurePath

from rewardsmith.errors import DataError, OutputError
from rewardsmith.storage import file_sha256, refuse_inside, text_sha256

# Of a folder, what data are written in when they are written in many files, by kind. Not .json: there it is more often a description of the rest.
_KINDS = {
    "Parquet": (".parquet",),
    "JSONL": (".jsonl", ".jsonl.gz", ".ndjson", ".ndjson.gz"),
    "CSV": (".csv", ".csv.gz"),
}
# What `save_to_disk` of datasets leaves in its folder.
_SAVED_DATASET = ("state.json", "dataset_info.json", "dataset_dict.json")


def source_name(source: str) -> str:
    """A source as it may stand in a report: a file, folder or glob by its last part, a hub name as it is."""
    return Path(source).name if Path(source).exists() or is_glob(source) else source


def is_glob(source: str) -> bool:
    """Whether a source names files by a pattern."""
    return glob.has_magic(source) and not Path(source).exists()


def is_hub_name(source: str) -> bool:
    """Whether a source can only be the name of a data set of the Hugging Face hub (owner/name, or owner/name:split)."""
    name = source.partition(":")[0]
    return (
        not Path(source).exists()
        and not is_glob(source)
        and not source.startswith((".", "/", "~"))
        and not Path(name).suffix
        and name.count("/") == 1
    )


def is_saved_dataset(source: str) -> bool:
    """Whether a folder is one that `save_to_disk` of datasets wrote."""
    return any((Path(source) / name).exists() for name in _SAVED_DATASET)


def files_of(source: str) -> list[str]:
    """The files of a folder or glob, in the order of their names; any other source is itself alone.

    Of a folder those that lie directly in it with the ending of a data file; names that begin with "." or "_" are left out, as by other readers of such folders.

    Raises:
        DataError: if there are none, if one is no file (a dangling link, a folder of that name), or a folder holds several kinds, which may be the same data twice.
    """
    path = Path(source)
    if is_glob(source):
        matched = [Path(one) for one in glob.glob(source, recursive=True)]
        # "**" finds the files inside such a folder by themselves.
        _refuse_lost(one for one in matched if not ("**" in source and one.is_dir()))
        found = sorted(str(one) for one in matched if one.is_file())
        if not found:
            raise DataError(f"files that match {source_name(source)!r}", "none", "Check the pattern and its folder.")
        return found
    if not path.is_dir() or is_saved_dataset(source):
        return [source]
    inside = [one for one in path.iterdir() if not one.name.startswith((".", "_"))]
    _refuse_lost(inside)
    by_kind = {kind: [one for one in inside if one.name.endswith(ends)] for kind, ends in _KINDS.items()}
    kinds = [kind for kind, files in by_kind.items() if files]
    if not kinds:
        raise DataError(
            f"data files in the folder {path.name} ({', '.join(end for ends in _KINDS.values() for end in ends)}), or one saved by datasets' save_to_disk",
            "none",
            "Check the path.",
        )
    if len(kinds) > 1:
        raise DataError(
            "data files of one kind in a folder", f"{' and '.join(kinds)} in {path.name}", "Give a glob of one of them."
        )
    return sorted(str(one) for one in by_kind[kinds[0]])


def _refuse_lost(places: Iterable[Path]) -> None:
    ends = tuple(end for ends in _KINDS.values() for end in ends)
    lost = sorted(one.name for one in places if one.name.endswith(ends) and not one.is_file())
    if lost:
        raise DataError(
            "files under the names of data files",
            f"{', '.join(lost)}: a dangling link, or no file",
            "Restore, rename or remove each.",
        )


def left_aside(source: str) -> list[str]:
    """Names of the other files in a folder of `files_of`.

    Raises:
        DataError: if there are no shards.
    """
    path = Path(source)
    if not path.is_dir() or is_saved_dataset(source):
        return []
    taken = set(files_of(source))
    return sorted(one.name for one in path.iterdir() if one.is_file() and str(one) not in taken)


def aside_note(source: str) -> str:
    """What a reader says of the other files in a folder; nothing where there are none."""
    aside = left_aside(source)
    return f"other files, not read: {', '.join(aside)}" if aside else ""


def refuse_among(out: Path, source: str) -> None:
    """Refuse an output that is or holds an input, or that would later be taken for one of its `files_of`.

    Raises:
        OutputError: naming it.
        DataError: if there are no inputs.
    """
    files = files_of(source)
    refuse_inside(out, source, *files)
    place = out.absolute()
    named = _matches(place, source) if is_glob(source) else place.parent.resolve() == Path(source).resolve()
    if files != [source] and named:
        raise OutputError(
            "an output that is not one of the data files later", f"{out} for {source}", "Choose another --out."
        )


def _matches(place: Path, pattern: str) -> bool:
    """Whether a pattern names a place; with "**" sometimes one more than `glob` would find."""
    whole = str(Path(pattern).absolute())
    if "**" in pattern:
        return fnmatch(str(place), whole) or fnmatch(str(place), whole.replace("**/", ""))
    return PurePath(place).match(whole)


def source_identity(source: str) -> str:
    """What tells two contents of a source apart: a file's SHA-256, one over names and contents of many files or a saved dataset, else the name.

    Raises:
        DataError: if a file cannot be read.
    """
    files = files_of(source)
    if files != [source]:
        return text_sha256(json.dumps([[Path(file).name, source_identity(file)] for file in files]))
    path = Path(source)
    if not path.is_dir() and not path.is_file():
        return source
    try:
        if path.is_dir():
            inside = [one for one in sorted(path.rglob("*")) if one.is_file()]
            return text_sha256(json.dumps([[str(one.relative_to(path)), file_sha256(one)] for one in inside]))
        return file_sha256(path)
    except OSError as error:
        raise unreadable(path, error) from error


def unreadable(path: Path, error: OSError) -> DataError:
    """The system does not let a file be read."""
    return DataError(f"a readable file {path.name}", error.strerror or str(error), "Check its permissions.")
