"""`train --sweep`: every combination of a few settings and seeds as a plain run, one split for all, and one look at the eval data at the end.

Settings are chosen by the dev part alone. The eval pairs are scored once, by the runs of the chosen setting: to choose by them would be to train on them.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import re
import shutil
import time
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
from rich.console import Console
from rich.table import Table

from rewardsmith import runs
from rewardsmith.config import ScoringSettings, TrainSettings, build, merge, parse_set
from rewardsmith.data import io
from rewardsmith.data.faults import content_fault
from rewardsmith.data.schema import Preference, Row, as_row, prompt_key
from rewardsmith.data.sources import source_identity
from rewardsmith.data.split import split_by_prompt
from rewardsmith.errors import (
    DataError,
    MissingExtraError,
    OutputError,
    RewardsmithError,
    SettingsError,
    TrainingStopped,
)
from rewardsmith.evaluation.pairwise import evaluate
from rewardsmith.manifest import FILE_NAME, Manifest, without_paths
from rewardsmith.stats import Estimate
from rewardsmith.storage import folder_lock, write_json, write_text

SUMMARY = "sweep.json"
_DATA = "data"
_SEEDS = ("seed", "trainer.seed")
# One split is made for all runs, and the eval data belong to the sweep: what decides on either cannot differ between runs.
_SHARED = ("out", "data", "dev_data", "eval_data", "dev_share", "skip_bad", "loss.allow_negative_margin")
# Keys of the loss under which the dev log-losses of two settings are still the same quantity.
_SAME_DEV_LOSS = ("loss.label_smoothing", "loss.centring", "loss.margin", "loss.weight")
_LONGEST_NAME = 120
Record = dict[str, Any]


@dataclass(frozen=True)
class Axis:
    """A setting and what it is set to in turn.

    Args:
        key: with dots, as `--set` takes it.
        values: TOML values or bare words, as they were written.
    """

    key: str
    values: tuple[str, ...]


@dataclass(frozen=True)
class Planned:
    """One run of a sweep.

    Args:
        name: of its folder; the same for the same values, whatever else is swept.
        setting: the values that are swept, without the seed.
        setting_name: names the runs that differ in their seed alone.
        seed: of the run.
        settings: of the plain run.
    """

    name: str
    setting: dict[str, Any]
    setting_name: str
    seed: int
    settings: TrainSettings


@dataclass(frozen=True)
class Plan:
    """All runs of a sweep, and what they share.

    Args:
        out: the folder of the sweep.
        shared: the settings of the first run with the sources and the seed of the whole sweep: what the split and the eval go by.
        axes: as given.
        runs: the seeds of a setting stand together.
        chosen_by: "log_loss", or "accuracy" where the runs minimise different losses.
    """

    out: Path
    shared: TrainSettings
    axes: list[Axis]
    runs: list[Planned]
    chosen_by: str


def axes_from(texts: Sequence[str]) -> list[Axis]:
    """Read `key=value,value,...` of each --sweep.

    >>> axes_from(["seed=0,1", 'lora.targets=all-linear,["q_proj","v_proj"]'])[1].values
    ('all-linear', '["q_proj","v_proj"]')

    Raises:
        SettingsError: if one is no such list, a key stands twice, or is one that all runs share.
    """
    axes: list[Axis] = []
    for text in texts:
        key, equals, values = text.partition("=")
        key = ".".join(part.strip() for part in key.split("."))
        if not equals or not key:
            raise SettingsError(
                "--sweep key=value,value", f"--sweep {text}", "Write for example --sweep learning_rate=1e-5,2e-5."
            )
        if key in _SHARED:
            raise SettingsError(
                "a setting that may differ between the runs of a sweep",
                f"--sweep {key}, which all of them share",
                "Give it once, by its flag or --set.",
            )
        if key in [axis.key for axis in axes]:
            raise SettingsError("each key in one --sweep", f"`{key}` in two", f"Write --sweep {key}=a,b,c.")
        axes.append(Axis(key, tuple(_values(text, values))))
    return axes


def _values(text: str, values: str) -> Iterator[str]:
    """The parts between commas; a comma inside quotes, brackets or braces does not part."""
    pending = ""
    for part in values.split(","):
        pending = f"{pending},{part}" if pending else part
        if not pending.strip():
            raise SettingsError("a value between any two commas", f"--sweep {text}", "Remove the comma too many.")
        if _is_whole(pending):
            yield pending.strip()
            pending = ""
    if pending:
        raise SettingsError("TOML values or bare words", f"--sweep {text}", f"Close what {pending.strip()} opens.")


def _is_whole(text: str) -> bool:
    if not re.search(r"[\"'\[{]", text):
        return True
    try:
        tomllib.loads(f"value = {text}")
    except tomllib.TOMLDecodeError:
        return False
    return True


def make_plan(base: Mapping[str, Any], texts: Sequence[str]) -> Plan:
    """Every combination as the settings of a plain run.

    Args:
        base: the keys of a recipe; its seed is that of the split.
        texts: of each --sweep.

    Raises:
        SettingsError: at the first combination that cannot be meant, with its name; or if two are the same run, or no dev part is there to choose by.
    """
    axes = axes_from(texts)
    varied = [axis for axis in axes if axis.key not in _SEEDS]
    seeds = [axis for axis in axes if axis.key in _SEEDS]
    shared = build(TrainSettings, merge(base, {}, [f"{axis.key}={axis.values[0]}" for axis in varied]))
    if not shared.dev_data and shared.dev_share == 0:
        raise SettingsError(
            "a dev part to choose settings by", "dev_share = 0 and no dev_data", "Give one; eval data choose nothing."
        )
    if shared.stream:
        raise SettingsError(
            "data in memory, which a sweep splits once for all its runs",
            f"stream = {shared.stream}",
            "Sweep over a sample of the data, then train on all of it with what was chosen.",
        )
    out = Path(shared.out)
    planned = []
    for chosen in _products(varied):
        for seeded in _products(seeds):
            planned.append(_planned(base, shared, chosen, seeded))
    names = [one.name.casefold() for one in planned]
    if len(set(names)) < len(names):
        raise SettingsError("runs that differ", "a value that stands twice in a --sweep", "Remove one of the two.")
    unlike = [axis.key for axis in varied if axis.key.partition(".")[0] == "loss" and axis.key not in _SAME_DEV_LOSS]
    return Plan(out, shared, axes, planned, "accuracy" if unlike else "log_loss")


def _products(axes: Sequence[Axis]) -> Iterator[list[str]]:
    for values in itertools.product(*(axis.values for axis in axes)):
        yield [f"{axis.key}={value}" for axis, value in zip(axes, values, strict=True)]


def _planned(base: Mapping[str, Any], shared: TrainSettings, chosen: list[str], seeded: list[str]) -> Planned:
    from rewardsmith.model.trainer_arguments import with_twins

    values, seed_values = _by_key(chosen), _by_key(seeded)
    setting_name, name = _name(values) or "as-set", _name(values | seed_values) or "as-set"
    places = {"out": str(Path(shared.out) / name)}
    if shared.dev_data is None:
        parts = Path(shared.out) / _DATA
        places |= {"data": str(parts / "train.jsonl"), "dev_data": str(parts / "dev.jsonl")}
    gone = {"eval_data"} | ({"dev_share"} if shared.dev_data is None else set())
    kept = {key: value for key, value in base.items() if key not in gone}
    try:
        settings = build(TrainSettings, merge(kept, places, [*chosen, *seeded]))
    except SettingsError as error:
        raise SettingsError(error.needed, f"{error.came} (in the run {name})", error.mend) from error
    # A seed may stand in the trainer table, where it wins.
    return Planned(name, values, setting_name, with_twins(settings).seed, settings)


def _by_key(assignments: Sequence[str]) -> dict[str, Any]:
    return {".".join(path): value for path, value in map(parse_set, assignments)}


def _name(values: Mapping[str, Any]) -> str:
    """A folder's name: `learning_rate=2e-05,seed=1`. Keys in the order of the alphabet, the seed last; what was shortened carries a hash."""
    order = sorted(values, key=lambda key: (key in _SEEDS, key))
    name = ",".join(f"{key}={_word(values[key])}" for key in order)
    return name if len(name) <= _LONGEST_NAME else f"{name[: _LONGEST_NAME - 9]}-{_short_hash(name)}"


def _word(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    word = re.sub(r"[^a-z0-9.+_-]+", "-", str(without_paths(text)).casefold())[:40].rstrip(".")
    return word if word == text else f"{word}-{_short_hash(text)}"


def _short_hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def sweep(
    base: Mapping[str, Any],
    texts: Sequence[str],
    *,
    overwrite: bool = False,
    command: Sequence[str] = (),
    console: Console | None = None,
) -> dict[str, Any]:
    """Run `rewardsmith train --sweep`: the document that is also `out`/sweep.json.

    A run that ends with an error of its own is a row with the reason; an error of the place or of the installation ends the sweep. The same command over an
    interrupted sweep keeps the finished runs and goes on with the others.

    Args:
        base: the keys of a recipe.
        texts: `key=value,value` each.
        overwrite: delete the sweep that stands in `out`.
        command: the words of the command line, for the manifests.
        console: where progress goes; standard error by default.

    Raises:
        SettingsError, DataError, ModelError: before anything is written, at the first combination that cannot be run.
        OutputError: if `out` holds anything but this sweep, unfinished.
        TrainingStopped: if no run came to its end.
    """
    console = console or Console(stderr=True)
    plan = make_plan(base, texts)
    check_output(plan.out, overwrite=overwrite)
    identity = _check(plan, overwrite)
    num_settings = len({one.setting_name for one in plan.runs})
    _say(
        console,
        f"sweep: runs to make: {len(plan.runs)} (settings: {num_settings}, seeds: {len(plan.runs) // num_settings}) -> {plan.out}",
    )
    with _sweep_folder(plan, identity, overwrite=overwrite) as manifest:
        with manifest.until_closed():
            manifest.note(split=_write_split(plan, console))
            records = _run_all(plan, manifest, command, console)
            rows = settings_rows(plan, records)
            if not any(row["num_runs"] for row in rows):
                reasons = "; ".join(f"{name}: {record['reason']}" for name, record in list(records.items())[:3])
                raise TrainingStopped(
                    "at least one run that ends", f"{len(records)} that did not ({reasons})", "Mend these."
                )
            chosen = choose(rows, by=plan.chosen_by)
            manifest.note(rows=rows, chosen=chosen)
            console.print(settings_table(rows, chosen))
            _say(console, f"chosen: {chosen['name']}, {chosen['reason']}", chosen["spread"])
            judged = _judge(plan, chosen, records, console) if plan.shared.eval_data else None
            manifest.close("finished", eval=judged)
    return {"sweep": plan.out.name, **manifest.document}


def _say(console: Console, *lines: str) -> None:
    for line in lines:
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def check_output(out: Path, *, overwrite: bool) -> None:
    """Refuse a folder that may not be written, before anything is read.

    Raises:
        OutputError: if `out` is a file, holds anything but a sweep, or holds a finished one that may not be replaced.
    """
    if out.is_file():
        raise OutputError("a folder for --out", f"the file {out.name}", "Choose another --out.")
    if not out.is_dir() or not any(path.name != ".lock" for path in out.iterdir()):
        return
    found = _earlier(out)
    if found is None:
        raise OutputError(
            "an empty or new folder, or one of an earlier sweep, for --out",
            f"{out}, which holds other things",
            f"Choose another --out; --overwrite deletes only folders with a {SUMMARY} of rewardsmith.",
        )
    if found.document.get("outcome") == "finished" and not overwrite:
        raise OutputError(
            "a sweep to start or to go on with", f"a finished one in {out}", "Choose another --out, or --overwrite."
        )


def _earlier(out: Path) -> Manifest | None:
    """The record of the sweep that stands in a folder."""
    found = Manifest.read(out / SUMMARY)
    return found if found is not None and found.document.get("verb") == "sweep" else None


def _check(plan: Plan, overwrite: bool) -> dict[str, Any]:
    """Judge all runs before the first one: settings, models, and the data under every loss; returns the identity of the sweep."""
    from rewardsmith.model import training, training_data
    from rewardsmith.model.network import read_config, source_folder
    from rewardsmith.model.run_folder import run_identity
    from rewardsmith.model.trainer_arguments import with_twins

    sources: dict[str, str] = {}
    for model in dict.fromkeys(one.settings.model for one in plan.runs):
        sources[model] = source_folder(model)
        read_config(sources[model])
    identities: dict[str, Any] = {}
    for one in plan.runs:
        identities[one.name] = run_identity(with_twins(one.settings), {}, sources[one.settings.model])
        twin = next((n for n, other in identities.items() if n != one.name and other == identities[one.name]), None)
        if twin:
            raise SettingsError(
                "runs that differ",
                f"{twin} and {one.name}, which would train the same",
                "Sweep something else; a name in [trainer] wins over its twin at the root.",
            )
        if overwrite or _report_of(one) is None:
            try:
                training.check_settings(one.settings, overwrite=overwrite)
            except SettingsError as error:
                raise SettingsError(error.needed, f"{error.came} (in the run {one.name})", error.mend) from error
    for loss in {one.settings.loss.model_dump_json(): one.settings.loss for one in plan.runs}.values():
        data = training_data.read_data(plan.shared.model_copy(update={"loss": loss}))
        if plan.chosen_by == "accuracy" and not data.dev_pairs:
            raise DataError(
                "dev pairs, to choose between losses by accuracy",
                f"a dev part that says of no two answers which is better, under the loss {loss.name}",
                "Sweep one loss at a time, or give --dev-data with two answers to a prompt.",
            )
    shared = with_twins(plan.shared)
    contents = {name: getattr(shared, name) for name in ("data", "dev_data", "eval_data")}
    identity = {
        "runs": identities,
        "data": {name: source_identity(source) for name, source in contents.items() if source},
        "split": {"seed": shared.seed, "dev_share": shared.dev_share},
    }
    # As the file will hold it: tuples become lists there.
    return cast(dict[str, Any], json.loads(json.dumps(without_paths(identity))))


@contextlib.contextmanager
def _sweep_folder(plan: Plan, identity: dict[str, Any], *, overwrite: bool) -> Iterator[Manifest]:
    """Hold the folder; yields its record, with what an interrupted sweep had done.

    Raises:
        OutputError: if the folder is in use, or of another sweep.
    """
    try:
        plan.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"to create {plan.out}", error.strerror or str(error), "Choose another --out.") from error
    with folder_lock(plan.out):
        found = _earlier(plan.out)
        if found is not None and overwrite:
            _delete(plan.out, found)
            found = None
        if found is not None and found.document.get("identity") != identity:
            differing = [part for part in identity if found.document.get("identity", {}).get(part) != identity[part]]
            raise OutputError(
                "the runs, data and split of the sweep that stands there",
                f"others ({', '.join(differing)})",
                "Choose another --out, or --overwrite to delete that sweep.",
            )
        done = {} if found is None else found.document.get("runs", {})
        yield Manifest.open(
            plan.out / SUMMARY,
            verb="sweep",
            settings=plan.shared.model_dump(),
            axes={axis.key: without_paths(axis.values) for axis in plan.axes},
            chosen_by=plan.chosen_by,
            identity=identity,
            runs=done,
        )


def _delete(out: Path, found: Manifest) -> None:
    """Delete what an earlier sweep made and nothing else."""
    for name in (_DATA, *found.document.get("identity", {}).get("runs", {})):
        if Path(name).name == name and (out / name).is_dir():
            shutil.rmtree(out / name)
    (out / SUMMARY).unlink()


def _write_split(plan: Plan, console: Console) -> dict[str, Any] | None:
    """Write the rows that all runs train on and those that choose the checkpoint; None where the dev data are given.

    The prompts of the dev part are drawn as a plain run with the seed of the sweep draws them, the share counted in rows. A pair with a fault of content goes to the training rows,
    where each run drops and counts it.
    """
    from rewardsmith.model.trainer_arguments import with_twins

    shared = with_twins(plan.shared)
    if shared.dev_data:
        return None
    reading = io.read(shared.data, skip_bad=shared.skip_bad, allow_negative_margin=shared.loss.allow_negative_margin)
    sound = [row for row in reading.rows if not (isinstance(row, Preference) and content_fault(row))]
    # The split reads nothing of a row but its prompt; a single answer, of a loss of ratings, has one too.
    _, dev = split_by_prompt(cast(list[Preference], sound), shared.dev_share, seed=shared.seed)
    held = {id(row) for row in dev}
    parts: dict[str, list[Row]] = {
        "train": [row for row in reading.rows if id(row) not in held],
        "dev": [row for row in reading.rows if id(row) in held],
    }
    for name, rows in parts.items():
        lines = (json.dumps(as_row(row), ensure_ascii=False) + "\n" for row in rows)
        write_text(plan.out / _DATA / f"{name}.jsonl", "".join(lines))
    facts = {
        name: {"rows": len(rows), "prompts": len({prompt_key(row.prompt) for row in rows})}
        for name, rows in parts.items()
    }
    _say(
        console,
        reading.describe(shared.data),
        f"one split for all runs: {facts['train']['rows']:,} rows to train, {facts['dev']['rows']:,} dev (seed {shared.seed})",
    )
    return {
        "seed": shared.seed,
        "read_as": reading.describe(shared.data),
        "skipped_bad": dict(reading.skipped),
        **facts,
    }


def _run_all(plan: Plan, manifest: Manifest, command: Sequence[str], console: Console) -> dict[str, Record]:
    """Every run in turn, the record on disk after each."""
    records: dict[str, Record] = dict(manifest.document["runs"])
    for number, one in enumerate(plan.runs, start=1):
        before = float(records.get(one.name, {}).get("seconds", 0.0))
        report, started = _report_of(one), time.monotonic()
        _say(console, f"run {number} of {len(plan.runs)}: {one.name}{' is finished and kept' if report else ''}")
        try:
            records[one.name] = _finished(one, report) if report else _run(one, command, console)
        except BaseException:
            records[one.name] = _record(one, "interrupted")
            raise
        finally:
            spent = 0.0 if report else time.monotonic() - started
            records[one.name]["seconds"] = round(before + spent, 1)
            manifest.note(runs=records)
        if records[one.name]["outcome"] == "failed":
            _say(console, f"failed: {records[one.name]['reason']}")
    return records


def _run(one: Planned, command: Sequence[str], console: Console) -> Record:
    try:
        report = runs.train(one.settings, command=command, console=console)
    except (OutputError, MissingExtraError):  # no other run would fare better
        raise
    except RewardsmithError as error:
        return _record(one, "failed") | {"reason": str(error)}
    return _finished(one, report)


def _report_of(one: Planned) -> dict[str, Any] | None:
    """The report of a run that is finished and has these settings and this model; None where there is none."""
    from rewardsmith.model.network import source_folder
    from rewardsmith.model.run_folder import run_identity
    from rewardsmith.model.trainer_arguments import with_twins

    found = Manifest.read(Path(one.settings.out) / FILE_NAME)
    if found is None or found.document.get("outcome") != "finished":
        return None
    # The data are those of the sweep, whose own identity holds them.
    recorded = found.document.get("identity", {})
    wanted = run_identity(with_twins(one.settings), recorded.get("data", {}), source_folder(one.settings.model))
    if recorded != json.loads(json.dumps(wanted)):
        return None
    try:
        return cast(dict[str, Any], json.loads((Path(one.settings.out) / "report.json").read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise OutputError(
            f"the report of the finished run {one.name}", str(error), f"Delete {one.settings.out} to run it again."
        ) from error


def _record(one: Planned, outcome: str) -> Record:
    return {
        "setting": without_paths(one.setting),
        "setting_name": one.setting_name,
        "seed": one.seed,
        "outcome": outcome,
    }


def _finished(one: Planned, report: Mapping[str, Any]) -> Record:
    """The record of a run: the dev part at the checkpoint that it kept."""
    kept = report["training"]["kept_step"]
    point = next((point for point in report["dev_points"] if point["step"] == kept), None)
    if point is None:
        reason = f"no dev numbers at the kept step {kept}; was no checkpoint saved there?"
        return _record(one, "failed") | {"reason": reason}
    # Of the saved model, in float32, over pairs: the same ones whatever the loss reads. Ratings of single answers give none.
    accuracy = report["overfitting"].get("dev", {}).get("value")
    dev = {"dev_log_loss": point["log_loss"], "dev_accuracy": accuracy, "kept_step": kept}
    return _record(one, "finished") | dev


def spread(values: Sequence[float]) -> dict[str, float | int | None]:
    """Mean, standard deviation (n - 1), least and largest of one number over runs; the deviation of one run is not known: None.

    >>> spread([1.0, 2.0, 3.0])["sd"]
    1.0
    """
    array = np.asarray(values, dtype=np.float64)
    return {
        "mean": float(array.mean()),
        "sd": float(array.std(ddof=1)) if len(array) > 1 else None,
        "min": float(array.min()),
        "max": float(array.max()),
        "n": len(array),
    }


def settings_rows(plan: Plan, records: Mapping[str, Record]) -> list[dict[str, Any]]:
    """One row a setting: its runs and their spread; `dev_log_loss` and `dev_accuracy` are None where no run of it is finished or has one."""
    rows = []
    for name in dict.fromkeys(one.setting_name for one in plan.runs):
        own = {one.name: records[one.name] for one in plan.runs if one.setting_name == name}
        done = {run: record for run, record in own.items() if record["outcome"] == "finished"}
        rows.append(
            {
                "name": name,
                "setting": next(iter(own.values()))["setting"],
                "runs": list(done),
                "seeds": [record["seed"] for record in done.values()],
                "num_runs": len(done),
                "dev_log_loss": _spread_of("dev_log_loss", done),
                "dev_accuracy": _spread_of("dev_accuracy", done),
                "seconds": round(sum(record["seconds"] for record in own.values()), 1),
                "failed": {run: record["reason"] for run, record in own.items() if run not in done},
            }
        )
    return rows


def _spread_of(key: str, done: Mapping[str, Record]) -> dict[str, float | int | None] | None:
    values = [record[key] for record in done.values()]
    return None if not values or None in values else spread(values)


def choose(rows: Sequence[Mapping[str, Any]], *, by: str) -> dict[str, Any]:
    """The setting of the lowest mean dev log-loss, or the highest mean dev accuracy; the earlier one on a tie.

    A setting of which a run failed is chosen only where every setting lost one: a mean over fewer seeds may be luck.

    Args:
        rows: of `settings_rows`, at least one of them with a finished run.
        by: "log_loss" or "accuracy".

    Returns:
        `name`, `runs`, the `reason`, and in `spread` one line on what the differences to the others are worth.
    """
    done = [row for row in rows if row["num_runs"]]
    whole = [row for row in done if not row["failed"]]
    candidates = whole or done
    sign = 1 if by == "log_loss" else -1
    best = min(candidates, key=lambda row: sign * row[f"dev_{by}"]["mean"])
    mean, word = best[f"dev_{by}"]["mean"], by.replace("_", "-")
    extreme = "lowest" if by == "log_loss" else "highest"
    reason = f"the {extreme} mean dev {word} ({mean:.4f}, {_count(best['num_runs'])})"
    if by == "accuracy":
        reason += "; log-losses of different losses cannot be compared"
    if len(candidates) < len(done):
        left_out = [row["name"] for row in done if row["failed"]]
        reason += f"; no candidate, for a run of it failed: {', '.join(left_out)}"
    others = [row for row in candidates if row is not best]
    return {
        "name": best["name"],
        "runs": best["runs"],
        "by": f"dev_{by}",
        "reason": reason,
        "spread": _worth(best, others, f"dev_{by}"),
    }


def _worth(best: Mapping[str, Any], others: Sequence[Mapping[str, Any]], key: str) -> str:
    """One line: which settings the seeds do not tell apart from the chosen one."""
    if not others:
        return "there was no other setting to choose"
    if best[key]["sd"] is None or any(row[key]["sd"] is None for row in others):
        return "a setting was run once: how far seeds alone move the number is not known, nor what the differences are worth"
    near = []
    for row in others:
        difference, sd = abs(row[key]["mean"] - best[key]["mean"]), max(best[key]["sd"], row[key]["sd"])
        if difference <= sd:
            near.append(f"{row['name']} (difference {difference:.4f}, spread {sd:.4f})")
    if not near:
        return "every difference to it is larger than the spread over seeds (the larger of the two standard deviations)"
    return f"not told apart from it, the difference being no larger than the spread over seeds: {'; '.join(near)}"


def _count(number: int) -> str:
    return "1 run" if number == 1 else f"{number} runs"


def _judge(plan: Plan, chosen: Mapping[str, Any], records: Mapping[str, Record], console: Console) -> dict[str, Any]:
    """Score the eval pairs with the runs of the chosen setting: eval.json and pairs.jsonl in each run folder."""
    from rewardsmith.model import training_data
    from rewardsmith.model.reward_model import RewardModel

    by_name = {one.name: one for one in plan.runs}
    # Read as a run reads them: pairs that were trained on, or that chose the checkpoint, are no test.
    first = by_name[chosen["runs"][0]].settings
    data = training_data.read_data(first.model_copy(update={"eval_data": plan.shared.eval_data}))
    for note in (note for note in data.notes if note.startswith("warning")):
        _say(console, note)
    documents: dict[str, dict[str, Any]] = {}
    for name in chosen["runs"]:
        settings = by_name[name].settings
        model = RewardModel.load(settings.out, ScoringSettings(device=settings.device))
        found = evaluate(model, data.eval, temperature=model.contract.temperature, seed=plan.shared.seed)
        documents[name] = found.document
        write_json(Path(settings.out) / "eval.json", {"data": data.facts["eval_data"], **found.document})
        runs.write_pairs(found, Path(settings.out) / "pairs.jsonl")
    judged = {
        "data": data.facts["eval_data"],
        "accuracy": {name: document["accuracy"] for name, document in documents.items()},
        "spread": spread([document["accuracy"]["value"] for document in documents.values()]),
        "baselines": next(iter(documents.values()))["baselines"],
    }
    console.print(eval_table(judged))
    return judged


def settings_table(rows: Sequence[Mapping[str, Any]], chosen: Mapping[str, Any]) -> Table:
    """One row a setting, the chosen one marked; a failed run with its reason below its setting."""
    table = Table(title="settings by the dev part, over seeds", title_justify="left")
    table.add_column("setting", overflow="fold")
    for column in ("runs", "dev log-loss\nmin..max", "dev accuracy\nmin..max", "seconds"):
        table.add_column(column, justify="right", no_wrap=True)
    for row in rows:
        mark = "chosen: " if row["name"] == chosen["name"] else ""
        table.add_row(
            f"{mark}{row['name']}",
            str(row["num_runs"]),
            _over_seeds(row["dev_log_loss"], 4),
            _over_seeds(row["dev_accuracy"], 3),
            f"{row['seconds']:,.0f}",
            style="bold" if mark else "",
        )
        for run, reason in row["failed"].items():
            table.add_row(f"{run} failed: {reason}".replace("[", r"\["), "", "", "", "")
    return table


def _over_seeds(found: Mapping[str, Any] | None, digits: int) -> str:
    if found is None:
        return "-"
    return f"{_mean_and_sd(found, digits)}\n{found['min']:.{digits}f}..{found['max']:.{digits}f}"


def _mean_and_sd(found: Mapping[str, Any], digits: int) -> str:
    sd = "(1 run)" if found["sd"] is None else f"sd {found['sd']:.{digits}f}"
    return f"{found['mean']:.{digits}f} {sd}"


def eval_table(judged: Mapping[str, Any]) -> Table:
    """Eval accuracy of each run of the chosen setting with its interval, their spread, and the rules that read nothing."""
    table = Table(title="held-out pairs, scored once, by the runs of the chosen setting", title_justify="left")
    table.add_column("accuracy (ties one half)")
    for column in ("value", "95 % interval", "n"):
        table.add_column(column, justify="right")

    def add(name: str, document: Mapping[str, Any]) -> None:
        estimate = Estimate(**document)
        interval = rf"\[{estimate.low:.3f}, {estimate.high:.3f}]"
        table.add_row(name, f"{estimate.value:.3f}", interval, f"{estimate.n:,}")

    for name, document in judged["accuracy"].items():
        add(name, document)
    over = judged["spread"]
    table.add_row(
        f"mean over seeds ({_count(over['n'])})", _mean_and_sd(over, 3), f"{over['min']:.3f}..{over['max']:.3f}", ""
    )
    table.add_section()
    for name, document in judged["baselines"].items():
        add(f"baseline: {name}", document)
    return table
