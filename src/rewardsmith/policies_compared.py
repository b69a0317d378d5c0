"""`rewardsmith winrate`: the answers of two policies, read or drawn, judged by one scorer or several, joined into one document and its folder."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from rewardsmith.auditing.outliers import LEVEL, Detector, load_detector
from rewardsmith.data import io
from rewardsmith.data.schema import Pair, Prompt, Single, as_row
from rewardsmith.data.sources import source_identity, source_name
from rewardsmith.errors import ContractError, MissingExtraError, SettingsError
from rewardsmith.evaluation.slices import metadata_columns
from rewardsmith.functions import is_function
from rewardsmith.loading import Running, Source, described, papers
from rewardsmith.plots import margins_histogram
from rewardsmith.remote import is_url
from rewardsmith.scores import Features, Scorer
from rewardsmith.stats import Estimate
from rewardsmith.storage import atomic_folder, write_json
from rewardsmith.use.answers_matched import (
    MatchedAnswers,
    draw_answers,
    match_answers,
    read_answers,
    read_prompts_with_columns,
)
from rewardsmith.use.judges import agreements
from rewardsmith.use.win_rates import WinRates, outside_domain, win_rates, win_rates_table

REPORT, COMPARISONS, MARGINS = "report.json", "comparisons.jsonl", "margins.png"


@dataclass(frozen=True)
class AnswerFiles:
    """Two files of answers.

    Args:
        a: of the policy A.
        b: of the policy B.
    """

    a: str
    b: str


@dataclass(frozen=True)
class Drawing:
    """Two policies that are to answer the prompts of a source.

    Args:
        prompts: rows of any kind.
        policy_a: a folder, a Hugging Face name, a GGUF file or `smollm2`.
        policy_b: likewise.
        num_answers: of each policy to each prompt.
        max_new_tokens: where an answer is cut.
        temperature: of the softmax.
    """

    prompts: str
    policy_a: str
    policy_b: str
    num_answers: int
    max_new_tokens: int
    temperature: float


@dataclass(frozen=True)
class Implicit:
    """A policy that DPO has trained, whose own reward is asked for.

    Args:
        policy: that was trained.
        reference: what it was trained from.
        beta: of the training.
    """

    policy: str
    reference: str
    beta: float


@dataclass(frozen=True)
class _Answers:
    """The matched answers, what documents say of where they came from, and what is to be kept of them.

    Args:
        matched: by prompt.
        facts: of the data.
        warnings: of how they came about.
        drawn: rows of A and of B, where they were drawn.
    """

    matched: MatchedAnswers
    facts: dict[str, Any]
    warnings: list[str]
    drawn: tuple[list[Single], list[Single]] | None


@dataclass(frozen=True)
class _Judge:
    """One scorer with its verdict."""

    name: str
    kind: str
    rates: WinRates

    def as_dict(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "kind": self.kind,
            "win_rate": self.rates.win_rate.as_dict(),
            "length_controlled_win_rate": self.rates.length_controlled.win_rate.as_dict(),
            "ties": self.rates.ties.as_dict(),
            "mean_margin": self.rates.mean_margin.as_dict(),
            "p_value": self.rates.p_value,
            "winner": self.rates.winner,
            "truncated": self.rates.comparisons.truncated,
        }


def run(
    model: str,
    answers: AnswerFiles | Drawing,
    out: Path | None,
    *,
    by: Sequence[str] | None,
    also: Sequence[str],
    domain: str | None,
    implicit: Implicit | None,
    run: Running,
    skip_bad: bool,
    quiet: bool,
    console: Console,
) -> dict[str, Any]:
    """Compare two policies, print the tables, and write report.json, comparisons.jsonl and margins.png into `out`.

    Args:
        model: a MODEL argument: the judge.
        answers: of the policies, or how to draw them.
        out: a folder that may be written; None for none.
        by: metadata columns of slices.
        also: further judges.
        domain: a folder of a detector that `audit --against` has saved; None for none.
        implicit: a policy whose implicit reward judges, too.
        run: how models run.
        skip_bad: count malformed rows instead of stopping.
        quiet: print no tables.
        console: for people.

    Raises:
        RewardsmithError: of the kind that says what was wrong.
    """
    if implicit is not None and implicit.policy == implicit.reference:
        came = f"{implicit.policy} twice"
        raise SettingsError("a policy and the reference that it was trained from", came, "Give the reference.")
    detector = None if domain is None else load_detector(Path(domain), _Unmade)
    files = _read(answers, skip_bad=skip_bad) if isinstance(answers, AnswerFiles) else None
    skipped: Counter[str] = Counter()
    prompts = (
        None if isinstance(answers, AnswerFiles) else _read_prompts(answers, by, skip_bad=skip_bad, skipped=skipped)
    )
    if files is not None:
        metadata_columns(files.matched.as_preferences(), by)  # an unknown column is said before a model is loaded
    policies = () if isinstance(answers, AnswerFiles) else (answers.policy_a, answers.policy_b)
    _check_there(*policies, *(() if implicit is None else (implicit.policy, implicit.reference)))
    # Whatever judges is loaded before a policy answers, which takes minutes.
    sources = [run.load(name) for name in (model, *also)]
    if detector is not None:
        detector = _with_features(detector, model, sources[0], run)
    if isinstance(answers, Drawing):
        assert prompts is not None
        found = _draw(answers, prompts, run, skipped=skipped, console=console)
    else:
        assert files is not None
        found = files
    judges = [
        _judge(name, "reward model", one.scorer, one.temperature, found, by, run.seed, console)
        for name, one in zip(_told_apart([one.name for one in sources]), sources, strict=True)
    ]
    if implicit is not None:
        judges.append(_implicit(implicit, found, by, run, console))
    main = judges[0].rates
    document: dict[str, Any] = {
        "verb": "winrate",
        "model": described(sources[0]),
        **papers(found.facts, run.seed),
        **sources[0].precision,
        "temperature": sources[0].temperature,
        **main.as_dict(),
    }
    document["warnings"] += found.warnings
    if detector is not None:
        outside = outside_domain(detector, main, level=LEVEL, seed=run.seed)
        document["domain"] = outside.as_dict()
        document["warnings"] += outside.warnings
    if implicit is not None:
        names = {"policy": Path(implicit.policy).name, "reference": Path(implicit.reference).name}
        document["implicit"] = {**names, "beta": implicit.beta, "end_token": True, **judges[-1].as_dict()}
    if len(judges) > 1:
        document["agreement"] = _agreement(judges, run.seed)
        further = zip(sources[1:], judges[1:], strict=False)
        document["also"] = [{**described(one), **one.precision, "judge": judge.name} for one, judge in further]
    if out is not None:
        _write(out, document, main, found, console)
    if not quiet:
        console.print(win_rates_table(document, f"A against B, judged by {sources[0].name}", by=by or ()))
        if len(judges) > 1:
            console.print(_judges_table(document["agreement"]))
    for line in document["warnings"]:
        console.print(f"warning: {line}", highlight=False, markup=False, soft_wrap=True)
    return document


def _read(files: AnswerFiles, *, skip_bad: bool) -> _Answers:
    facts: dict[str, Any] = {}
    sides = []
    for side, source in (("a", files.a), ("b", files.b)):
        rows, skipped = read_answers(source, skip_bad=skip_bad)
        sides.append(rows)
        facts[side] = {
            "source": source_name(source),
            "sha256": source_identity(source),
            "rows": len(rows),
            "skipped_bad": skipped,
        }
    return _Answers(match_answers(*sides), facts, [], None)


def _read_prompts(
    drawing: Drawing, by: Sequence[str] | None, *, skip_bad: bool, skipped: Counter[str]
) -> dict[str, tuple[Prompt, Mapping[str, Any]]]:
    prompts = read_prompts_with_columns(drawing.prompts, skip_bad=skip_bad, skipped=skipped)
    known = sorted({name for _, columns in prompts.values() for name in columns})
    if missing := [name for name in by or () if name not in known]:
        raise SettingsError(f"--by of columns of the prompts: {known}", f"{missing}", "Check the name.")
    return prompts


def _check_there(*policies: str) -> None:
    """Look for language models that are loaded only later.

    Raises:
        ModelError: if one is not there.
    """
    if policies:
        from rewardsmith.model.network import read_config, source_folder  # loaded here: it imports torch

        for name in policies:
            read_config(source_folder(name))


def _draw(
    drawing: Drawing,
    prompts: Mapping[str, tuple[Prompt, Mapping[str, Any]]],
    run: Running,
    *,
    skipped: Mapping[str, int],
    console: Console,
) -> _Answers:
    """Both policies answer, one after the other, by random numbers of their own."""
    from rewardsmith.model.policy import Policy  # loaded here: it imports torch
    from rewardsmith.model.precision import prepare_process

    prepare_process(threads=run.threads, seed=run.seed)
    facts: dict[str, Any] = {
        "source": source_name(drawing.prompts),
        "sha256": source_identity(drawing.prompts),
        "num_answers": drawing.num_answers,
        "max_new_tokens": drawing.max_new_tokens,
        "temperature": drawing.temperature,
        "skipped_bad": dict(skipped),
    }
    sides: list[Any] = []
    warnings = [f"malformed prompts left out, by field: {dict(skipped)}"] if skipped else []
    for i, (side, name) in enumerate((("a", drawing.policy_a), ("b", drawing.policy_b))):
        with console.status(f"{side.upper()} answers") as status:

            def tell(done: int, total: int, side: str = side) -> None:
                status.update(f"{side.upper()}: {done:,} of {total:,} answers drawn")

            policy = Policy(
                name,
                temperature=drawing.temperature,
                max_new_tokens=drawing.max_new_tokens,
                settings=run.settings,
                on_answers=tell,
            )
            drawn = draw_answers(policy, prompts, num_answers=drawing.num_answers, seed=2 * run.seed + i)
        sides.append(drawn.rows)
        facts[side] = {
            "policy": Path(name).name,
            "seed": 2 * run.seed + i,
            "rows": len(drawn.rows),
            "cut": drawn.num_cut,
            "prompts_cut": drawn.num_prompts_cut,
        }
        if drawn.num_cut:
            warnings.append(
                f"{drawn.num_cut:,} of {len(drawn.rows):,} answers of {side.upper()} were cut at {drawing.max_new_tokens} tokens: raise --max-new-tokens"
            )
        if drawn.num_prompts_cut:
            warnings.append(f"{drawn.num_prompts_cut:,} prompts were not read whole by {side.upper()}")
    return _Answers(match_answers(*sides), facts, warnings, (sides[0], sides[1]))


def _judge(
    name: str,
    kind: str,
    scorer: Scorer,
    temperature: float | None,
    answers: _Answers,
    by: Sequence[str] | None,
    seed: int,
    console: Console,
) -> _Judge:
    with console.status(f"{name} judges"):
        return _Judge(name, kind, win_rates(scorer, answers.matched, temperature=temperature, by=by, seed=seed))


def _implicit(
    implicit: Implicit, answers: _Answers, by: Sequence[str] | None, run: Running, console: Console
) -> _Judge:
    from rewardsmith.model.implicit_reward import ImplicitReward  # loaded here: it imports torch

    scorer = ImplicitReward(implicit.policy, implicit.reference, beta=implicit.beta, settings=run.settings)
    name = f"implicit reward of {Path(implicit.policy).name}"
    return _judge(name, "implicit reward", scorer, None, answers, by, run.seed, console)


def _agreement(judges: Sequence[_Judge], seed: int) -> dict[str, Any]:
    """What the judges say, each two beside each other, and whether the reward models among them name one winner."""
    winners = {one.rates.winner for one in judges if one.kind == "reward model"}
    name = winners.pop() if len(winners) == 1 else "undecided"
    return {
        "judges": [one.as_dict() for one in judges],
        "pairs": [one.as_dict() for one in agreements({one.name: one.rates.outcomes for one in judges}, seed=seed)],
        "winner": name,
        "all_agree": name != "undecided",
    }


class _Unmade:
    """The features of a detector before it is known which model computes them."""

    def __init__(self, made_by: Mapping[str, Any]) -> None:
        self.made_by = made_by

    def features(self, pairs: Sequence[Pair]) -> NDArray[np.float32]:
        """Never asked: `_with_features` puts the model in its place before a text is described."""
        raise AssertionError("a detector without its model")


def _with_features(detector: Detector, model: str, source: Source, run: Running) -> Detector:
    """The detector with what computes its features.

    Raises:
        ContractError: if it reads the features of another model than the judge.
    """
    if not isinstance(detector.features, _Unmade):
        return detector
    made_by = detector.features.made_by
    encoder = made_by.get("encoder", model)
    own = "encoder" not in made_by
    if own and (is_url(model) or is_function(model) or dict(made_by["files"]) != dict(source.files)):
        raise ContractError(
            f"a domain detector of {source.name}, or one with an encoder of its own",
            f"one that reads the features of {made_by['name']}",
            "Save one with the audit of this model, or with `--set encoder=minilm`.",
        )
    from rewardsmith.model.features import FrozenEncoder  # loaded here: it imports torch

    made: Features = FrozenEncoder(encoder, max_length=int(made_by["max_length"]), settings=run.settings)
    return replace(detector, features=made)


def _told_apart(names: Sequence[str]) -> list[str]:
    return [name if names.count(name) == 1 else f"{name} ({i})" for i, name in enumerate(names, start=1)]


def _write(out: Path, document: Mapping[str, Any], rates: WinRates, answers: _Answers, console: Console) -> None:
    with atomic_folder(out) as folder:
        write_json(folder / REPORT, document)
        io.write_rows(folder / COMPARISONS, rates.rows())
        for name, rows in zip(("a.jsonl", "b.jsonl"), answers.drawn or (), strict=False):
            io.write_rows(folder / name, map(as_row, rows))
        margins = rates.comparisons.by_prompt(rates.comparisons.margins)
        try:
            margins_histogram(margins.tolist(), document["win_rate"], folder / MARGINS)
        except MissingExtraError as error:  # a missing plot is no reason to lose a comparison
            console.print(f"no {MARGINS}: {error}", highlight=False, markup=False)


def _judges_table(agreement: Mapping[str, Any]) -> Table:
    """Each judge's verdict, and how often each two agree prompt by prompt."""
    table = Table(title="judges", title_justify="left")
    table.add_column("")
    for column in ("value", "95 % interval", "n", "kappa"):
        table.add_column(column, justify="right")

    def add(name: str, document: Mapping[str, Any], kappa: Mapping[str, Any] | None = None) -> None:
        one = Estimate(**document)
        shown = "" if kappa is None else f"{kappa['value']:.2f}"
        table.add_row(escape(name), f"{one.value:.3f}", rf"\[{one.low:.3f}, {one.high:.3f}]", f"{one.n:,}", shown)

    for judge in agreement["judges"]:
        add(f"A wins, says {judge['name']}", judge["win_rate"])
        add("... at equal length", judge["length_controlled_win_rate"])
    table.add_section()
    for pair in agreement["pairs"]:
        add(f"same winner: {' and '.join(pair['judges'])}", pair["share"], pair["kappa"])
    return table
