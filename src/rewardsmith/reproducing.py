"""`rewardsmith reproduce`: a run once more from its manifest, in a fresh folder, and what came out beside what came out then.

A run folder holds no data and no path. The sources are given again or found beside the run, and each is compared by content with what the manifest says
before anything is trained.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.console import Console
from rich.table import Table

from rewardsmith import runs
from rewardsmith.config import Device
from rewardsmith.data import row_hashes
from rewardsmith.errors import DataError, ModelError, OutputError
from rewardsmith.evaluation.run_difference import (
    REPORT,
    RunFolder,
    difference,
    difference_lines,
    difference_tables,
    environment,
    estimates,
    other_starts,
    score_difference,
    short,
)
from rewardsmith.manifest import FILE_NAME, Manifest, code_state, package_versions, platform_facts
from rewardsmith.storage import file_sha256, refuse_inside, write_json

if TYPE_CHECKING:
    from rewardsmith.config import TrainSettings

RESULT = "reproduction.json"
SCORE_TOLERANCE, METRIC_TOLERANCE = 5e-2, 2e-2
"""Where machine or versions differ: of golden scores, times max(1, |s|), and of accuracies and the other metrics of the report."""
_SOURCES = {"data": "--data", "dev_data": "--dev-data", "eval_data": "--eval-data"}
# Metrics that are compared: of each part of the data the accuracy, of the eval pairs what does not hang on slices.
_METRICS = ("accuracy", "auc", "pooled_auc", "log_loss", "brier", "mean_margin")


@dataclass(frozen=True)
class Checked:
    """What was found before training.

    Args:
        settings: of the repetition.
        data: the lines that say which rows differ, by source that does.
        base: the lines that say which files of the base model differ.
        differing: what differs in code, versions and device.
        device: the type of the one that the repetition runs on.
        starts: what differed at earlier starts of a run that was resumed, one line each.
    """

    settings: TrainSettings
    data: dict[str, list[str]] = field(default_factory=dict)
    base: list[str] = field(default_factory=list)
    differing: dict[str, dict[str, Any]] = field(default_factory=dict)
    device: str = "cpu"
    starts: list[str] = field(default_factory=list)

    @property
    def is_same_place(self) -> bool:
        """Whether code, versions and device are those of the run, at each of its starts."""
        return not any(self.differing.values()) and not self.starts

    @property
    def promises_bits(self) -> bool:
        """Whether equal bits are promised: at the same place, and on a CPU, for a GPU may add in another order each time."""
        return self.is_same_place and self.device == "cpu"


def reproduce(
    run: Path,
    *,
    data: str | None,
    dev_data: str | None,
    eval_data: str | None,
    model: str | None,
    out: Path | None,
    anyway: bool,
    overwrite: bool,
    device: Device | None,
    threads: int | None,
    command: Sequence[str],
    quiet: bool,
    console: Console,
) -> dict[str, Any]:
    """Repeat a finished run of `train` and compare; the document, which also lies in `out`.

    Args:
        run: the run folder.
        data: the training data; found beside the run where None.
        dev_data: the dev data, of a run that was given some.
        eval_data: the eval data, of a run that was given some.
        model: the base model.
        out: a folder that does not exist; RUN-reproduced where None.
        anyway: go on though data or base model are others, and say what moved.
        overwrite: delete an earlier repetition in `out`.
        device: to run on; that of the run where None.
        threads: of the CPU; those of the run where None.
        command: the words of the command line, for the manifest.
        quiet: print no tables of what moved.
        console: for people.

    Raises:
        RewardsmithError: of the kind that says what was wrong; with other data or another base model nothing is trained.
    """
    manifest = _finished_run(run)
    if run.name in ("", ".."):  # "." has no neighbour by name
        run = run.resolve()
    out = out or run.with_name(f"{run.name}-reproduced")
    refuse_inside(out, str(run))
    if out.resolve().is_relative_to(run.resolve()):
        raise OutputError("a folder outside the run for --out", str(out), "Choose another --out.")
    golden = _golden(run)
    if out.exists() and not overwrite:
        raise OutputError("a new folder for --out", f"{out}, which exists", "Choose another --out, or --overwrite.")
    given = {"data": data, "dev_data": dev_data, "eval_data": eval_data}
    checked = _check(run, manifest, given, model, out, device=device, threads=threads, console=console)
    changed = bool(checked.data or checked.base)
    if changed and not anyway:
        raise _others(checked)
    day = (manifest.get("render") or {}).get("date")
    runs.train(checked.settings, overwrite=overwrite, command=command, console=console, day=day)
    document = {
        "verb": "reproduce",
        "run": run.resolve().name,
        "out": out.name,
        "data": checked.data,
        "base": checked.base,
        **checked.differing,
        "other_starts": checked.starts,
        **_compared(run, out, manifest, golden),
    }
    document |= verdict(document, checked, changed=changed)
    if changed:
        moved = difference(RunFolder.read(run), RunFolder.read(out), seed=checked.settings.seed)
        document["moved"] = moved
        if not quiet:
            for table in difference_tables(moved):
                console.print(table)
        for line in difference_lines(moved):
            console.print(line, highlight=False, markup=False, soft_wrap=True)
    elif not quiet:
        console.print(_comparison_table(document))
    write_json(out / RESULT, document)
    return document


def _finished_run(run: Path) -> dict[str, Any]:
    place = run.resolve()
    if place.name == "model" and (place.parent / FILE_NAME).is_file():
        raise ModelError("a run folder", f"{run}, the model folder of one", f"Give the run: {place.parent}.")
    found = Manifest.read(run / FILE_NAME)
    if found is not None:
        found.check_version()
    document = {} if found is None else found.document
    if found is None or document.get("verb") != "train" or found.state != "finished" or "identity" not in document:
        came = "none" if found is None else f"{document.get('verb')}, {found.state}"
        raise ModelError(
            f"the manifest of a finished `rewardsmith train` in {run}",
            came,
            "Give the run folder; a run that was interrupted goes on with its own command.",
        )
    parts = {"settings": ("model", "data"), "identity": ("model", "data")}
    missing = [f"{part}.{key}" for part, keys in parts.items() for key in keys if key not in (document.get(part) or {})]
    if missing:
        raise ModelError(
            f"settings and identity of the run in its manifest in {run}",
            f"one without {', '.join(missing)}",
            "Restore the manifest; without these a run cannot be repeated.",
        )
    weights, named = run / "model" / "model.safetensors", document.get("weights_sha256")
    if named and weights.is_file() and file_sha256(weights) != named:
        raise ModelError(
            f"the weights of the run as its manifest names them ({named[:12]}...)",
            f"others in {weights.parent}",
            "Restore the model folder; what was changed since cannot be repeated.",
        )
    return document


def _check(
    run: Path,
    manifest: Mapping[str, Any],
    given: Mapping[str, str | None],
    model: str | None,
    out: Path,
    *,
    device: Device | None,
    threads: int | None,
    console: Console,
) -> Checked:
    """Find every source, and compare it and this place with what the manifest says."""
    from rewardsmith.model import reproduction  # loaded here: it imports torch
    from rewardsmith.model.precision import choose_device, prepare_process
    from rewardsmith.model.provenance import device_facts
    from rewardsmith.model.trainer_arguments import with_twins
    from rewardsmith.model.training_data import read_data

    recorded = manifest["settings"]
    places = {name: _place(run, manifest, name, given[name]) for name in _SOURCES}
    base_model = model or _base_model(run, recorded["model"], reproduction.is_bundled(recorded["model"]))
    refuse_inside(out, base_model, *(place for place in places.values() if place))
    settings, notes = reproduction.repeated_settings(
        recorded, manifest, {**places, "model": base_model, "out": str(out)}, device=device, threads=threads
    )
    prepare_process(threads=settings.threads, seed=settings.seed)
    found = read_data(with_twins(settings))
    then = row_hashes.read(run / row_hashes.FILE_NAME)
    data = {}
    for name, wanted in manifest["identity"]["data"].items():
        if found.facts[name]["sha256"] != wanted:
            data[name] = (
                row_hashes.changes(then[name], found.rows[name]).lines()
                if name in then
                else [f"another content; which rows is not known, for the run holds no {row_hashes.FILE_NAME}"]
            )
    cut = manifest["identity"].get("shards")
    if cut is not None and "data" not in data and found.facts["data"].get("cut_sha256") != cut:
        data["data"] = ["the same rows, dealt otherwise over the shards, by which a stream is ordered"]
    chosen = choose_device(settings.device)
    here = {
        "code": code_state(),
        "versions": package_versions(),
        "device": device_facts(chosen),
        "platform": platform_facts(),
    }
    base = reproduction.base_changes(base_model, manifest)
    checked = Checked(settings, data, base, environment(manifest, here), chosen.type, other_starts(manifest))
    for line in (*notes, *_lines(checked)):
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    return checked


def _place(run: Path, manifest: Mapping[str, Any], name: str, given: str | None) -> str | None:
    """Where a source lies: as given, or under its recorded name beside the run, in the demo's or sweep's folder of data, or here."""
    recorded = manifest["settings"].get(name)
    if recorded is None:
        if given is not None:
            raise DataError(f"no {_SOURCES[name]}, for the run had none", given, f"Leave {_SOURCES[name]} out.")
        return None
    if given is not None:
        return given
    run = run.resolve()
    beside = (run.parent, run.with_name(f"{run.name}-data"), run.parent / "data", Path())
    for folder in beside:
        if (folder / recorded).exists():
            return str(folder / recorded)
    if recorded.count("/") == 1:  # a data set of the hub has no place
        return str(recorded)
    facts = (manifest.get("data") or {}).get(name, {})
    raise DataError(
        f"the {name} of the run: {recorded}, {facts.get('rows', 0):,} rows",
        "no file of that name beside the run or here",
        f"Say where it lies: {_SOURCES[name]}.",
    )


def _base_model(run: Path, recorded: str, bundled: bool) -> str:
    """Where the base model lies: under its recorded name beside the run or here, or by that name itself."""
    if bundled:
        return recorded
    for folder in (run.resolve().parent, Path()):
        if (folder / recorded).exists():
            return str(folder / recorded)
    return recorded


def _lines(checked: Checked) -> list[str]:
    """What was found before training, for people."""
    lines = [f"{name}: {line}" for name, found in checked.data.items() for line in found]
    lines += [f"base model: {line}" for line in checked.base]
    if not lines:
        lines.append("data and base model: those of the run, by hash")
    for part, keys in checked.differing.items():
        lines += [
            f"{part}: {key}: {short(values['b'])} (the run: {short(values['a'])})" for key, values in keys.items()
        ]
    lines += [f"the run was resumed; an earlier start had {line}" for line in checked.starts]
    if checked.is_same_place:
        lines.append("code, versions and device: those of the run")
    return lines


def _others(checked: Checked) -> DataError | ModelError:
    """The refusal: which rows, which files."""
    mend = "Give the very rows that the run was given, or say --anyway to see what moves."
    if checked.data:
        came = "; ".join(f"{name}: {line}" for name, found in checked.data.items() for line in found)
        return DataError("the data of the run", came, mend)
    return ModelError(
        "the base model of the run", "; ".join(checked.base), "Give it by --model, or say --anyway to see what moves."
    )


def _compared(
    run: Path, out: Path, manifest: Mapping[str, Any], golden_then: Sequence[Mapping[str, Any]] | None
) -> dict[str, Any]:
    """Weights, golden scores and metrics, then and here."""
    from rewardsmith.model.artefact import WEIGHTS
    from rewardsmith.model.reproduction import compare_weights

    before, after = run / "model" / WEIGHTS, out / "model" / WEIGHTS
    if before.is_file():
        weights = compare_weights(before, after).as_dict()
    else:  # the manifest alone was kept
        equal = manifest.get("weights_sha256") == file_sha256(after)
        weights = {"bit_equal": equal, "largest": 0.0 if equal else None}
    golden = None if golden_then is None else compare_golden(golden_then, _golden(out) or [])
    return {
        "weights": weights,
        "golden": golden,
        **compare_metrics(_metrics(run, manifest), _metrics(out, {})),
        "score_tolerance": SCORE_TOLERANCE,
        "metric_tolerance": METRIC_TOLERANCE,
    }


def compare_golden(then: Sequence[Mapping[str, Any]], here: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Golden inputs and scores, then and here; scores of other inputs are not compared."""
    same = [row["ids"] for row in then] == [row["ids"] for row in here]
    scores = (np.array([row["score"] for row in rows]) for rows in (then, here))
    return {
        "inputs": len(then),
        "same_ids": same,
        "max_difference": _finite(score_difference(*scores)) if same and then else None,
    }


def compare_metrics(then: Mapping[str, float], here: Mapping[str, float]) -> dict[str, Any]:
    """Metrics, then and here, and those that only one side has; the largest difference is None where one is no finite number."""
    compared = {
        name: {"run": then[name], "here": here[name], "difference": _finite(here[name] - then[name])}
        for name in then
        if name in here
    }
    largest = max((abs(here[name] - then[name]) for name in compared), key=_nan_last, default=0.0)
    return {
        "metrics": compared,
        "metrics_only_run": [name for name in then if name not in here],
        "metrics_only_here": [name for name in here if name not in then],
        "metrics_max_difference": _finite(largest),
    }


def _nan_last(number: float) -> float:
    """A key by which a NaN, which `max` passes over or not by where it stands, is the largest."""
    return math.inf if math.isnan(number) else number


def _finite(number: float) -> float | None:
    return number if math.isfinite(number) else None


def _golden(run: Path) -> list[dict[str, Any]] | None:
    """Golden inputs and scores of the model of a run; None where the manifest alone was kept.

    Raises:
        ModelError: at the first line that is none.
    """
    from rewardsmith.model.artefact import GOLDEN

    path = run / "model" / GOLDEN
    if not path.is_file():
        return None
    rows: list[dict[str, Any]] = []
    for number, line in enumerate(path.read_bytes().split(b"\n"), 1):
        if line:
            try:
                row = json.loads(line)
                rows.append({"ids": list(row["ids"]), "score": float(row["score"])})
            except (ValueError, KeyError, TypeError) as error:
                raise ModelError(
                    f"a golden input with its score in each line of {path}",
                    f"line {number}, which holds none",
                    "Restore the model folder.",
                ) from error
    return rows


def _metrics(folder: Path, manifest: Mapping[str, Any]) -> dict[str, float]:
    """The values of the metrics of a run: accuracy of each part of the data, and those of the eval pairs."""
    try:
        report = json.loads((folder / REPORT).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        report = {"overfitting": manifest.get("metrics", {})}
    found = {f"accuracy on {name} pairs": one["value"] for name, one in report["overfitting"].items()}
    judged = dict(estimates(report.get("eval") or {}))
    found |= {f"eval {name}": judged[name]["value"] for name in _METRICS if name in judged and name != "accuracy"}
    temperature = (report.get("calibration") or {}).get("temperature")
    return found | ({"temperature": temperature["value"]} if temperature else {})


def verdict(document: Mapping[str, Any], checked: Checked, *, changed: bool) -> dict[str, Any]:
    """bit-equal, within tolerance, beyond tolerance, or moved; and whether that is as promised.

    Args:
        document: with weights, golden scores and metrics, compared.
        checked: what was found before training.
        changed: whether data or base model are others.
    """
    weights, golden = document["weights"], document["golden"]
    others = " and ".join(name for name, found in (("data", checked.data), ("base model", checked.base)) if found)
    same_scores = golden is None or _scores_within(golden, 0)
    largest = document["metrics_max_difference"]
    if weights["bit_equal"] and same_scores and largest == 0:
        reason = "weights, golden scores and metrics are the same bits"
        reason += f", though the {others} changed: what changed decided nothing" if changed else ""
        return {"verdict": "bit-equal", "ok": True, "reason": reason}
    if changed:
        return {"verdict": "moved", "ok": True, "reason": f"the {others} changed, and no equality is promised"}
    names = [f"{part}: {key}" for part, keys in checked.differing.items() for key in keys]
    names += [f"an earlier start of the run: {line}" for line in checked.starts]
    reason = f"what differs: {', '.join(names)}" if names else "nothing that the manifest holds differs"
    within = (largest is not None and largest <= METRIC_TOLERANCE) and (
        bool(document["metrics"]) if golden is None else _scores_within(golden, SCORE_TOLERANCE)
    )
    if not within:
        return {"verdict": "beyond tolerance", "ok": False, "reason": reason}
    if checked.promises_bits:
        return {"verdict": "within tolerance", "ok": False, "reason": f"{reason}, and then a CPU gives the same bits"}
    return {"verdict": "within tolerance", "ok": True, "reason": reason}


def _scores_within(golden: Mapping[str, Any], tolerance: float) -> bool:
    largest = golden["max_difference"]
    return golden["same_ids"] and largest is not None and largest <= tolerance


def verdict_line(document: Mapping[str, Any]) -> str:
    """The end of the verb in one sentence, tolerances included."""
    golden, weights = document["golden"], document["weights"]
    parts = []
    allowed = {tolerance: f" (allowed {tolerance:g})" for tolerance in (SCORE_TOLERANCE, METRIC_TOLERANCE)}
    if document["verdict"] == "moved":
        allowed = dict.fromkeys(allowed, "")
    if document["verdict"] != "bit-equal":
        if weights["largest"] is not None:
            parts.append(f"weights differ by at most {weights['largest']:.1e}")
        if golden is not None and not golden["same_ids"]:
            parts.append("the golden inputs have other token ids")
        elif golden is not None:
            distance = _distance(golden["max_difference"])
            parts.append(f"golden scores by {distance} x max(1, |s|){allowed[SCORE_TOLERANCE]}")
        parts.append(f"metrics by {_distance(document['metrics_max_difference'])}{allowed[METRIC_TOLERANCE]}")
    for side, whose in (("metrics_only_run", "the run"), ("metrics_only_here", "the repetition")):
        if document[side]:
            parts.append(f"not compared, for {whose} alone has it: {', '.join(document[side])}")
    numbers = f"; {', '.join(parts)}" if parts else ""
    return f"{document['verdict']}: {document['reason']}{numbers}"


def _distance(number: float | None) -> str:
    return "no finite number" if number is None else f"{number:.1e}"


def _comparison_table(document: Mapping[str, Any]) -> Table:
    table = Table(title="the run and its repetition", title_justify="left")
    for column in ("", "the run", "here", "difference"):
        table.add_column(column, justify="left" if column == "" else "right")
    for name, one in document["metrics"].items():
        table.add_row(
            name,
            f"{one['run']:.6f}",
            f"{one['here']:.6f}",
            "no number" if one["difference"] is None else f"{one['difference']:+.1e}",
        )
    return table
