"""`rewardsmith demo`: the whole path once, on the embedded set or on one's own pairs."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import typer
from rich.console import Console

from rewardsmith import runs
from rewardsmith.config import TrainSettings, build, merge
from rewardsmith.data.embedded import embedded_preferences
from rewardsmith.data.schema import Preference, as_row
from rewardsmith.data.split import split_by_prompt
from rewardsmith.errors import MissingExtraError, SettingsError
from rewardsmith.plots import accuracy_bars
from rewardsmith.storage import refuse_inside, write_text

HELD_OUT_SHARE = 0.25
# The learning rate of configs/minilm-rmb.toml; three epochs, because a run of four kept the third by its dev part.
RECIPE: dict[str, Any] = {
    "pooling": "mean",
    "max_length": 256,
    "learning_rate": 1e-4,
    "epochs": 3,
    "batch_size": 16,
    "dev_share": 0.1,
}


class Question(NamedTuple):
    """A prompt and two answers to compare."""

    prompt: str
    answer_a: str
    answer_b: str


_EXAMPLE = Question(
    "My houseplant has yellow leaves. What should I check first?",
    "Check the soil first: if it is still wet a few days after watering, let it dry out, because too much water is the usual cause.",
    "Wow, what an amazing plant lover you are! Plants are truly wonderful, and so are you. Every leaf tells a story.",
)


def question_from(prompt: str | None, answer_a: str | None, answer_b: str | None) -> Question | None:
    """The question of the flags: all three or none.

    Raises:
        SettingsError: if only some are given.
    """
    given = (prompt, answer_a, answer_b)
    if all(text is None for text in given):
        return None
    if any(text is None for text in given):
        raise SettingsError("--prompt, --answer-a and --answer-b together", "only some of them", "Give all three.")
    return Question(*(str(text) for text in given))


def run(
    flags: Mapping[str, Any],
    *,
    data: str | None,
    sets: Sequence[str],
    question: Question | None,
    overwrite: bool,
    command: Sequence[str],
    console: Console,
) -> dict[str, Any]:
    """Train, judge on held-out prompts, draw, and score two answers; the document of `demo --json`."""
    from rewardsmith.model.training import check_settings

    merged = merge(RECIPE, flags, sets)
    out = Path(merged["out"])
    folder = out.with_name(out.name + "-data")
    sources = {"data": str(folder / "train.jsonl"), "eval_data": str(folder / "eval.jsonl")}
    settings = build(TrainSettings, {**merged, **sources})
    check_settings(settings, overwrite=overwrite)
    if data is not None:
        refuse_inside(folder, data)
    pairs = embedded_preferences() if data is None else runs.read_pairs(data)
    train, held_out = split_by_prompt(pairs, HELD_OUT_SHARE, seed=settings.seed)
    _write(train, folder / "train.jsonl")
    _write(held_out, folder / "eval.jsonl")
    console.print(
        f"{len(train):,} pairs to train on, {len(held_out):,} pairs of other prompts to judge by: {folder}",
        highlight=False,
    )
    report = runs.train(settings, overwrite=overwrite, command=command, console=console)
    judged = report["eval"]
    better = {name: document["low"] > 0 for name, document in judged["over_baselines"].items()}
    verdict = "yes" if all(better.values()) else f"not {', '.join(name for name, ok in better.items() if not ok)}"
    console.print(f"better than every content-blind rule, 95 % interval above 0: {verdict}", highlight=False)
    plot = _draw(judged, out / "demo.png", console)
    scored = compare_answers(out, question or _ask(console))
    return {"verb": "demo", "beats_baselines": better, "plot": plot, "answers": scored, **report}


def _write(pairs: Sequence[Preference], path: Path) -> None:
    write_text(path, "".join(json.dumps(as_row(pair), ensure_ascii=False) + "\n" for pair in pairs))


def _draw(judged: Mapping[str, Any], path: Path, console: Console) -> str | None:
    estimates = {"reward model": judged["accuracy"], **judged["baselines"]}
    try:
        accuracy_bars(estimates, "accuracy on held-out prompts, 95 % intervals", path)
    except MissingExtraError as error:
        console.print(f"no plot: {error}", highlight=False, markup=False)
        return None
    console.print(f"plot: {path}", highlight=False)
    return path.name


def _ask(console: Console) -> Question:
    """Two answers of the user's choice; an example where nobody is there to ask."""
    if not sys.stdin.isatty():
        return _EXAMPLE
    console.print("\nNow two answers of your own (Enter takes the example):")
    return Question(
        typer.prompt("prompt", default=_EXAMPLE.prompt, err=True),
        typer.prompt("answer A", default=_EXAMPLE.answer_a, err=True),
        typer.prompt("answer B", default=_EXAMPLE.answer_b, err=True),
    )


def compare_answers(run_folder: Path, question: Question) -> dict[str, Any]:
    """Raw scores of two answers, and the Bradley-Terry probability that A is the better one, at the model's temperature where it has one."""
    from rewardsmith.metrics import win_probabilities
    from rewardsmith.model.reward_model import RewardModel

    model = RewardModel.load(run_folder)
    scores = model.score([(question.prompt, question.answer_a), (question.prompt, question.answer_b)])
    temperature = model.contract.temperature
    margin = scores[:1].astype(float) - scores[1:].astype(float)
    return {
        **question._asdict(),
        "score_a": float(scores[0]),
        "score_b": float(scores[1]),
        "probability_a": float(win_probabilities(margin, temperature or 1.0)[0]),
        "temperature": temperature,
    }
