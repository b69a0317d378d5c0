"""`rewardsmith audit`: the parts of an audit joined with what a local model can be asked beside its scores, into one document and its folder."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from rewardsmith.auditing import registry
from rewardsmith.auditing.attack_data import write_adversarial_pairs
from rewardsmith.auditing.audit import Audit, Sample, Scores, not_covered, run_audit, sample
from rewardsmith.auditing.changes import changes, changes_document, changes_table, check_same_sample
from rewardsmith.auditing.domain import MAX_TEXTS
from rewardsmith.auditing.outliers import check_place
from rewardsmith.auditing.over_optimisation import LABELS, Gold, OverOptimisation, over_optimise
from rewardsmith.auditing.pools import Pool, drawn_pool, enlarged, merged, pool_of, probe_copies
from rewardsmith.auditing.probes.intrusions import own_tokens
from rewardsmith.auditing.probes.length import length_statistics
from rewardsmith.auditing.probes.openings import bare_openings
from rewardsmith.auditing.prompt_use import known_scores, measure_prompt_use
from rewardsmith.auditing.scorecard import limit_from, probes_table
from rewardsmith.auditing.search import Attack, attack
from rewardsmith.auditing.shift import measure_shift
from rewardsmith.auditing.shift_report import Shift
from rewardsmith.auditing.trials import ProbeResult
from rewardsmith.auditing.truncation import measure_truncation
from rewardsmith.config import AuditSettings, build
from rewardsmith.data import io
from rewardsmith.data.schema import Preference
from rewardsmith.data.texts import Text, read_texts
from rewardsmith.errors import DataError, MissingExtraError
from rewardsmith.functions import Function, as_scorer, is_function
from rewardsmith.loading import Running, Source, described, papers, read_labelled
from rewardsmith.plots import over_optimisation_curves
from rewardsmith.remote import is_url
from rewardsmith.scores import Features, Generator, LengthLimited, Perplexity, Scorer, SpecialTokens, TokenGradients
from rewardsmith.storage import atomic_folder, write_json

REPORT, TRIALS, ADVERSARIAL = "report.json", "trials.jsonl", "adversarial.jsonl"
NUM_PROBED = 25
"""Groups whose selected answers are probed: every probe, twice, by every model."""
WITH_MODEL = 500
"""Texts of a side whose features a model computes, for the comparison of domains."""
CANDIDATES, CURVES, TEXTS = "candidates.jsonl", "over_optimisation.png", "texts.jsonl"
SECTIONS = ("length", "bare_openings", "prompt_use", "truncation", "search", "over_optimisation", "shift")


@dataclass(frozen=True)
class Beside:
    """What a model offers beside its scores; None where it does not.

    Args:
        limited: the model at other limits of length.
        gradients: what a token's embedding would have to be.
        special_tokens: its control tokens, as its tokenizer writes them.
    """

    limited: LengthLimited | None = None
    gradients: TokenGradients | None = None
    special_tokens: tuple[str, ...] = ()


def audit(
    scorer: Scorer | Function,
    pairs: Sequence[Preference],
    *,
    probes: Sequence[str] | None = None,
    without: Sequence[str] = (),
    prompts: int = 200,
    pairs_per_prompt: int = 1,
    fail_over: Sequence[str] = (),
    seed: int = 0,
) -> dict[str, Any]:
    """Audit anything that scores, on labelled pairs: probes, lengths, use of the prompt and truncation.

    Args:
        scorer: a scorer, or a function of (prompt, answer).
        pairs: labelled ones.
        probes: names, families or kinds; all by default.
        without: names, families or kinds to leave out.
        prompts: of the sample.
        pairs_per_prompt: of each prompt.
        fail_over: limits, NAME=NUMBERsd, for the key `verdict`.
        seed: of the sample, the edits and the bootstraps.

    Returns:
        The document of `rewardsmith audit --json`, without what is known of the model and the data.

    Raises:
        RewardsmithError: of the kind that says what was wrong.

    >>> document = audit(lambda prompt, answer: len(answer), pairs)  # doctest: +SKIP
    >>> document["verdict"]["flagged"]  # doctest: +SKIP
    ['repetition_8', 'padding', ...]
    """
    asked = {
        "probes": probes,
        "without": without,
        "prompts": prompts,
        "pairs_per_prompt": pairs_per_prompt,
        "fail_over": fail_over,
    }
    able = as_scorer(scorer)
    return _base(able, pairs, build(AuditSettings, asked), _beside(able), seed=seed, console=None).document


def run(
    model: str,
    data: str,
    out: Path | None,
    settings: AuditSettings,
    *,
    running: Running,
    skip_bad: bool,
    quiet: bool,
    console: Console,
) -> dict[str, Any]:
    """Audit a MODEL argument on a source of pairs, print the tables, and write report.json and trials.jsonl into `out`.

    Args:
        model: a folder, a URL or a function.
        data: labelled pairs.
        out: a folder that may be written; None for none.
        settings: what is asked.
        running: how models run.
        skip_bad: count malformed rows instead of stopping.
        quiet: print no tables.
        console: for people.

    Raises:
        RewardsmithError: of the kind that says what was wrong.
    """
    for file in settings.extend:
        registry.extend(Path(file))
    facts, pairs = read_labelled(data, skip_bad=skip_bad, console=console)
    source = running.load(model)
    needed = _Needed.of(model, source, settings, running, skip_bad=skip_bad)
    head = {"verb": "audit", "model": described(source), **papers(facts, running.seed), **source.precision}
    if needed.baseline is not None:
        check_same_sample(needed.baseline[0], head)
    beside = _beside(source.scorer)
    found = _base(source.scorer, pairs, settings, beside, seed=running.seed, console=console)
    document = {**head, **found.document}
    searched = (
        _search(source.scorer, pairs, settings, beside, needed, running.seed, console) if settings.search else None
    )
    if searched is not None:
        document["search"] = searched.as_dict()
        document["not_covered"] += [f"search: {line}" for line in searched.not_covered]
    followed = (
        None if needed.gold is None else _over_optimisation(found.sample, settings, needed, running.seed, console)
    )
    if followed is not None:
        document["over_optimisation"] = followed.as_dict()
    shift = None if needed.new is None else _shift(source, pairs, settings, needed, running.seed, console)
    if shift is not None:
        document["shift"] = shift.as_dict()
    if needed.baseline is not None:
        document["changes"] = changes_document(changes(*needed.baseline, document, found.rows()))
    if out is not None:
        with atomic_folder(out) as folder:
            write_json(folder / REPORT, document)
            io.write_rows(folder / TRIALS, found.rows())
            if followed is not None:
                io.write_rows(folder / CANDIDATES, followed.rows())
                _draw(document["over_optimisation"], folder / CURVES, console)
            if shift is not None:
                io.write_rows(folder / TEXTS, shift.texts())
            if searched is not None and searched.triggers:
                write_adversarial_pairs(
                    folder / ADVERSARIAL, searched.search_pairs, searched.triggers, seed=running.seed
                )
    if shift is not None and settings.store_domain is not None:
        shift.save_detector(settings.store_domain)
    if not quiet:
        _print(document, f"{source.name} on {facts['source']}", console)
        for part in (followed, shift):
            if part is not None:
                console.print(part.table())
    return document


@dataclass(frozen=True)
class _Needed:
    """What the parts of an audit use beside the model and the data, read before anything is scored: what is wrong with it is said at once.

    Args:
        baseline: document and contrasts of an earlier audit.
        new: rows to compare the data with.
        features: describe texts, for this comparison; with what computes them again.
        pool: of candidates that are given.
        policy: that draws candidates instead.
        gold: the judge of candidates.
        proxies: the audited model and the members of its ensemble, by name.
        perplexity: of a language model.
    """

    baseline: tuple[dict[str, Any], list[dict[str, Any]]] | None
    new: Sequence[Text] | None
    features: tuple[Features, dict[str, Any]] | None
    pool: Pool | None
    policy: Generator | None
    gold: Gold | None
    proxies: dict[str, Scorer]
    perplexity: Perplexity | None

    @classmethod
    def of(cls, model: str, source: Source, settings: AuditSettings, running: Running, *, skip_bad: bool) -> _Needed:
        """Read what the settings name.

        Raises:
            RewardsmithError: of the kind that says what was wrong.
        """
        if settings.store_domain is not None:
            check_place(Path(settings.store_domain))
        policy: Generator | None = None
        perplexity: Perplexity | None = None
        if settings.policy is not None:
            from rewardsmith.model.policy import Policy  # loaded here: it imports torch

            policy = Policy(settings.policy, max_new_tokens=settings.max_new_tokens, settings=running.settings)
        if settings.language_model is not None:
            from rewardsmith.model.language_model import LanguageModel  # loaded here: it imports torch

            perplexity = LanguageModel(settings.language_model, settings=running.settings)
        members = [source, *(running.load(name) for name in settings.ensemble)]
        names = [one.name for one in members]
        named = [name if names.count(name) == 1 else f"{name} {i}" for i, name in enumerate(names, start=1)]
        gold: Gold | None = LABELS if settings.gold == LABELS else None
        return cls(
            baseline=None if settings.baseline is None else _read_audit(Path(settings.baseline)),
            new=None if settings.against is None else read_texts(settings.against, skip_bad=skip_bad),
            features=None if settings.against is None else _features(model, source, settings, running),
            pool=None if settings.pool is None else merged(pool_of(io.read(settings.pool).rows)),
            policy=policy,
            gold=gold if gold is not None or settings.gold is None else running.load(settings.gold).scorer,
            proxies=dict(zip(named, [one.scorer for one in members], strict=True)),
            perplexity=perplexity,
        )


def _features(
    model: str, source: Source, settings: AuditSettings, running: Running
) -> tuple[Features, dict[str, Any]] | None:
    """What describes texts, and what computes that again; None where there is no model for it."""
    encoder = settings.encoder if settings.encoder is not None else (None if _is_elsewhere(model) else model)
    if encoder is None:
        return None
    from rewardsmith.model.features import FrozenEncoder  # loaded here: it imports torch

    frozen = FrozenEncoder(encoder, settings=running.settings)
    again = {"files": dict(source.files)} if settings.encoder is None else {"encoder": encoder}
    name = source.name if settings.encoder is None else Path(encoder).name
    return frozen, {"name": name, "max_length": frozen.max_length, **again}


def _base(
    scorer: Scorer,
    pairs: Sequence[Preference],
    settings: AuditSettings,
    beside: Beside,
    *,
    seed: int,
    console: Console | None,
) -> Audit:
    """Probes, and the sections that need nothing else."""
    own = [own_tokens(beside.special_tokens)] if beside.special_tokens else []
    asked = registry.chosen_probes(settings.probes, settings.without, further=own)
    known = {name for probe in asked for name in (probe.name, probe.family, probe.kind)}
    limits = [limit_from(text, sorted(known)) for text in settings.fail_over]
    drawn = sample(pairs, num_prompts=settings.prompts, per_prompt=settings.pairs_per_prompt, seed=seed)

    def length(drawn: Sample, scores: Scores, results: Sequence[ProbeResult]) -> dict[str, Any]:
        return length_statistics(drawn.pairs, scores.chosen, scores.rejected, results=results, seed=seed).as_dict()

    def prompt_use(drawn: Sample, scores: Scores, results: Sequence[ProbeResult]) -> dict[str, Any]:
        known = known_scores(scores.plan.pairs, scores.scored.scores)
        return measure_prompt_use(scorer, drawn.pairs, seed=seed, known=known).as_dict()

    def truncation(drawn: Sample, scores: Scores, results: Sequence[ProbeResult]) -> dict[str, Any]:
        return measure_truncation(scorer, drawn.pairs, limited=beside.limited, results=results, seed=seed).as_dict()

    def openings(drawn: Sample, scores: Scores, results: Sequence[ProbeResult]) -> dict[str, Any]:
        bare = [result for result in results if result.probe.name.startswith("bare_")]
        return bare_openings(bare, np.concatenate([scores.chosen, scores.rejected]), seed=seed)

    sections = {
        "length": length,
        "prompt_use": prompt_use,
        "truncation": truncation,
        "bare_openings": openings,
    }
    if console is None:
        found = run_audit(scorer, drawn, asked, sections=sections, limits=limits, seed=seed)
    else:
        with console.status("auditing") as status:
            found = run_audit(
                scorer,
                drawn,
                asked,
                sections=sections,
                limits=limits,
                seed=seed,
                on_texts=lambda done, total: status.update(f"audit: {done:,} of {total:,} texts scored"),
            )
    absent = {
        name: f"not asked for ({flag})"
        for name, flag, is_asked in (
            ("search", "--search", settings.search),
            ("over_optimisation", "--pool or --policy, with --gold", settings.gold is not None),
            ("shift", "--against", settings.against is not None),
        )
        if not is_asked
    }
    found.document["not_covered"] = not_covered(found.document, asked, list(registry.PROBES.values()), absent)
    found.document["not_covered"].append(
        "whether a rejected answer does harm: where it does, an empty, cut or off-topic answer may rightly score higher than it"
    )
    return found


def _beside(scorer: Scorer) -> Beside:
    """The companions that a model brings; a server and a function bring none, and load no torch."""
    limited = getattr(scorer, "limited", None)
    tokens = limited.special_tokens() if isinstance(limited, SpecialTokens) else ()
    return Beside(limited, getattr(scorer, "token_gradients", None), tuple(tokens))


def _search(
    scorer: Scorer,
    pairs: Sequence[Preference],
    settings: AuditSettings,
    beside: Beside,
    needed: _Needed,
    seed: int,
    console: Console,
) -> Attack:
    """Triggers, found on one half of the prompts and measured on the other."""
    with console.status("search") as status:
        return attack(
            scorer,
            pairs,
            gradients=beside.gradients,
            perplexity=needed.perplexity,
            num_prompts=settings.search_prompts,
            max_words=settings.search_words,
            budget=settings.search_texts,
            seed=seed,
            progress=lambda stage, texts: status.update(f"search, {stage}: {texts:,} texts scored"),
        )


def _over_optimisation(
    drawn_from: Sample, settings: AuditSettings, needed: _Needed, seed: int, console: Console
) -> OverOptimisation:
    """Best-of-n over candidates that are given or drawn, judged by gold, alone and as an ensemble."""
    assert needed.gold is not None
    pool = needed.pool
    if pool is None:
        assert needed.policy is not None
        prompts = [pair.prompt for pair in drawn_from.pairs]
        with console.status(f"drawing {settings.candidates} answers to each of {len(prompts):,} prompts"):
            pool = drawn_pool(needed.policy, prompts, num_answers=settings.candidates, seed=seed)
    asked = [probe for probe in registry.chosen_probes(settings.probes, settings.without) if probe.edits_answers]
    if settings.copies:
        edits = {probe.name: probe_copies(probe) for probe in registry.PROBES.values() if probe.edits_answers}
        pool = enlarged(pool, edits, per_answer=settings.copies, seed=seed)
    with console.status("over-optimisation") as status:
        return over_optimise(
            needed.proxies,
            pool,
            needed.gold,
            probes=asked,
            num_probed=NUM_PROBED,
            seed=seed,
            on_texts=lambda name, done, of: status.update(f"over-optimisation, {name}: {done:,} of {of:,} texts"),
        )


def _shift(
    source: Source,
    pairs: Sequence[Preference],
    settings: AuditSettings,
    needed: _Needed,
    seed: int,
    console: Console,
) -> Shift:
    """The data against new prompts, by features where something gives them."""
    assert needed.new is not None
    features, made_by = needed.features or (None, None)
    with console.status("shift") as status:
        return measure_shift(
            pairs,
            needed.new,
            features=features,
            made_by=made_by,
            scorer=source.scorer,
            temperature=source.temperature,
            by=settings.by,
            # A model reads each text once more; words cost next to nothing.
            max_texts=MAX_TEXTS if features is None else WITH_MODEL,
            seed=seed,
            progress=lambda stage, done, total: status.update(f"shift, {stage}: {done:,} of {total:,}"),
        )


def _draw(section: Mapping[str, Any], path: Path, console: Console) -> None:
    """The curves; without matplotlib that is said, for a missing plot is no reason to lose an audit."""
    try:
        over_optimisation_curves(section, path)
    except MissingExtraError as error:
        console.print(f"no {path.name}: {error}", highlight=False, markup=False)


def _is_elsewhere(model: str) -> bool:
    """Whether a MODEL argument names something that has no weights here that torch can read."""
    if is_url(model) or is_function(model):
        return True
    from rewardsmith.model.exported import is_exported  # loaded here: it imports torch

    return is_exported(model)


def _read_audit(folder: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The document and the contrasts of an earlier audit."""
    mend = "Give a folder that `rewardsmith audit --out` made."
    try:
        document = json.loads((folder / REPORT).read_text(encoding="utf-8"))
        rows = [json.loads(line) for line in (folder / TRIALS).read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError) as error:
        raise DataError(f"an audit's {REPORT} and {TRIALS} in {folder}", f"{error}", mend) from error
    if not isinstance(document, dict) or document.get("verb") != "audit":
        raise DataError(f"an audit's {REPORT}", f"another document in {folder}", mend)
    return document, rows


def _print(document: Mapping[str, Any], title: str, console: Console) -> None:
    """The tables and readings for people."""
    console.print(probes_table(document, title))
    if "changes" in document:
        console.print(changes_table(document["changes"], "against the earlier audit"))
    for name in SECTIONS:
        section = document.get(name, {})
        for line in (section.get("reading"), *section.get("advice", ())):
            if line:
                console.print(f"{name.replace('_', ' ')}: {line}", highlight=False, markup=False, soft_wrap=True)
    for line in document["not_covered"]:
        console.print(f"not covered: {line}", highlight=False, markup=False, soft_wrap=True)
    for one in document["verdict"]["limits"]:
        found = "not measured" if one["effect_sd"] is None else f"{one['effect_sd']:+.2f} sd"
        line = f"{'ok  ' if one['ok'] else 'FAIL'}  {one['probe']}: {found} (limit {one['limit_sd']:g} sd)"
        console.print(line, highlight=False, markup=False, soft_wrap=True)
