"""What differs between two runs, by what their folders say: settings, data, code, versions, device and results. No model is loaded.

A run folder says how it came to be in its manifest or, where a verb writes none, in its report.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from rich.markup import escape
from rich.table import Table

from rewardsmith.data import row_hashes
from rewardsmith.data.faults import EMPTY, content_fault
from rewardsmith.data.row_hashes import RowHashes
from rewardsmith.data.schema import Preference, prompt_key
from rewardsmith.errors import DataError
from rewardsmith.evaluation.comparison import compare_scores, told_apart
from rewardsmith.manifest import FILE_NAME, Manifest
from rewardsmith.stats import Estimate, Floats

Document = Mapping[str, Any]
REPORT, PAIRS = "report.json", "pairs.jsonl"
VERBS = ("train", "evaluate", "audit", "ppo")
"""Verbs whose folders can be compared."""
_ESTIMATE = {"value", "low", "high", "n", "method"}
# Settings that say where a run lies, and those that are shown under `data` and `model`.
_PLACES = {"out", "model", "data", "dev_data", "eval_data", "policy", "reward_model", "prompts", "eval_prompts"}
# What says how a source was read, in words, and lists of examples of it.
_WORDS = {"read_as", "skipped_examples", "source"}
# Of a report: what a run was given, which is compared elsewhere, and series that are no result of their own.
_GIVEN = {"verb", "model", "data", "versions", "seed", "papers", "history", "dev_points", "model_folder", "curves"}
# Parts of a report that a table has no room for; the document has them.
_FINE = ("by.", "slices.", "hardest.", "learning_curve.", "calibrated.", "temperature_here", "overfitting.eval")
_COST = ("seconds", "timings", "peak_memory")
_SPEEDS = ("train_seconds", "pairs_per_second", "tokens_per_second")
_ROW = {"id", "prompt", "chosen", "rejected", "score_chosen", "score_rejected"}
_MOST_ROWS = 30
_PAIRED = (
    ("difference", "accuracy, A minus B"),
    ("log_loss_difference", "log-loss, A minus B"),
)


@dataclass(frozen=True)
class RunFolder:
    """What a folder says of its run.

    Args:
        name: of the folder.
        verb: that made it.
        state: finished, failed, interrupted, running, or killed (see `manifest.Manifest.state`).
        manifest: empty where the verb writes none.
        report: empty where the run did not come that far.
        rows: hashes of the rows of its sources, where it holds them.
        pairs: its eval pairs with their scores, where it holds them.
    """

    name: str
    verb: str
    state: str
    manifest: Document
    report: Document
    rows: Mapping[str, RowHashes] = field(repr=False)
    pairs: Sequence[Document] = field(repr=False)

    @classmethod
    def read(cls, folder: Path) -> RunFolder:
        """Read a folder of `train`, `evaluate`, `audit` or `ppo`.

        Raises:
            DataError: if it is none, of a later format, or holds a file that is damaged.
        """
        manifest = Manifest.read(folder / FILE_NAME)
        if manifest is not None:
            manifest.check_version()
        report = _document(folder / REPORT)
        said = {} if manifest is None else manifest.document
        verb = said.get("verb") or report.get("verb")
        if verb not in VERBS:
            came = f"one of {verb}" if verb else "a folder without" if folder.is_dir() else "nothing there"
            raise DataError(
                f"a folder with the manifest or report of {', '.join(VERBS)} at {folder}", came, "Check the path."
            )
        return cls(
            folder.resolve().name,
            str(verb),
            "finished" if manifest is None else manifest.state,
            said,
            report,
            row_hashes.read(folder / row_hashes.FILE_NAME),
            list(_rows(folder / PAIRS)),
        )

    @property
    def says(self) -> Document:
        """The manifest, or the report of a verb that writes none."""
        return self.manifest or self.report


def difference(a: RunFolder, b: RunFolder, *, seed: int = 0) -> dict[str, Any]:
    """The document of `rewardsmith diff`.

    Args:
        a: the first run.
        b: the second.
        seed: of bootstraps and sign flips.

    Raises:
        DataError: if they are of different verbs.
    """
    if a.verb != b.verb:
        raise DataError(
            "two runs of the same verb",
            f"one of {a.verb} and one of {b.verb}",
            "`rewardsmith compare` compares two models, wherever they come from.",
        )
    paired, why_not = paired_results(a, b, seed=seed)
    return {
        "verb": "diff",
        "of": a.verb,
        "run_a": _head(a),
        "run_b": _head(b),
        "settings": differing(_settings(a), _settings(b)),
        "data": data_differences(a, b),
        "model": differing(_model(a), _model(b)),
        **environment(a.says, b.says),
        "cost": differing(_cost(a), _cost(b)),
        "results": _results(a.report, b.report),
        "paired": paired,
        "paired_why_not": why_not,
        "seed": seed,
    }


def differing(a: Document, b: Document) -> dict[str, Any]:
    """The keys, dotted, at which two documents differ, with both values; None stands for nothing there.

    >>> differing({"loss": {"name": "odin"}, "seed": 1}, {"loss": {"name": "odin"}, "seed": 2})
    {'seed': {'a': 1, 'b': 2}}
    """
    flat_a, flat_b = dict(_flat(a)), dict(_flat(b))
    keys = dict.fromkeys([*flat_a, *flat_b])
    return {key: {"a": flat_a.get(key), "b": flat_b.get(key)} for key in keys if flat_a.get(key) != flat_b.get(key)}


def environment(a: Document, b: Document) -> dict[str, dict[str, Any]]:
    """What differs in code, versions and device between two manifests: all that may move a number though settings and data are the same."""

    def device(said: Document) -> dict[str, Any]:
        return {**said.get("device", {}), **said.get("platform", {})}

    # A hash of the files decides: a commit may differ in its tests alone. Records without one have the commit.
    code_a, code_b = a.get("code") or {}, b.get("code") or {}
    same = bool(code_a.get("sha256")) and code_a.get("sha256") == code_b.get("sha256")
    return {
        "code": {} if same else differing(code_a, code_b),
        "versions": differing(a.get("versions", {}), b.get("versions", {})),
        "device": differing(device(a), device(b)),
    }


def other_starts(said: Document) -> list[str]:
    """What differed when a run that was resumed had started before: each kind of difference once, with both values.

    >>> other_starts({"versions": {"torch": "2.13"}, "starts": [{"versions": {"torch": "2.12"}}]})
    ['versions: torch: 2.12 (the last start: 2.13)']
    """
    lines = [
        f"{part}: {key}: {short(values['a'])} (the last start: {short(values['b'])})"
        for start in said.get("starts", [])
        for part, keys in environment(start, said).items()
        for key, values in keys.items()
    ]
    return list(dict.fromkeys(lines))


def short(value: Any) -> str:
    """A value for a line of text; of a hash its beginning."""
    text = str(value)
    return f"{text[:12]}..." if len(text) in (40, 64) and text.isalnum() else text


def data_differences(a: RunFolder, b: RunFolder) -> dict[str, Any]:
    """By source that differs: its facts, and which rows, from A to B, where both folders hold the hashes of rows."""
    sources_a, sources_b = _sources(a), _sources(b)
    found: dict[str, Any] = {}
    for name in dict.fromkeys([*sources_a, *sources_b]):
        facts = differing(sources_a.get(name, {}), sources_b.get(name, {}))
        if not facts:
            continue
        found[name] = {"facts": facts, "rows": None, "lines": []}
        if name in a.rows and name in b.rows:
            changed = row_hashes.changes(a.rows[name], b.rows[name])
            found[name] |= {"rows": changed.as_dict(), "lines": changed.lines()}
    return found


def estimates(document: Any, path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Every Estimate in a document with its dotted path; in a list, by the `name` of what holds it."""
    if isinstance(document, Mapping):
        if set(document) >= _ESTIMATE:
            yield path, dict(document)
            return
        for key, value in document.items():
            yield from estimates(value, f"{path}.{key}" if path else str(key))
    elif isinstance(document, list | tuple):
        for one in document:
            if isinstance(one, Mapping) and isinstance(one.get("name"), str):
                yield from estimates(one, f"{path}.{one['name']}")


def paired_results(a: RunFolder, b: RunFolder, *, seed: int = 0) -> tuple[dict[str, Any] | None, str | None]:
    """The paired comparison on the eval pairs that both runs scored, and whether every score is the same; or None and why there is none."""
    for one in (a, b):
        if not one.pairs:
            return None, f"{one.name} holds no scores of eval pairs ({PAIRS})"
    others: defaultdict[str, list[Document]] = defaultdict(list)
    for row in b.pairs:
        others[_key(row)].append(row)
    both = [(row, others[_key(row)].pop(0)) for row in a.pairs if others[_key(row)]]
    if not both:
        return None, "no eval pair of the one is an eval pair of the other"
    judged = [(pair, rows) for rows in both if _is_judged(pair := _preference(rows[0]))]
    if not judged:
        return None, f"of {len(both):,} common eval pairs none has a winner: each is a labelled tie or has no answer"
    margins = [np.array([_margin(rows[side]) for _, rows in judged]) for side in (0, 1)]
    found = compare_scores(
        margins[0],
        margins[1],
        [pair for pair, _ in judged],
        names=told_apart(a.name, b.name),
        by=[],
        temperatures=(_temperature(a.report), _temperature(b.report)),
        seed=seed,
    ).document
    scores = [
        np.array([[row["score_chosen"], row["score_rejected"]] for row in side]) for side in zip(*both, strict=True)
    ]
    return {
        "pairs_a": len(a.pairs),
        "pairs_b": len(b.pairs),
        "largest_score_difference": score_difference(scores[0], scores[1]),
        **{key: value for key, value in found.items() if key != "slices"},
    }, None


def score_difference(before: Floats, after: Floats) -> float:
    """The largest |difference| / max(1, |score before|), as `verify` measures it."""
    return float(np.max(np.abs(before - after) / np.maximum(1.0, np.abs(before))))


def difference_tables(document: Document) -> list[Table]:
    """The document for people: what went in, what came out, the paired comparison."""
    tables = []
    given = _table("what went into the runs", document)
    for part in ("settings", "model", "code", "versions", "device"):
        for key, values in document[part].items():
            given.add_row(part, escape(key), *map(_cell, (values["a"], values["b"])))
    for name, found in document["data"].items():
        for key, values in found["facts"].items():
            given.add_row("data", escape(f"{name}.{key}"), *map(_cell, (values["a"], values["b"])))
    if given.row_count:
        tables.append(given)
    shown = {k: v for k, v in document["results"]["differing"].items() if not any(part in f"{k}." for part in _FINE)}
    results = _table("results, with their own 95 % intervals", document)
    for key, values in list(shown.items())[:_MOST_ROWS]:
        group, _, name = key.rpartition(".")
        results.add_row(escape(group), escape(name), *map(_estimate_cell, (values["a"], values["b"])))
    if results.row_count:
        tables.append(results)
    if document["paired"] is not None:
        paired = Table(title="on the same eval pairs", title_justify="left")
        for column in ("", "value", "95 % interval", "n"):
            paired.add_column(column, justify="left" if column == "" else "right")
        for key, name in _PAIRED:
            one = Estimate(**document["paired"][key])
            paired.add_row(name, f"{one.value:+.4f}", rf"\[{one.low:+.4f}, {one.high:+.4f}]", f"{one.n:,}")
        tables.append(paired)
    return tables


def difference_lines(document: Document) -> list[str]:
    """What a table cannot say: outcomes, rows, how many results are the same, the verdict."""
    lines = [
        f"{side}: {document[key]['name']} ({document[key]['state']})"
        + (f": {document[key]['error']}" if document[key]["error"] else "")
        for side, key in (("A", "run_a"), ("B", "run_b"))
    ]
    lines += [
        f"{side} was resumed; an earlier start had {line}"
        for side, key in (("A", "run_a"), ("B", "run_b"))
        for line in document[key]["other_starts"]
    ]
    for name, found in document["data"].items():
        lines += [f"{name}, from A to B: {line}" for line in found["lines"]]
        if found["rows"] is None and "sha256" in found["facts"]:
            lines.append(
                f"{name}: another content; which rows is not known, for not both folders hold {row_hashes.FILE_NAME}"
            )
    same = [part for part in ("settings", "data", "model", "code", "versions", "device") if not document[part]]
    if same:
        lines.append(f"the same: {', '.join(same)}")
    results = document["results"]
    hidden = len(results["differing"]) - sum(
        not any(part in f"{key}." for part in _FINE) for key in list(results["differing"])
    )
    lines.append(
        f"results: {results['same']:,} estimates are the same, {len(results['differing']):,} differ"
        + (f" ({hidden:,} of slices and the like stand in --json)" if hidden else "")
    )
    if document["paired"] is None:
        lines.append(f"no paired comparison: {document['paired_why_not']}")
    elif document["paired"]["largest_score_difference"] == 0:
        lines.append(f"all scores of {document['paired']['num_pairs']:,} common eval pairs are equal bit for bit")
    else:
        lines.append(document["paired"]["verdict"])
    return lines


def _document(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of pairs.jsonl.

    Raises:
        DataError: at the first line that is none.
    """
    if not path.is_file():
        return
    for number, line in enumerate(path.read_bytes().split(b"\n"), 1):
        if not line:
            continue
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        if not isinstance(row, dict) or not _ROW <= row.keys():
            raise DataError(
                f"an eval pair with its scores in each line of {path}",
                f"line {number}, which holds none",
                "Copy the file again from where the run was made.",
            )
        yield row


def _head(run: RunFolder) -> dict[str, Any]:
    said = run.manifest
    return {
        "name": run.name,
        "state": run.state,
        "error": said.get("error"),
        "started": said.get("started"),
        "command": said.get("command"),
        "resumed_from": said.get("resumed_from"),
        "other_starts": other_starts(said),
    }


def _flat(document: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(document, Mapping) and document:
        for key, value in document.items():
            yield from _flat(value, f"{path}.{key}" if path else str(key))
    else:
        yield path, document


def _settings(run: RunFolder) -> dict[str, Any]:
    """What was set, and what was resolved from it."""
    said = run.says
    settings = {key: value for key, value in (said.get("settings") or {}).items() if key not in _PLACES}
    if not run.manifest:
        return settings | {key: said[key] for key in ("seed", "precision", "backend") if key in said}
    resolved = {
        "render": said.get("render", {}),
        "precision": (said.get("precision") or {}).get("name"),
        "batching": (said.get("batching") or {}).get("name"),
        "pooling": (said.get("model") or {}).get("pooling"),
        "date": (said.get("render") or {}).get("date"),
    }
    return settings | {"resolved": resolved}


def _sources(run: RunFolder) -> dict[str, dict[str, Any]]:
    """The facts of each source, without words."""
    data = dict(run.says.get("data") or {})
    if "sha256" in data:  # a report of one source
        data = {"data": data}
    found = {
        name: {key: value for key, value in facts.items() if key not in _WORDS}
        for name, facts in data.items()
        if isinstance(facts, Mapping)
    }
    dropped = (run.manifest.get("dropped") or {}).get("counts")
    if dropped is not None:
        found["dropped"] = dict(dropped)
    if run.manifest.get("counts"):
        found["counts"] = dict(run.manifest["counts"])
    return found


def _model(run: RunFolder) -> dict[str, Any]:
    """The files that the run started from, or judged, by name."""
    said = run.says
    identity = said.get("identity") or {}
    found = {key: identity[key] for key in ("model", "policy", "reward") if identity.get(key)}
    base = (said.get("base") or {}).get("files")
    if base:
        found["model"] = base
    elif isinstance(said.get("model"), Mapping) and "files" in said["model"]:
        found["model"] = said["model"]["files"]
    return found


def _cost(run: RunFolder) -> dict[str, Any]:
    training = run.manifest.get("training") or {}
    return {key: run.manifest[key] for key in _COST if key in run.manifest} | {
        key: training[key] for key in _SPEEDS if key in training
    }


def _results(a: Document, b: Document) -> dict[str, Any]:
    """The Estimates of two reports that differ, and how many are the same."""
    found_a, found_b = (
        dict(estimates({key: value for key, value in report.items() if key not in _GIVEN})) for report in (a, b)
    )
    keys = dict.fromkeys([*found_a, *found_b])
    differ = {
        key: {"a": found_a.get(key), "b": found_b.get(key)} for key in keys if found_a.get(key) != found_b.get(key)
    }
    return {"same": len(keys) - len(differ), "differing": differ}


def _key(row: Document) -> str:
    """What makes two rows of pairs.jsonl the same pair: its texts."""
    return json.dumps(
        [prompt_key(row["prompt"]), row["chosen"], row["rejected"], row.get("rejected_prompt"), bool(row.get("tie"))]
    )


def _preference(row: Document) -> Preference:
    return Preference(
        id=str(row["id"]),
        prompt=row["prompt"],
        chosen=row["chosen"],
        rejected=row["rejected"],
        tie=bool(row.get("tie")),
        metadata=dict(row.get("metadata") or {}),
    )


def _is_judged(pair: Preference) -> bool:
    """Whether a pair has two answers and a winner, as `compare` asks for."""
    return not pair.tie and content_fault(pair) != EMPTY


def _margin(row: Document) -> float:
    return float(row["score_chosen"]) - float(row["score_rejected"])


def _temperature(report: Document) -> float | None:
    """Of the calibrated probabilities of a report of `train` or `evaluate`."""
    evaluation = report.get("eval") or report
    calibrated = evaluation.get("calibrated")
    return float(calibrated["temperature"]) if calibrated else None


def _table(title: str, document: Document) -> Table:
    table = Table(title=title, title_justify="left")
    for column in ("", ""):
        table.add_column(column, overflow="fold")
    for side in ("run_a", "run_b"):
        table.add_column(escape(f"{side[-1].upper()}: {document[side]['name']}"), overflow="fold")
    return table


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, str) and len(value) == 64 and value.isalnum():
        return f"{value[:12]}..."
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return escape(" ".join(text.split()))


def _estimate_cell(document: Document | None) -> str:
    return (
        "-" if document is None else escape(f"{document['value']:.4f} [{document['low']:.4f}, {document['high']:.4f}]")
    )
