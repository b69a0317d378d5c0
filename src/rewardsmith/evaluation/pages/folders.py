"""Folders of results -> what the page draws: documents side by side, audits with their models, and one row a pair with the scores of every model.

Everything that is computed for a page of several models, the paired comparisons, is stored in the page's own report.json: the page is drawn from that file and
the pairs.jsonl beside it, by anyone, again.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from rewardsmith.data.schema import Preference
from rewardsmith.errors import DataError
from rewardsmith.evaluation.comparison import compare_scores
from rewardsmith.manifest import FILE_NAME as MANIFEST
from rewardsmith.manifest import Manifest
from rewardsmith.stats import Floats

REPORT, PAIRS = "report.json", "pairs.jsonl"
VERB, AUDIT = "report", "audit"
# What a model folder says of its own files.
_CONTRACT = "rewardsmith.json"
_TEXTS = ("prompt", "chosen", "rejected")
# What a row says of one model's scores; the rest of it is about the pair.
_SCORES = (
    "score_chosen",
    "score_rejected",
    "tokens_chosen",
    "truncated_chosen",
    "tokens_rejected",
    "truncated_rejected",
    "attributions",
)


@dataclass(frozen=True)
class Report:
    """What a page is drawn from.

    Args:
        document: {"verb": "report", "models": [{"name", "report", "manifest", "audits"}], "comparisons": [...], "pairs": counts}; audits are
            {"name", "report", "manifest"}, named by their data, and a model of which there are only audits has the report {"verb": "audit"}.
        rows: one a pair: id, texts and metadata where they are known, "tie", and "models": each model's scores, or None where it did not score the pair.
    """

    document: dict[str, Any]
    rows: list[dict[str, Any]]

    @property
    def models(self) -> list[dict[str, Any]]:
        """The models of the page, in the order in which they were named."""
        return list(self.document["models"])


@dataclass
class _Model:
    """A model while folders are read.

    Args:
        name: that its document gives it, else that of its folder.
        place: its folder's name.
        files: SHA-256 by file name; empty where they are not known.
        report: its document.
        manifest: if there is one.
        rows: of its pairs.
        audits: (name of the data, name of the folder, document, manifest) of each.
    """

    name: str
    place: str
    files: Mapping[str, Any]
    report: dict[str, Any]
    manifest: dict[str, Any] | None = None
    rows: list[dict[str, Any]] = field(default_factory=list)
    audits: list[tuple[str, str, dict[str, Any], dict[str, Any] | None]] = field(default_factory=list)

    def as_dict(self, name: str) -> dict[str, Any]:
        names = _told_apart([(data, place) for data, place, _, _ in self.audits])
        audits = [
            {"name": name, "report": report, "manifest": manifest}
            for name, (_, _, report, manifest) in zip(names, self.audits, strict=True)
        ]
        found = {"name": name, "report": self.report, "manifest": self.manifest}
        return found | ({"audits": audits} if audits else {})


def read_report(folders: Sequence[Path], *, seed: int = 0) -> Report:
    """Read folders of `train`, `evaluate`, `audit` and (a single one) `report`.

    An audit belongs to the model of the same files, or of the same name where either's files are not known; one that belongs to none makes a model of its
    own, after the others.

    Args:
        folders: at least one.
        seed: of the bootstraps and sign flips of comparisons.

    Raises:
        DataError: if a folder holds no report.json of ours, or a file of it cannot be read.
    """
    documents = [_read_document(folder) for folder in folders]
    if documents[0]["verb"] == VERB and len(folders) == 1:
        return Report(documents[0], _read_rows(folders[0] / PAIRS))
    for folder, document in zip(folders, documents, strict=True):
        if document["verb"] == VERB:
            raise DataError(
                "folders of `train`, `evaluate` or `audit`",
                f"{folder}, which is itself a report",
                "Name the runs it was made of, or it alone to draw it again.",
            )
    found = _models(folders, documents)
    names = _told_apart([(model.name, model.place) for model in found])
    models = [model.as_dict(name) for name, model in zip(names, found, strict=True)]
    tables = [model.rows for model in found]
    scored = [[row for row in rows if _is_scored(row)] for rows in tables]
    rows = _joined(scored)
    without = sum(len(rows) for rows in tables) - sum(len(rows) for rows in scored)
    document = {
        "verb": VERB,
        "models": models,
        "comparisons": _comparisons(models, rows, seed),
        "pairs": {
            "num_rows": len(rows),
            "num_by_model": [len(table) for table in scored],
            "without_scores": without,
        },
    }
    return Report(document, rows)


def evaluation_of(report: Mapping[str, Any]) -> Mapping[str, Any]:
    """The evaluation within a document of `train` or `evaluate`; empty where a run was not judged."""
    return report if report["verb"] == "evaluate" else report.get("eval") or {}


def margin_of(scores: Mapping[str, Any]) -> float:
    """Score of chosen minus score of rejected."""
    return float(scores["score_chosen"]) - float(scores["score_rejected"])


def _read_document(folder: Path) -> dict[str, Any]:
    path = folder / REPORT
    mend = "Name a run folder of `train`, or a folder of `evaluate --out` or `audit --out`."
    try:
        # What JSON has no number for (an interval without an end) is not known.
        document = json.loads(path.read_text(encoding="utf-8"), parse_constant=lambda name: None)
    except FileNotFoundError as error:
        raise DataError(f"a {REPORT}", f"{folder}, which holds none", mend) from error
    except (OSError, ValueError) as error:
        raise DataError(f"a readable {REPORT}", f"{path}: {error}", mend) from error
    verb = document.get("verb") if isinstance(document, dict) else None
    if verb not in ("train", "evaluate", AUDIT, VERB):
        raise DataError(
            f"a {REPORT} of train, evaluate, audit or report", f"{path} of {verb or 'something else'}", mend
        )
    return dict(document)


def _read_manifest(folder: Path) -> dict[str, Any] | None:
    found = Manifest.read(folder / MANIFEST)
    return None if found is None else found.document | {"outcome": found.state}


def _read_rows(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    rows = []
    try:
        with open(path, encoding="utf-8") as lines:
            for number, line in enumerate(lines, start=1):
                row = json.loads(line, parse_constant=_refuse_constant)
                if not isinstance(row, dict):
                    raise ValueError(f"line {number} holds no object")
                rows.append(row)
    except (OSError, ValueError) as error:
        raise DataError(
            f"a {PAIRS} of one JSON object a line", f"{path}: {error}", "Make the folder again, or remove the file."
        ) from error
    return rows


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no number")


def _is_scored(row: Mapping[str, Any]) -> bool:
    return "id" in row and all(isinstance(row.get(key), int | float) for key in ("score_chosen", "score_rejected"))


def _models(folders: Sequence[Path], documents: Sequence[dict[str, Any]]) -> list[_Model]:
    """The models in the order in which they are named, with their audits; then those of which there are only audits."""
    found = []
    for folder, document in zip(folders, documents, strict=True):
        if document["verb"] != AUDIT:
            name, files = _identity(folder, document)
            rows = _read_rows(folder / PAIRS)
            found.append(_Model(name, folder.resolve().name, files, document, _read_manifest(folder), rows))
    for folder, document in zip(folders, documents, strict=True):
        if document["verb"] == AUDIT:
            name, files = _identity(folder, document)
            model = _audited(found, name, files)
            if model is None:
                model = _Model(name, folder.resolve().name, files, {"verb": AUDIT})
                found.append(model)
            data = document.get("data")
            source = data.get("source") if isinstance(data, Mapping) else None
            place = folder.resolve().name
            model.audits.append((str(source or place), place, document, _read_manifest(folder)))
    return found


def _audited(models: Sequence[_Model], name: str, files: Mapping[str, Any]) -> _Model | None:
    """The model that an audit is of."""
    for model in models:
        if files and model.files == files:
            return model
    # A name that two models have names neither.
    named = [model for model in models if model.name == name and not (files and model.files)]
    return named[0] if len(named) == 1 else None


def _identity(folder: Path, document: Mapping[str, Any]) -> tuple[str, Mapping[str, Any]]:
    """A model's name (that of the folder, for a run) and the hashes of its files, which a run has in its model folder."""
    model = document.get("model")
    if isinstance(model, Mapping):
        return str(model.get("name") or folder.resolve().name), model.get("files") or {}
    try:
        contract = json.loads((folder / str(document.get("model_folder")) / _CONTRACT).read_text(encoding="utf-8"))
        return folder.resolve().name, dict(contract["files"])
    except (OSError, ValueError, KeyError, TypeError):
        return folder.resolve().name, {}


def _told_apart(found: Sequence[tuple[str, str]]) -> list[str]:
    """Names that no other has, from (name, folder)."""
    plain = [name for name, _ in found]
    names = [name if plain.count(name) == 1 else f"{name} ({place})" for name, place in found]
    return [name if names.count(name) == 1 else f"{name} {number}" for number, name in enumerate(names, start=1)]


def _key(row: Mapping[str, Any]) -> str:
    """Pairs of one key are the same pair: equal ids and equal texts."""
    return json.dumps([row["id"], *(row.get(name) for name in (*_TEXTS, "rejected_prompt"))], sort_keys=True)


def _joined(tables: Sequence[Sequence[Mapping[str, Any]]]) -> list[dict[str, Any]]:
    """One row a pair, in the order of the first model that has it; ids may repeat within a file, so each occurrence is its own."""
    joined: dict[tuple[str, int], dict[str, Any]] = {}
    for number, rows in enumerate(tables):
        seen: dict[str, int] = {}
        for row in rows:
            key = _key(row)
            seen[key] = seen.get(key, 0) + 1
            pair = {name: value for name, value in row.items() if name not in _SCORES}
            entry = joined.setdefault((key, seen[key]), pair | {"models": [None] * len(tables)})
            entry["models"][number] = {name: row[name] for name in _SCORES if name in row}
    return list(joined.values())


def _comparisons(
    models: Sequence[Mapping[str, Any]], rows: Sequence[Mapping[str, Any]], seed: int
) -> list[dict[str, Any]]:
    """The first model that scored pairs against each other one that did, on the pairs of both of which the texts are stored and a winner is known."""
    found = []
    first, *others = [number for number in range(len(models)) if any(row["models"][number] for row in rows)] or [0]
    for number in others:
        shared = [
            row
            for row in rows
            if row["models"][first] and row["models"][number] and not row.get("tie") and all(row.get(t) for t in _TEXTS)
        ]
        names = (models[first]["name"], models[number]["name"])
        if not shared:
            found.append({"verb": "compare", "model_a": names[0], "model_b": names[1], "num_pairs": 0})
            continue
        pairs = [_preference(row) for row in shared]
        temperatures = (_temperature(models[first]["report"]), _temperature(models[number]["report"]))
        compared = compare_scores(
            _margins(shared, first), _margins(shared, number), pairs, names=names, temperatures=temperatures, seed=seed
        )
        found.append({"verb": "compare", **compared.document})
    return found


def _preference(row: Mapping[str, Any]) -> Preference:
    votes = row.get("votes")
    return Preference(
        str(row["id"]),
        row["prompt"],
        row["chosen"],
        row["rejected"],
        margin=row.get("margin"),
        votes=(votes[0], votes[1]) if votes else None,
        rejected_prompt=row.get("rejected_prompt"),
        metadata=row.get("metadata") or {},
    )


def _margins(rows: Sequence[Mapping[str, Any]], number: int) -> Floats:
    return np.array([margin_of(row["models"][number]) for row in rows])


def _temperature(report: Mapping[str, Any]) -> float | None:
    calibrated = evaluation_of(report).get("calibrated") or {}
    return calibrated.get("temperature")
