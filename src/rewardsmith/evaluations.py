"""`rewardsmith evaluate`: scores, words and the learning curve joined into one document and its folder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from rewardsmith import runs
from rewardsmith.data import io
from rewardsmith.data.schema import Preference
from rewardsmith.evaluation import benchmarks
from rewardsmith.evaluation.learning import learning_curve, learning_table
from rewardsmith.evaluation.occlusion import choose
from rewardsmith.evaluation.pairwise import Evaluation, evaluate
from rewardsmith.evaluation.report import counts_line, evaluation_table, hardest_table, power_line, slices_table
from rewardsmith.evaluation.token_view import attribute_lowest
from rewardsmith.loading import Running, Source, described, papers, read_labelled
from rewardsmith.manifest import package_versions
from rewardsmith.storage import atomic_folder, write_json

if TYPE_CHECKING:
    from rewardsmith.model.trainable import TrainableRun


@dataclass(frozen=True)
class Curve:
    """A learning curve that is asked for.

    Args:
        train_data: what the run was trained on.
        dev_data: the run's dev data, where it had any.
        base_model: what the run started from, where its name leads nowhere.
        shares: of the training pairs, the last one 1.
        repeats: trainings of each share but the last.
    """

    train_data: str
    dev_data: str | None
    base_model: str | None
    shares: Sequence[float]
    repeats: int


def on_pairs(
    model: str,
    data: str,
    out: Path | None,
    *,
    by: Sequence[str] | None,
    attributions: int,
    curve: Curve | None,
    run: Running,
    skip_bad: bool,
    quiet: bool,
    console: Console,
) -> dict[str, Any]:
    """Judge a model on labelled pairs, print the tables, and write report.json and pairs.jsonl into `out`.

    Args:
        model: a MODEL argument.
        data: labelled pairs.
        out: a folder that may be written; None for none.
        by: metadata columns to slice by.
        attributions: pairs of lowest margin whose scores are shared out among their words.
        curve: a learning curve to train; None for none.
        run: how the model runs.
        skip_bad: count malformed rows instead of stopping.
        quiet: print no tables.
        console: for people.

    Raises:
        RewardsmithError: of the kind that says what was wrong.
    """
    facts, pairs = read_labelled(data, skip_bad=skip_bad, console=console)
    # Whether the data are the run's is said before anything takes minutes.
    recipe = None if curve is None else _recipe(model, curve, run)
    source = run.load(model)
    found = evaluate(
        source.scorer,
        pairs,
        by=by,
        temperature=source.temperature,
        seed=run.seed,
        swap_tolerance=source.tolerance,
    )
    if attributions:
        found = _with_attributions(found, source, attributions, console)
    if recipe is not None and curve is not None:
        found.document["learning_curve"] = _learning_curve(recipe, source, pairs, curve, run.seed, console)
    document = {
        "verb": "evaluate",
        "model": described(source),
        **papers(facts, run.seed),
        **source.precision,
        **found.document,
    }
    if out is not None:
        with atomic_folder(out) as folder:
            write_json(folder / "report.json", document)
            runs.write_pairs(found, folder / "pairs.jsonl")
    if not quiet:
        console.print(evaluation_table(document, f"{source.name} on {facts['source']}", by=by or ()))
        for table in (slices_table(document), hardest_table(document, found.rows())):
            if table is not None:
                console.print(table)
        if curve is not None:
            console.print(learning_table(document["learning_curve"]))
    console.print(counts_line(document), highlight=False, markup=False)
    console.print(power_line(document), highlight=False, markup=False)
    if curve is not None:
        console.print(document["learning_curve"]["reading"], highlight=False, markup=False, soft_wrap=True)
    return document


def on_benchmark(
    name: str,
    model: str,
    data: str,
    out: Path | None,
    *,
    run: Running,
    skip_bad: bool,
    quiet: bool,
    console: Console,
) -> dict[str, Any]:
    """One table of scores, judged as a benchmark's authors do and as we do; report.json and items.jsonl go into `out`.

    Raises:
        SettingsError: at an unknown benchmark.
        RewardsmithError: of the kind that says what was wrong.
    """
    benchmarks.named(name)  # an unknown name is said before a model is loaded
    source = run.load(model)
    found = benchmarks.judge(name, source.scorer, data, seed=run.seed, skip_bad=skip_bad)
    document = {
        "verb": "evaluate",
        "model": described(source),
        **source.precision,
        "seed": run.seed,
        "versions": package_versions(),
        "benchmark": found.document,
    }
    if out is not None:
        with atomic_folder(out) as folder:
            write_json(folder / "report.json", document)
            io.write_rows(folder / "items.jsonl", found.rows)
    if not quiet:
        console.print(benchmarks.benchmark_table(found.document, f"{source.name} on {name}"))
    return document


def _recipe(model: str, curve: Curve, run: Running) -> TrainableRun:
    """The run's recipe, ready to be followed again."""
    from rewardsmith.model.trainable import TrainableRun  # loaded here: it imports torch

    return TrainableRun.open(
        model, data=curve.train_data, dev_data=curve.dev_data, model=curve.base_model, scoring=run.settings
    )


def _with_attributions(found: Evaluation, source: Source, number: int, console: Console) -> Evaluation:
    """Which words moved the scores of the pairs of lowest margin."""
    method, reason = choose(source.scorer)
    console.print(f"words: {reason}", highlight=False, markup=False, soft_wrap=True)
    number = min(number, found.document["num_pairs"])
    with console.status("which words moved the scores") as status:
        shared = attribute_lowest(
            method, found.scores, number, on_pair=lambda done: status.update(f"words of pair {done} of {number}")
        )
    return replace(found, attributions=shared)


def _learning_curve(
    recipe: TrainableRun, source: Source, pairs: Sequence[Preference], curve: Curve, seed: int, console: Console
) -> dict[str, Any]:
    """The run's recipe on shares of its data, the run itself for the whole."""
    return learning_curve(
        recipe,
        pairs,
        shares=curve.shares,
        repeats=curve.repeats,
        whole=recipe.whole(source.scorer),
        seed=seed,
        progress=lambda line: console.print(line, highlight=False, markup=False),
    )
