"""`rewardsmith split`: a source cut into parts by prompt, so that no prompt, nor a near copy of one, stands on two sides."""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from rewardsmith.data import io, near
from rewardsmith.data.faults import folded
from rewardsmith.data.schema import Row, prompt_key
from rewardsmith.data.sources import source_identity, source_name
from rewardsmith.data.split import assign_parts
from rewardsmith.errors import DataError, OutputError, RowError, SettingsError
from rewardsmith.manifest import Manifest
from rewardsmith.storage import atomic_folder, file_sha256, refuse_inside

NEAR_PROMPT = 0.7
"""Prompts at least this similar (Jaccard of word triples) stay on one side."""
_CHUNK = 2000
MANIFEST = "manifest.json"


def check_shares(shares: Mapping[str, float]) -> None:
    """Refuse shares that are no split.

    Raises:
        SettingsError: if there are fewer than two parts, a share is not positive, or they do not add up to 1.
    """
    fine = len(shares) >= 2 and all(share > 0 for share in shares.values())
    if not fine or not math.isclose(sum(shares.values()), 1, abs_tol=1e-6):
        raise SettingsError(
            "two or more parts whose shares are positive and add up to 1 (train=0.9,dev=0.1)",
            ",".join(f"{name}={share:g}" for name, share in shares.items()) or "none",
            "Mend --parts.",
        )


def check_output(out: Path, source: str, *, overwrite: bool) -> None:
    """Refuse a folder that is the input, or exists and is not an earlier split of ours.

    Raises:
        OutputError: with what to do.
    """
    refuse_inside(out, source)
    earlier = Manifest.read(out / MANIFEST) if out.exists() else None
    ours = earlier is not None and earlier.document.get("verb") == "split"
    if ours and earlier is not None:
        ours = {path.name for path in out.iterdir()} <= {
            MANIFEST,
            *(f"{name}.jsonl" for name in earlier.document["parts"]),
        }
    if out.exists() and not (overwrite and ours):
        raise OutputError(
            "a new folder for --out, or with --overwrite one that holds an earlier split and nothing else",
            f"{out}, which exists",
            "Choose another --out.",
        )


def split_source(
    source: str,
    out: Path,
    shares: Mapping[str, float],
    *,
    stratify: str | None = None,
    keep_near: bool = True,
    seed: int = 0,
    format: str | None = None,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Write `<out>/<part>.jsonl` for each part and a manifest; rows are written as they came.

    Args:
        source: rows of any kind.
        out: the folder.
        shares: of the rows, by part; they add up to 1.
        stratify: a metadata column whose values keep their shares in every part.
        keep_near: keep prompts that are nearly the same on one side.
        seed: of the order in which prompts are dealt out; the order of the rows changes nothing.
        format: see `io.parse`.
        overwrite: replace an earlier split.

    Raises:
        SettingsError, OutputError: see `check_shares` and `check_output`.
        DataError: (or RowError) at a malformed row, too few prompts, or if no row has the column.
    """
    check_shares(shares)
    check_output(out, source, overwrite=overwrite)
    units = _read(source, stratify=stratify, keep_near=keep_near, format=format)
    parts = assign_parts(units.prompts, list(shares.values()), strata=units.strata, seed=seed)
    # Raw rows that hold nothing to compare, and so no prompt, go to the first part.
    part_of_number = np.zeros(units.num_rows + 1, dtype=np.int64)
    for number, span, part in zip(units.numbers, units.spans, parts, strict=True):
        part_of_number[number : number + span] = part
    rows = dict.fromkeys(shares, 0)
    with atomic_folder(out) as folder:
        settings = {"data": source, "parts": dict(shares), "stratify": stratify, "near": keep_near, "seed": seed}
        manifest = Manifest.open(folder / MANIFEST, verb="split", settings=settings)
        with ExitStack() as stack:
            files = [stack.enter_context(open(folder / f"{name}.jsonl", "wb")) for name in shares]
            for chunk in io.chunks(source, size=_CHUNK):
                for number, (_, raw) in enumerate(chunk.rows, start=chunk.start):
                    part = int(part_of_number[number])
                    files[part].write(io.line_of(raw) + b"\n")
                    rows[list(shares)[part]] += 1
        distinct = {name: len(np.unique(units.prompts[parts == i])) for i, name in enumerate(shares)}
        facts = {
            "source_sha256": source_identity(source),
            "parts": {
                name: {"rows": rows[name], "prompts": distinct[name], "sha256": file_sha256(folder / f"{name}.jsonl")}
                for name in shares
            },
        }
        manifest.close("finished", **facts)
    return {"verb": "split", **settings, **facts, "data": source_name(source), "out": out.name}


@dataclass(frozen=True)
class _Units:
    """What stays together whatever happens: one raw row, or several that a format reads together. All arrays (u,).

    Args:
        numbers: of the first raw row.
        spans: raw rows.
        prompts: codes of the prompts, which do not depend on the order of rows.
        strata: codes of the values to stratify by, or None.
        num_rows: raw rows of the source.
    """

    numbers: NDArray[np.int64]
    spans: NDArray[np.int64]
    prompts: NDArray[np.int64]
    strata: NDArray[np.int64] | None
    num_rows: int


def _read(source: str, *, stratify: str | None, keep_near: bool, format: str | None) -> _Units:
    places: dict[int, int] = {}
    minima: list[NDArray[np.uint32]] = []
    values: dict[str, int] = {}
    numbers: list[int] = []
    spans: list[int] = []
    strata: list[int] = []
    num_rows = 0
    edges: list[tuple[int, int]] = []  # (unit, prompt): a message tree holds several prompts
    for chunk in io.chunks(source, size=_CHUNK):
        num_rows += len(chunk.rows)
        fresh: list[str] = []
        for unit in io.parse_units(chunk, format=format):
            for row in unit.rows:
                if isinstance(row, RowError):
                    raise row
                text = folded(prompt_key(row.prompt))
                code = xxhash.xxh3_64_intdigest(text.encode())
                if code not in places:
                    places[code] = len(places)
                    fresh.append(text)
                edges.append((len(numbers), places[code]))
            if unit.rows:
                numbers.append(unit.number)
                spans.append(unit.num_raw)
                if stratify is not None:
                    value = _stratum(unit.rows[0], stratify, chunk.rows[0][0])
                    strata.append(values.setdefault(value, len(values)))
        if keep_near:
            minima.append(near.minima(fresh))
    if not numbers:
        raise DataError(f"at least one row in {source_name(source)}", "an empty file", "Check the file.")
    order = np.argsort(np.array(list(places), dtype=np.uint64))  # by hash: the order of rows changes nothing
    rank = np.empty(len(order), dtype=np.int64)
    rank[order] = np.arange(len(order))
    if keep_near:
        rank = _same_when_near(np.concatenate(minima)[order])[rank]
    prompts = _linked(np.array(edges), rank)
    strata_codes = None
    if stratify is not None:  # codes in the order of the values, not of the rows
        by_value = {code: i for i, (_, code) in enumerate(sorted(values.items()))}
        strata_codes = np.array([by_value[code] for code in strata])
    return _Units(np.array(numbers), np.array(spans), prompts, strata_codes, num_rows)


def _linked(edges: NDArray[np.int64], rank: NDArray[np.int64]) -> NDArray[np.int64]:
    """For each unit the least prompt that it is linked to, through prompts that several units share."""
    units, prompts = edges[:, 0], rank[edges[:, 1]]
    num_units, size = int(units.max()) + 1, int(units.max()) + 1 + len(rank)
    graph = coo_matrix((np.ones(len(edges), dtype=np.int8), (units, num_units + prompts)), shape=(size, size))
    component = connected_components(graph, directed=False)[1]
    least = np.full(int(component.max()) + 1, len(rank), dtype=np.int64)
    np.minimum.at(least, component[num_units + prompts], prompts)
    return np.asarray(least[component[:num_units]], dtype=np.int64)


def _same_when_near(minima: NDArray[np.uint32]) -> NDArray[np.int64]:
    sketches = near.sketch(minima)
    return near.clusters(near.band_keys(minima), lambda i, j: near.similarity(sketches[i], sketches[j]) >= NEAR_PROMPT)


def _stratum(row: Row | RowError, column: str, where: str) -> str:
    assert not isinstance(row, RowError)
    if column not in row.metadata:
        raise DataError(
            f"the column {column!r} in every row, to stratify by",
            f"row {row.id!r} (near {where}) with the metadata {sorted(row.metadata)}",
            "Check --stratify.",
        )
    return str(row.metadata[column])
