"""A whole training run: train, then judge the kept model once on the held-out pairs, and leave the evidence in the run folder.

Beside `cli`, the only module that joins the torch wing and the evaluation wing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from rewardsmith import metrics
from rewardsmith.config import ScoringSettings, TrainSettings, build, read_recipe
from rewardsmith.data import io
from rewardsmith.data.schema import Preference, prompt_key
from rewardsmith.errors import DataError, MissingExtraError
from rewardsmith.evaluation.overfitting import run_gap
from rewardsmith.evaluation.pairwise import Evaluation, evaluate, score_pairs
from rewardsmith.evaluation.report import counts_line, evaluation_table, overfitting_table
from rewardsmith.evaluation.temperature import fit_temperature
from rewardsmith.manifest import timed
from rewardsmith.plots import training_curves
from rewardsmith.stats import Estimate, Floats, cluster_codes
from rewardsmith.storage import write_json

if TYPE_CHECKING:
    from rewardsmith.model.training import Trained

LEAST_PROMPTS = 30
"""Of the dev part, for a temperature."""


def read_pairs(source: str, *, skip_bad: bool = False) -> list[Preference]:
    """The preference pairs in a file, a saved dataset folder or a Hugging Face dataset.

    Raises:
        DataError: (or RowError) saying which row, which field, and how to mend it.
    """
    return io.preferences(io.read(source, skip_bad=skip_bad).rows, source)


def train(
    settings: TrainSettings | str | Path | Mapping[str, Any],
    *,
    overwrite: bool = False,
    command: Sequence[str] = (),
    console: Console | None = None,
    day: str | None = None,
) -> dict[str, Any]:
    """Run `rewardsmith train`: the report that is also written to `out`/report.json.

    Args:
        settings: a recipe: settings, a dictionary of them, or the path of a TOML or YAML file.
        overwrite: delete a run that stands in `out`.
        command: the words of the command line, for the manifest.
        console: where progress goes; standard error by default.
        day: of a run that is to be repeated: the date that a chat template which writes it is to read.

    Raises:
        RewardsmithError: of the kind that says what was wrong; nothing half-written is left behind.
    """
    from rewardsmith.model import training  # loaded here: it imports torch

    console = console or Console(stderr=True)
    if isinstance(settings, str | Path):
        settings = read_recipe(Path(settings))
    if not isinstance(settings, TrainSettings):
        settings = build(TrainSettings, settings)
    out = Path(settings.out)
    with training.training_run(settings, overwrite=overwrite, command=command, console=console, day=day) as trained:
        if trained is None:  # one of several processes that train, and not the first: it has nothing to judge
            return {}
        with timed(trained.timings, "judging"):
            report = judge(settings, trained, console)
        evaluation: Evaluation | None = report.pop("evaluation", None)
        if evaluation is not None:
            report["eval"] = evaluation.document
            write_pairs(evaluation, out / "pairs.jsonl")
        report["curves"] = draw_curves(trained, report["overfitting"], out / "curves.png", console)
        write_json(out / "report.json", report)
        training.finish(trained, report["overfitting"])
    return report


def judge(settings: TrainSettings, trained: Trained, console: Console) -> dict[str, Any]:
    """Score dev and eval pairs with the saved model, in float32, and print the tables."""
    from rewardsmith.model.reward_model import RewardModel

    scoring = ScoringSettings(device=settings.device)
    model = RewardModel.load(trained.model_folder, scoring)
    overfitting: dict[str, Any] = {}
    if trained.train_accuracy is not None:
        overfitting["train"] = trained.train_accuracy.as_dict()
    calibration: dict[str, Any] = {"temperature": None, "reason": "no dev part"}
    if trained.data.dev_pairs:
        dev = score_pairs(model, trained.data.dev_pairs)
        clusters = cluster_codes([prompt_key(pair.prompt) for pair in dev.pairs])
        overfitting["dev"] = metrics.accuracy(dev.margins, clusters).as_dict()
        decided = np.array([not pair.tie for pair in dev.pairs])
        calibration = calibrate_on_dev(trained.model_folder, dev.margins[decided], cluster_codes(clusters[decided]))
        console.print(calibration_line(calibration), highlight=False, markup=False)
    report: dict[str, Any] = {
        "verb": "train",
        "model_folder": trained.model_folder.name,
        "training": trained.facts,
        "counts": {
            name: facts[kind]
            for name, facts in trained.data.facts.items()
            for kind in ("pairs", "lists", "ratings")
            if kind in facts
        },
        "dropped": trained.data.dropped.as_dict(),
        "dev_points": [vars(point) for point in trained.dev_points],
        "calibration": calibration,
        "history": [line for line in trained.history if "loss" in line],
        "overfitting": overfitting,
        "eval": None,
    }
    if trained.data.eval:
        temperature = calibration["temperature"] and calibration["temperature"]["value"]
        evaluation = evaluate(model, trained.data.eval, temperature=temperature, seed=settings.seed)
        overfitting["eval"] = evaluation.document["accuracy"]
        report["evaluation"] = evaluation
        console.print(evaluation_table(evaluation.document, "held-out pairs, scored once"))
        console.print(counts_line(evaluation.document), highlight=False, markup=False)
    console.print(overfitting_table(overfitting))
    gap = run_gap(overfitting)
    if gap is not None:
        report["overfitting_gap"] = gap.accuracy.as_dict()
        console.print(gap.reading(), highlight=False, markup=False, soft_wrap=True)
    return report


def calibrate_on_dev(model_folder: Path, margins: Floats, clusters: NDArray[np.int64]) -> dict[str, Any]:
    """Fit the temperature on the dev part and keep it in the model folder: {"temperature": Estimate, ...}, or None with the reason.

    The dev part has chosen the checkpoint, which makes it look a little better than other pairs would; `rewardsmith calibrate` on fresh pairs replaces
    what it says.
    """
    from rewardsmith.model.artefact import store_calibration

    if len(np.unique(clusters)) < LEAST_PROMPTS:
        return {
            "temperature": None,
            "reason": f"{len(np.unique(clusters))} prompts in the dev part, of {LEAST_PROMPTS} needed",
        }
    try:
        fitted = fit_temperature(margins, clusters)
    except DataError as error:
        return {"temperature": None, "reason": str(error)}
    document = {"temperature": fitted.estimate.as_dict(), "fitted_on": "the dev part, which also chose the checkpoint"}
    store_calibration(model_folder, fitted.value, document)
    return document


def calibration_line(calibration: Mapping[str, Any]) -> str:
    """What became of the temperature, for people."""
    if calibration["temperature"] is None:
        return f"no temperature was fitted: {calibration['reason']}"
    return f"temperature of its probabilities, from the dev part: {Estimate(**calibration['temperature'])}"


def write_pairs(evaluation: Evaluation, path: Path) -> None:
    """The pairs with their scores, one JSON row each, in the order of the data."""
    io.write_rows(path, evaluation.rows())


def draw_curves(trained: Trained, final: dict[str, Any], path: Path, console: Console) -> str | None:
    """Draw curves.png; without matplotlib say so, for a missing plot is no reason to lose a run."""
    points = [vars(point) for point in trained.dev_points]
    try:
        training_curves(trained.history, points, trained.kept_step, final, path)
    except MissingExtraError as error:
        console.print(f"no curves.png: {error}", highlight=False, markup=False)
        return None
    return path.name
