"""`rewardsmith bestofn`: candidates read or drawn, scored by one model or several, chosen from, and what was chosen written for people, for fine-tuning and for DPO."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from rewardsmith.auditing.ensembles import Rule
from rewardsmith.auditing.pools import Pool, drawn_pool
from rewardsmith.data import io
from rewardsmith.data.schema import Prompt
from rewardsmith.data.sources import source_identity, source_name
from rewardsmith.data.texts import read_prompts
from rewardsmith.errors import DataError, MissingExtraError, SettingsError
from rewardsmith.functions import Function
from rewardsmith.loading import Running, described, papers
from rewardsmith.plots import best_of_n_curve
from rewardsmith.scores import Generator, Scorer
from rewardsmith.stats import Estimate
from rewardsmith.use.best_answers import Abstention, BestAnswers, best_answers, check_abstention
from rewardsmith.use.candidates import candidate_rows, candidates_of
from rewardsmith.use.rejection_sampling import Exported, fine_tuning_rows, preference_rows
from rewardsmith.use.soft_best import check_temperature


@dataclass(frozen=True)
class Drawing:
    """A policy that is to answer the prompts of a source.

    Args:
        policy: a folder, a Hugging Face name, a GGUF file or `smollm2`.
        num_answers: to each prompt.
        max_new_tokens: where an answer is cut.
        temperature: of the policy's softmax.
    """

    policy: str
    num_answers: int
    max_new_tokens: int
    temperature: float

    def __post_init__(self) -> None:
        """Refuse what no policy can draw by, before one is loaded.

        Raises:
            SettingsError: at a temperature that is none.
        """
        if not (np.isfinite(self.temperature) and self.temperature > 0):
            raise SettingsError("a finite --policy-temperature above 0", f"{self.temperature}", "Draw at 1.")


@dataclass(frozen=True)
class Choosing:
    """How answers are chosen.

    Args:
        ensemble: further MODEL arguments that score together with the first.
        rule: of several models.
        k: of the rule "lower confidence".
        soft: the temperature of soft best-of-n; None takes the best.
        abstain: when a choice is too close; None never abstains.
    """

    ensemble: Sequence[str] = ()
    rule: Rule = "mean"
    k: float = 1.0
    soft: float | None = None
    abstain: Abstention | None = None

    def __post_init__(self) -> None:
        """Refuse what cannot be meant, before a model is loaded.

        Raises:
            SettingsError: at a temperature or a k that is none.
        """
        if self.soft is not None:
            check_temperature(self.soft)
        if not (np.isfinite(self.k) and self.k >= 0):
            raise SettingsError("a finite k of at least 0", f"{self.k}", "Take 1, the default.")


@dataclass(frozen=True)
class Outputs:
    """Files to write, each where it is not None.

    Args:
        out: a row a group.
        candidates: what a policy drew, written before it is scored: groups that are candidates again.
        sft: the taken answers, to fine-tune on.
        pairs: best and worst answers, for DPO.
        plot: the curve, a PNG.
        min_margin: of `pairs`.
        messages: write `sft` and `pairs` as lists of messages.
    """

    out: Path | None = None
    candidates: Path | None = None
    sft: Path | None = None
    pairs: Path | None = None
    plot: Path | None = None
    min_margin: float = 0.0
    messages: bool = False

    def __post_init__(self) -> None:
        """Refuse a margin that no pair can have.

        Raises:
            SettingsError: unless it is finite and at least 0.
        """
        if not (np.isfinite(self.min_margin) and self.min_margin >= 0):
            raise SettingsError("a finite --min-margin of at least 0", f"{self.min_margin}", "Give a score.")


def run(
    model: str,
    data: str,
    outputs: Outputs,
    *,
    drawing: Drawing | None,
    choosing: Choosing,
    run: Running,
    skip_bad: bool,
    quiet: bool,
    console: Console,
) -> dict[str, Any]:
    """Choose answers, print the table, and write what is asked for; see docs/best_of_n.md.

    Args:
        model: a MODEL argument.
        data: candidates, or with `drawing` prompts.
        outputs: files that may be written.
        drawing: the policy that answers; None reads candidates.
        choosing: how.
        run: how models run.
        skip_bad: count malformed rows instead of stopping.
        quiet: print no table.
        console: for people.

    Raises:
        RewardsmithError: of the kind that says what was wrong.
    """
    facts: dict[str, Any] = {"source": source_name(data), "sha256": source_identity(data)}
    pool, prompts = None, None
    if drawing is None:
        pool = _read(data, facts, skip_bad=skip_bad, console=console)
    else:
        skipped: Counter[str] = Counter()
        prompts = read_prompts(data, skip_bad=skip_bad, skipped=skipped)
        facts["skipped_bad"] = dict(skipped)
        if skipped:
            console.print(f"malformed prompts left out, by field: {dict(skipped)}", highlight=False, markup=False)
    sources = [run.load(name) for name in (model, *choosing.ensemble)]
    # The temperature of one model says nothing of the margins of several.
    temperature = sources[0].temperature if len(sources) == 1 else None
    check_abstention(choosing.abstain, temperature, sources[0].name if len(sources) == 1 else "several models")
    if pool is None:
        assert drawing is not None and prompts is not None
        pool = _draw(drawing, prompts, facts, run, console)
        if outputs.candidates is not None:
            io.write_rows(outputs.candidates, candidate_rows(pool))
    names = _told_apart([one.name for one in sources])
    scorers: Mapping[str, Scorer | Function] = dict(zip(names, [one.scorer for one in sources], strict=True))
    with console.status("scoring") as status:
        best = best_answers(
            sources[0].scorer if len(sources) == 1 else scorers,
            pool,
            temperature=temperature,
            soft=choosing.soft,
            abstain=choosing.abstain,
            rule=choosing.rule,
            k=choosing.k,
            seed=run.seed,
            on_texts=lambda done, total: status.update(f"scoring: {done:,} of {total:,} texts"),
        )
    exports = _exports(best, outputs)
    document: dict[str, Any] = {
        "verb": "bestofn",
        "model": described(sources[0]),
        **papers(facts, run.seed),
        **sources[0].precision,
        "temperature": temperature,
        **best.as_dict(),
        "exports": {name: one.as_dict() for name, one in exports.items()},
    }
    if len(sources) > 1:
        document["ensemble"]["models"] = [{**described(one), **one.precision} for one in sources]
    if outputs.out is not None:
        io.write_rows(outputs.out, best.rows(with_drawn=drawing is not None))
    for name, path in (("sft", outputs.sft), ("pairs", outputs.pairs)):
        if path is not None and exports[name].rows:
            io.write_rows(path, exports[name].rows)
    if outputs.plot is not None:
        _plot(document, outputs.plot, console)
    if not quiet:
        console.print(best_answers_table(document, f"best of n by {' and '.join(names)} on {facts['source']}"))
    for line in document["warnings"]:
        console.print(f"warning: {line}", highlight=False, markup=False, soft_wrap=True)
    _refuse_empty(exports)
    return document


def _read(data: str, facts: dict[str, Any], *, skip_bad: bool, console: Console) -> Pool:
    reading = io.read(data, skip_bad=skip_bad)
    pool = candidates_of(reading.rows)
    console.print(reading.describe(data), highlight=False, markup=False, soft_wrap=True)
    facts |= {
        "rows": reading.num_rows,
        "formats": dict(reading.formats),
        "left_out": dict(pool.left_out),
        "skipped_bad": dict(reading.skipped),
    }
    return pool


def _draw(drawing: Drawing, prompts: Sequence[Prompt], facts: dict[str, Any], run: Running, console: Console) -> Pool:
    from rewardsmith.model.policy import Policy  # loaded here: it imports torch
    from rewardsmith.model.precision import prepare_process

    prepare_process(threads=run.threads, seed=run.seed)
    with console.status(f"{drawing.num_answers} answers to each of {len(prompts):,} prompts") as status:
        policy: Generator = Policy(
            drawing.policy,
            temperature=drawing.temperature,
            max_new_tokens=drawing.max_new_tokens,
            settings=run.settings,
            on_answers=lambda done, total: status.update(f"{done:,} of {total:,} answers drawn"),
        )
        pool = drawn_pool(policy, prompts, num_answers=drawing.num_answers, seed=run.seed)
    facts |= {
        "policy": Path(drawing.policy).name,
        "num_answers": drawing.num_answers,
        "max_new_tokens": drawing.max_new_tokens,
        "policy_temperature": drawing.temperature,
    }
    return pool


def _exports(best: BestAnswers, outputs: Outputs) -> dict[str, Exported]:
    found = {}
    if outputs.sft is not None:
        found["sft"] = fine_tuning_rows(best, messages=outputs.messages)
    if outputs.pairs is not None:
        found["pairs"] = preference_rows(best, min_margin=outputs.min_margin, messages=outputs.messages)
    return found


def _refuse_empty(exports: Mapping[str, Exported]) -> None:
    """An empty file would only fail later, in a training; everything else has been written by then."""
    for name, one in exports.items():
        if not one.rows:
            counts = ", ".join(f"{count:,} {reason}" for reason, count in one.left_out.items())
            raise DataError(
                f"at least one row for --{name}", f"none ({counts}); the file is not written", "Ask for less certainty."
            )


def _plot(document: Mapping[str, Any], path: Path, console: Console) -> None:
    try:
        best_of_n_curve(document["curve"], path)
    except MissingExtraError as error:  # a missing plot is no reason to lose the answers
        console.print(f"no {path.name}: {error}", highlight=False, markup=False)


def _told_apart(names: Sequence[str]) -> list[str]:
    return [name if names.count(name) == 1 else f"{name} ({i})" for i, name in enumerate(names, start=1)]


def _shown(found: Mapping[str, Any] | None, digits: int = 3) -> str:
    if found is None:
        return ""
    one = Estimate(**found)
    return rf"{one.value:.{digits}f} \[{one.low:.{digits}f}, {one.high:.{digits}f}]"


def best_answers_table(document: Mapping[str, Any], title: str) -> Table:
    """The curve for people, and below it what a document says of all candidates."""
    table = Table(title=escape(title), title_justify="left", caption_justify="left")
    labelled = document["labels"] is not None
    for column in ("n", "KL", "score", *(("label", "best picked") if labelled else ("gain over n = 1",))):
        table.add_column(column, justify="right")
    # Two digits, for three intervals beside each other in 80 columns; the document has them all.
    for point in document["curve"]:
        found = [point["score"], *((point["label"], point["best_picked"]) if labelled else (point["gain"],))]
        table.add_row(f"{point['n']:,}", f"{point['kl']:.2f}", *(_shown(one, 2) for one in found))
    lines = [f"{document['num_groups']:,} groups, {document['num_candidates']:,} candidates"]
    if document["curve_groups"] < document["num_groups"]:
        lines[0] += f"; the curve is of {document['curve_groups']:,} groups with {document['curve'][-1]['n']} or more"
    if labelled and document["labels"]["accuracy"] is not None:
        chance = document["labels"]["chance"]
        lines.append(
            f"the best of all candidates taken: {_shown(document['labels']['accuracy'])}, by chance {chance:.3f}"
        )
    if document["soft"] is not None:
        soft = document["soft"]
        lines.append(
            f"soft, T = {soft['temperature']:g}: score {_shown(soft['score'])}, KL at most {soft['kl_at_most']:.2f} nats"
        )
    if document["abstained"] is not None:
        lines.append(f"abstained: {_shown(document['abstained'])}")
        for name in ("kept", "abstained"):
            if (found := document["abstention"][f"accuracy_{name}"]) is not None:
                lines.append(f"  the best taken, {name}: {_shown(found)}")
    for name, one in document["exports"].items():
        gone = ", ".join(f"{count:,} {reason}" for reason, count in one["left_out"].items())
        lines.append(f"--{name}: {one['rows']:,} rows" + (f"; left out: {gone}" if gone else ""))
    table.caption = "\n".join(lines)
    return table
