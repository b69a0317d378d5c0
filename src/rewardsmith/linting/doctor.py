"""The examination: one pass that turns the source into columns on all cores, the rules over those columns, a second pass where texts are needed again.

Memory is what the columns take, about 150 bytes a pair (370 with near duplicates); texts are held a chunk at a time.
"""

from __future__ import annotations

import tempfile
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import joblib
import numpy as np

from rewardsmith.config import LintSettings
from rewardsmith.data import io
from rewardsmith.data.pairing import preferences_of
from rewardsmith.data.schema import Group, Preference, Row
from rewardsmith.data.sources import source_name
from rewardsmith.data.truncation import Cut, Cutter
from rewardsmith.errors import DataError, RowError, SettingsError
from rewardsmith.linting import document as reporting
from rewardsmith.linting.document import Finding
from rewardsmith.linting.measure import BIT, Bools, Columns, Measuring, measure
from rewardsmith.linting.mending import mended_row
from rewardsmith.linting.overlap import Grams, benchmark_prompts
from rewardsmith.linting.progress import Progress, nothing, size_of
from rewardsmith.linting.rules import RULE_NAMES, RULES, Evidence, Found, Rows, Rule
from rewardsmith.linting.shortcuts import agreement, shortcuts, shortcuts_by
from rewardsmith.manifest import package_versions
from rewardsmith.metrics import wins
from rewardsmith.stats import Floats, cluster_codes, linear_proportion

_CHUNK = 2000
# Fewer rows are measured sooner than worker processes start.
_FEW_CHUNKS = 3
_CUT_BATCH = 1000
_MOST_CONTRADICTED = 50
# One bit each.
_MOST_BENCHMARKS = 32


class Judge(Protocol):
    """Margins of pairs by something that knows texts; `name` is for the report."""

    @property
    def name(self) -> str: ...  # noqa: D102

    def margins(self, pairs: Sequence[Preference], prompts: Rows, *, seed: int) -> Floats:
        """Log-odds that the label is right, (n,), each from a model that saw no pair of that prompt; `prompts`: (n,) codes."""
        ...


@dataclass
class Examination:
    """What `lint` found.

    Args:
        document: of `--json`.
        findings: in the order of the rules.
        columns: of the data.
        settings: it was made with.
    """

    document: dict[str, Any]
    findings: list[Finding]
    columns: Columns
    settings: LintSettings

    def has(self, *severities: str) -> bool:
        """Whether a finding has one of these severities."""
        return any(one.severity in severities for one in self.findings)


@dataclass
class _SecondPass:
    """What is gathered when the rows go by again."""

    examples: dict[int, Row] = field(default_factory=dict)
    cuts: list[list[Cut]] = field(default_factory=list)
    judged: list[Preference] = field(default_factory=list)


def lint(
    settings: LintSettings,
    *,
    cutter: Cutter | None = None,
    judge: Judge | None = None,
    progress: Progress = nothing,
) -> Examination:
    """Examine preference data.

    Args:
        settings: what to look at and for.
        cutter: a tokenizer with its policy, for the truncation table and the rule `truncated_equal`.
        judge: a model, for the rule `suspect_label`.
        progress: is told what is done of each pass.

    Raises:
        SettingsError: if a rule is named that does not exist, or the cutter lacks the limit that is asked for.
        DataError: if a source cannot be read, or holds no row.
    """
    enabled = _enabled(settings)
    if cutter is not None and settings.max_length not in cutter.limits:
        came = f"{settings.max_length}, and a cutter of {', '.join(map(str, cutter.limits))}"
        raise SettingsError("a max_length that the cutter knows", came, "Give it among the limits.")
    mends = frozenset(rule.name for rule in enabled if rule.action == "mend")
    with tempfile.TemporaryDirectory(prefix="rewardsmith-lint-") as folder:
        told = Measuring(
            mends=mends,
            format=settings.format,
            near=settings.near and any(rule.name == "near_duplicate" for rule in enabled),
            benchmarks=_benchmarks(settings, Path(folder)),
        )
        columns = measure_source(settings.data, told, jobs=settings.jobs, progress=progress)
    evaluation = None
    if settings.eval_data is not None:
        evaluation = measure_source(settings.eval_data, Measuring(mends=mends, near=False), jobs=settings.jobs)
    if not columns.num_rows:
        raise DataError(f"at least one row in {source_name(settings.data)}", "an empty file", "Check the file.")
    evidence = Evidence(columns, evaluation=evaluation, benchmarks=tuple(name for name, _ in settings.benchmarks))
    evidence.statistics, evidence.by = shortcuts(columns), shortcuts_by(columns)
    if (alpha := agreement(columns)) is not None:
        evidence.statistics["annotator_agreement"] = alpha
    early = _apply([rule for rule in enabled if rule.name not in _LATE], evidence)
    sampled = _sampled(columns, settings) if judge else np.zeros(0, np.int64)
    wanted = _example_rows(early.values(), columns)
    seen = _second_pass(settings, columns, wanted, sampled, cutter, mends, progress)
    document: dict[str, Any] = {"verb": "lint"}
    if cutter is not None:
        cuts = [Cut.join(parts) for parts in zip(*seen.cuts, strict=True)]
        document["truncation"] = reporting.truncation_document(cutter, cuts, cluster_codes(columns.pairs.prompt))
        evidence.truncated_equal = _rows_cut_equal(evidence, cuts[cutter.limits.index(settings.max_length)])
    if judge is not None:
        document["suspects"] = _judge(judge, seen.judged, sampled, evidence, settings)
    late = _apply([rule for rule in enabled if rule.name in _LATE], evidence)
    if missing := _example_rows(late.values(), columns) - seen.examples.keys():
        nobody = np.zeros(0, np.int64)
        seen.examples |= _second_pass(settings, columns, missing, nobody, None, mends, nothing).examples
    applied = early | late
    findings = [one for rule in enabled if (one := _finding(rule, applied[rule.name], columns)) is not None]
    found = {one.rule for one in findings}
    not_run = {rule.name: rule.needs for rule in enabled if applied[rule.name] is None}
    return Examination(
        document
        | {
            "source": source_name(settings.data),
            "format": reporting.format_document(columns),
            "num_rows": columns.num_rows,
            "num_pairs": len(columns.pairs.row),
            "num_prompts": len(np.unique(columns.rows.prompt[~evidence.kind("malformed")])),
            "kinds": reporting.kinds(columns),
            "severity": {name: sum(one.severity == name for one in findings) for name in ("error", "warning", "info")},
            "findings": [one.as_dict() for one in findings],
            "passed": [rule.name for rule in enabled if rule.name not in found and rule.name not in not_run],
            "not_run": not_run,
            "statistics": {name: value.as_dict() for name, value in evidence.statistics.items()},
            "by": {
                column: {
                    value: {name: one.as_dict() for name, one in estimates.items()}
                    for value, estimates in slices.items()
                }
                for column, slices in evidence.by.items()
            },
            "distributions": reporting.distributions(columns),
            "counts_by": reporting.counts_by(columns),
            "examples": _examples(findings, columns, seen.examples),
            "seed": settings.seed,
            "versions": package_versions(),
        },
        findings,
        columns,
        settings,
    )


# Rules that wait for the second pass, and rules that keep one of several rows: it should be one that no other rule removes.
_LATE = ("truncated_equal", "suspect_label")
_AFTER = ("exact_duplicate", "near_duplicate")


def _enabled(settings: LintSettings) -> list[Rule]:
    if len(settings.benchmarks) > _MOST_BENCHMARKS or len({name for name, _ in settings.benchmarks}) < len(
        settings.benchmarks
    ):
        names = ", ".join(name for name, _ in settings.benchmarks)
        raise SettingsError(f"at most {_MOST_BENCHMARKS} benchmarks of different names", names, "Name them: NAME=FILE.")
    for name in (*settings.rules, *settings.ignore):
        if name not in RULE_NAMES:
            raise SettingsError(f"a rule of lint ({', '.join(RULE_NAMES)})", repr(name), "Check the name.")
    wanted = settings.rules or RULE_NAMES
    return [rule for rule in RULES if rule.name in wanted and rule.name not in settings.ignore]


def measure_source(source: str, told: Measuring, *, jobs: int | None = None, progress: Progress = nothing) -> Columns:
    """The columns of a whole source, measured by several processes where it is long enough."""
    chunks = io.chunks(source, size=_CHUNK)
    parts = []
    for chunk in islice(chunks, _FEW_CHUNKS):
        parts.append(measure(chunk, told))
        progress("reading", len(chunk.rows), size_of(chunk))
    for part, size in _in_processes(chunks, told, jobs) if len(parts) == _FEW_CHUNKS else ():
        parts.append(part)
        progress("reading", part.num_rows, size)
    return Columns.join(parts) if parts else measure(io.Chunk(1, []), told)


def _in_processes(chunks: Iterator[io.Chunk], told: Measuring, jobs: int | None) -> Iterable[tuple[Columns, int]]:
    """(columns, bytes) of each chunk in order; a few chunks more than there are processes are in memory at once."""
    sizes: deque[int] = deque()

    def announced() -> Iterator[Any]:
        for chunk in chunks:
            sizes.append(size_of(chunk))
            yield joblib.delayed(measure)(chunk, told)

    workers = joblib.Parallel(
        n_jobs=jobs or joblib.cpu_count(), return_as="generator", pre_dispatch="2*n_jobs", batch_size=1, max_nbytes=None
    )
    for part in workers(announced()):
        yield part, sizes.popleft()


def _benchmarks(settings: LintSettings, folder: Path) -> tuple[tuple[str, Grams], ...]:
    return tuple(
        (name, Grams.write(benchmark_prompts(source), folder / f"{i}.npy"))
        for i, (name, source) in enumerate(settings.benchmarks)
    )


def _apply(rules: Sequence[Rule], evidence: Evidence) -> dict[str, Found | None]:
    """What each rule finds, by name, None where it lacks something; those on equal and nearly equal rows come after all that remove rows."""
    applied: dict[str, Found | None] = {}
    evidence.removed = evidence.none() if evidence.removed is None else evidence.removed
    for rule in sorted(rules, key=lambda rule: _AFTER.index(rule.name) if rule.name in _AFTER else -1):
        found = applied[rule.name] = rule.find(evidence)
        if found is not None and rule.action == "remove":
            evidence.removed = evidence.removed | found.rows
    return applied


def _finding(rule: Rule, found: Found | None, columns: Columns) -> Finding | None:
    return None if found is None else reporting.finding(rule, found, columns)


def _sampled(columns: Columns, settings: LintSettings) -> Rows:
    """Pairs to judge: those that can be learned from, whole prompts at a time, at most as many as the settings say."""
    pairs, rules = columns.pairs, columns.rows.rules
    unfit = BIT["empty_answer"] | BIT["prompt_mismatch"] | BIT["equal_answers"]
    fit = np.flatnonzero(((rules[pairs.row] & unfit) == 0) & ~pairs.tie)
    prompts = cluster_codes(pairs.prompt[fit])
    order = np.random.default_rng(settings.seed).permutation(int(prompts.max(initial=-1)) + 1)
    ranked = fit[np.argsort(order[prompts], kind="stable")]
    return np.sort(ranked[: settings.max_suspect_pairs])


def _example_rows(applied: Iterable[Found | None], columns: Columns) -> set[int]:
    wanted: set[int] = set()
    for found in applied:
        if found is not None:
            wanted.update(np.flatnonzero(found.rows)[: reporting.NUM_EXAMPLES].tolist())
    return wanted


def _examples(findings: Sequence[Finding], columns: Columns, rows: dict[int, Row]) -> dict[str, list[dict[str, str]]]:
    shown = {}
    for one in findings:
        places = [int(row) for row in np.flatnonzero(one.found.rows)[: reporting.NUM_EXAMPLES] if int(row) in rows]
        partners = one.found.partner
        notes = [
            f"see {columns.ids[partners[place]]}" if partners is not None and partners[place] >= 0 else ""
            for place in places
        ]
        if places:
            shown[one.rule] = [reporting.example(rows[place], note) for place, note in zip(places, notes, strict=True)]
    return shown


def _second_pass(
    settings: LintSettings,
    columns: Columns,
    wanted: set[int],
    sampled: Rows,
    cutter: Cutter | None,
    mends: frozenset[str],
    progress: Progress,
) -> _SecondPass:
    """Read the source again, as far as needed, for the texts of examples and of pairs to cut or judge."""
    seen = _SecondPass()
    judged = set(sampled.tolist())
    last = max([*(int(columns.rows.number[row]) for row in wanted), -1])
    numbers = {int(columns.rows.number[row]) for row in wanted}
    place, pair_place, batch = 0, 0, list[Preference]()
    everything = cutter is not None or bool(judged)
    for chunk in io.chunks(settings.data, size=_CHUNK):
        if not everything and chunk.start > last:
            break
        ends = chunk.start + len(chunk.rows)
        if not everything and not any(chunk.start <= number < ends for number in numbers):
            place += int(((columns.rows.number >= chunk.start) & (columns.rows.number < ends)).sum())
            continue
        for _, row in io.parse(chunk, format=settings.format):
            if place in wanted and not isinstance(row, RowError):
                seen.examples[place] = row
            for pair in _pairs_of(row):
                if pair_place in judged or cutter is not None:
                    pair = _mended(pair, mends)
                    if pair_place in judged:
                        seen.judged.append(pair)
                    if cutter is not None:
                        batch.append(pair)
                pair_place += 1
            place += 1
        if cutter is not None and len(batch) >= _CUT_BATCH:
            seen.cuts.append(cutter.cut(batch))
            batch = []
        if everything:
            progress("measuring texts", len(chunk.rows), size_of(chunk))
    if cutter is not None and (batch or not seen.cuts):
        seen.cuts.append(cutter.cut(batch))
    return seen


def _pairs_of(row: Row | RowError) -> list[Preference]:
    if isinstance(row, Preference):
        return [row]
    if isinstance(row, Group) and row.order != "none":
        return preferences_of(row)
    return []


def _mended(pair: Preference, mends: frozenset[str]) -> Preference:
    """The pair as `measure` read it."""
    prompt, chosen, rejected = (mended_row(part, mends) for part in (pair.prompt, pair.chosen, pair.rejected))
    return replace(pair, prompt=prompt, chosen=chosen, rejected=rejected)


def _rows_cut_equal(evidence: Evidence, cut: Cut) -> Bools:
    """Rows of different answers that the cut makes equal."""
    pairs = evidence.columns.pairs
    return evidence.rows_with(cut.identical & (pairs.chosen != pairs.rejected))


def _judge(
    judge: Judge, pairs: Sequence[Preference], places: Rows, evidence: Evidence, settings: LintSettings
) -> dict[str, Any]:
    """Judge the sampled pairs, mark the suspects in the evidence, and say what was found."""
    from rewardsmith.linting.suspects import noise_rate, suspects  # loaded here: scikit-learn takes a second

    prompts = cluster_codes(evidence.columns.pairs.prompt[places])
    margins = judge.margins(pairs, prompts, seed=settings.seed)
    noise = noise_rate(margins, prompts)
    found = suspects(margins, noise)
    marked = np.zeros(len(evidence.columns.pairs.row), dtype=bool)
    marked[places[found.rows]] = True
    evidence.suspects = evidence.rows_with(marked)
    return {
        "by": judge.name,
        "num_pairs": len(pairs),
        "noise_rate": noise.rate.as_dict(),
        "identified": noise.identified,
        "reason": noise.reason,
        "accuracy": linear_proportion(wins(margins), prompts).as_dict(),
        "count": len(found.rows),
        "expected_wrong": found.expected_wrong,
        # A reading order where nothing is certain: also given where the noise rate is not identified.
        "most_contradicted": [pairs[i].id for i in np.argsort(margins)[:_MOST_CONTRADICTED] if margins[i] < 0],
    }
