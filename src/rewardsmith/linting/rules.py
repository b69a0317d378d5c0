"""The rules: each a small function from the evidence to the rows it names. One table lists them all, with what to do about each.

A rule of the action "remove" or "mend" is carried out by `--fix`; "none" means that a person must decide. Severity "error" is for rows that must not be trained
on, "warning" for what makes a reward model worse, "info" for what one should know.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from rewardsmith.data import near
from rewardsmith.data.near import Hashes
from rewardsmith.linting.measure import BIT, KINDS, Bools, Columns
from rewardsmith.linting.shortcuts import worst_slices
from rewardsmith.stats import Estimate

Severity = Literal["error", "warning", "info"]
Action = Literal["remove", "mend", "none"]
Rows = NDArray[np.int64]

# Near duplicates: the whole pair at least this similar, and each of its parts; parts of few characters lose half their word triples with one word.
NEAR_PAIR = 0.7
_NEAR_PART, _NEAR_SHORT_PART, _SHORT_PART = 0.5, 0.25, 80
# A shortcut is worth a warning when it moves the odds by this much, whatever the sample size.
_SHORTCUT = 0.05
_IMBALANCE = 10
_SOURCE_COLUMNS = ("source", "domain", "dataset", "subset")
_LOW_AGREEMENT = 0.2
_MOST_EQUAL = 0.5


@dataclass
class Evidence:
    """What the rules look at.

    Args:
        columns: of the data.
        statistics: shortcuts and agreement.
        by: shortcuts by slice.
        evaluation: columns of the eval data, if given.
        benchmarks: names of the benchmarks given.
        truncated_equal: rows that the cut makes equal, if a tokenizer was given.
        suspects: rows whose label is probably wrong, if a model was given.
        removed: rows that a rule before this one removes; of equal rows the first that stays is kept.
    """

    columns: Columns
    statistics: dict[str, Estimate] = field(default_factory=dict)
    by: Mapping[str, Mapping[str, Mapping[str, Estimate]]] = field(default_factory=dict)
    evaluation: Columns | None = None
    benchmarks: tuple[str, ...] = ()
    truncated_equal: Bools | None = None
    suspects: Bools | None = None
    removed: Bools | None = None

    def none(self) -> Bools:
        """No row at all, bool (r,)."""
        return np.zeros(len(self.columns.ids), dtype=bool)

    def rows_with(self, pairs: Bools) -> Bools:
        """The rows that hold one of these pairs, bool (r,)."""
        rows = self.none()
        rows[self.columns.pairs.row[pairs]] = True
        return rows

    def bit(self, rule: str) -> Bools:
        """The rows that `measure` marked, bool (r,)."""
        return (self.columns.rows.rules & BIT[rule]) > 0

    def kind(self, *kinds: str) -> Bools:
        """The rows of some kinds, bool (r,)."""
        return np.asarray(np.isin(self.columns.rows.kind, [KINDS.index(kind) for kind in kinds]))


@dataclass
class Found:
    """What a rule has found.

    Args:
        rows: the rows it names, bool (r,).
        message: one sentence of detail.
        fires: whether it is a finding although it names no row.
        partner: for each row the other row that the finding is about, -1 without one; int64 (r,).
        severity: where it differs from the rule's own.
    """

    rows: Bools
    message: str = ""
    fires: bool = False
    partner: Rows | None = None
    severity: Severity | None = None


@dataclass(frozen=True)
class Rule:
    """One rule.

    Args:
        name: in reports and on the command line.
        severity: see the module.
        action: what `--fix` does.
        fix: what to do about it, a sentence.
        find: the function; None where what it needs was not given.
        needs: what to give, where `find` may return None.
    """

    name: str
    severity: Severity
    action: Action
    fix: str
    find: Callable[[Evidence], Found | None]
    needs: str = ""


def _marked(name: str, message: str) -> Callable[[Evidence], Found]:
    return lambda evidence: Found(evidence.bit(name), message)


def _schema(evidence: Evidence) -> Found:
    faults = evidence.columns.faults
    return Found(evidence.bit("schema"), f"the first: {faults[0][2]}" if faults else "")


def _equal_answers(evidence: Evidence) -> Found:
    rows = evidence.bit("equal_answers")
    if rows.sum() > _MOST_EQUAL * max(1, int(evidence.kind("pair").sum())):
        return Found(rows, "most rows: are the columns swapped or duplicated?", severity="error")
    return Found(rows)


def _exact_duplicate(evidence: Evidence) -> Found:
    rows = evidence.columns.rows
    well = np.flatnonzero(~evidence.kind("malformed"))
    removed = evidence.none() if evidence.removed is None else evidence.removed
    # Of equal rows the first that no other rule removes is the one to keep.
    well = well[np.lexsort((well, removed[well]))]
    # A kind is part of the key: a single answer repeats no pair.
    keys = rows.content[well] ^ (rows.kind[well].astype(np.uint64) << np.uint64(56))
    _, first, places = np.unique(keys, return_index=True, return_inverse=True)
    kept = well[first[places]]
    partner = np.full(len(rows.kind), -1, dtype=np.int64)
    partner[well] = np.where(kept == well, -1, kept)
    return Found(partner >= 0, "same prompt and answers as another row, which is kept", partner=partner)


def _judged(evidence: Evidence) -> Bools:
    """Pairs that state a preference between two different answers of one prompt, bool (p,)."""
    pairs, rules = evidence.columns.pairs, evidence.columns.rows.rules
    mismatch = (rules[pairs.row] & BIT["prompt_mismatch"]) > 0
    return np.asarray(~pairs.tie & (pairs.chosen != pairs.rejected) & ~mismatch)


def _contradicted(evidence: Evidence) -> tuple[Bools, Rows]:
    """Pairs that another pair states the other way round, and one such other pair each (-1 without); both (p,)."""
    pairs = evidence.columns.pairs
    judged = np.flatnonzero(_judged(evidence))
    low = np.minimum(pairs.chosen[judged], pairs.rejected[judged])
    high = np.maximum(pairs.chosen[judged], pairs.rejected[judged])
    forward = pairs.chosen[judged] == low
    partner = np.full(len(pairs.row), -1, dtype=np.int64)
    if not len(judged):
        return partner >= 0, partner
    order = np.lexsort((judged, forward, high, low, pairs.prompt[judged]))
    key = np.stack([pairs.prompt[judged], low, high])[:, order]
    new_run = np.concatenate([[True], (key[:, 1:] != key[:, :-1]).any(axis=0)])
    run = np.cumsum(new_run) - 1
    forward, places = forward[order], judged[order]
    # Within a run the backward pairs come first: its first and its last pair disagree exactly when both ways are there.
    starts = np.flatnonzero(new_run)
    ends = np.append(starts[1:], len(order)) - 1
    both = forward[starts] != forward[ends]
    in_both = both[run]
    partner[places[in_both]] = np.where(forward, places[starts[run]], places[ends[run]])[in_both]
    return partner >= 0, partner


def _partners_of_rows(evidence: Evidence, pairs: Bools, partner: Rows) -> Rows:
    found = np.full(len(evidence.columns.ids), -1, dtype=np.int64)
    row = evidence.columns.pairs.row
    found[row[pairs]] = row[partner[pairs]]
    return found


def _contradiction(evidence: Evidence) -> Found:
    pairs, partner = _contradicted(evidence)
    message = "the same two answers, judged the other way in another row"
    return Found(evidence.rows_with(pairs), message, partner=_partners_of_rows(evidence, pairs, partner))


def _cycle(evidence: Evidence) -> Found:
    pairs = evidence.columns.pairs
    judged = np.flatnonzero(_judged(evidence) & ~_contradicted(evidence)[0])
    _, prompts, counts = np.unique(pairs.prompt[judged], return_inverse=True, return_counts=True)
    judged = judged[counts[prompts] >= 3]  # fewer pairs close no circle of three
    on_cycle = np.zeros(len(pairs.row), dtype=bool)
    if len(judged):
        answers = np.concatenate([pairs.chosen[judged], pairs.rejected[judged]])
        both = np.concatenate([pairs.prompt[judged]] * 2)
        _, nodes = np.unique(np.stack([both, answers]), axis=1, return_inverse=True)
        better, worse = nodes[: len(judged)], nodes[len(judged) :]
        size = int(nodes.max()) + 1
        graph = coo_matrix((np.ones(len(judged), dtype=np.int8), (better, worse)), shape=(size, size))
        component = connected_components(graph, directed=True, connection="strong")[1]
        on_cycle[judged] = component[better] == component[worse]
    return Found(evidence.rows_with(on_cycle), "A > B > C > A among the answers of one prompt")


def _near_duplicate(evidence: Evidence) -> Found | None:
    pairs = evidence.columns.pairs
    if not pairs.bands.shape[1]:
        return None
    removed = evidence.none() if evidence.removed is None else evidence.removed
    standing = np.flatnonzero(~removed[pairs.row])
    short = np.stack([pairs.prompt_length, pairs.chosen_length, pairs.rejected_length]) <= _SHORT_PART  # (3, p)

    def similar(i: Rows, j: Rows) -> Bools:
        alike: Bools = pairs.row[i] != pairs.row[j]
        alike &= near.similarity(pairs.sketch[i], pairs.sketch[j]) >= NEAR_PAIR
        for part in range(3):
            least = np.where(short[part, i] & short[part, j], _NEAR_SHORT_PART, _NEAR_PART)
            alike &= near.similarity(pairs.part_sketches[i, part], pairs.part_sketches[j, part]) >= least
        return alike

    first = near.repeats(pairs.bands, similar, rows=standing)[standing]
    partner = np.full(len(evidence.columns.ids), -1, dtype=np.int64)
    row = pairs.row[standing]
    # A group repeats another only when all its pairs do.
    repeats = np.bincount(row[first != standing], minlength=len(partner))
    whole = (repeats > 0) & (repeats == np.bincount(row, minlength=len(partner)))
    partner[row] = np.where(whole[row], pairs.row[first], -1)
    return Found(
        partner >= 0, f"prompt and both answers nearly those of an earlier row (Jaccard {NEAR_PAIR})", partner=partner
    )


def _eval_leak(evidence: Evidence) -> Found | None:
    if evidence.evaluation is None:
        return None
    ours, theirs = evidence.columns, evidence.evaluation
    # Rows without a prompt share "", which says nothing.
    named = ~evidence.kind("malformed") & ~evidence.bit("empty_prompt")
    rows = named & np.isin(ours.rows.prompt, theirs.rows.prompt)
    if not rows.any():
        return Found(rows)
    prompts = np.unique(ours.rows.prompt[rows])
    shared = int(np.isin(_unordered(ours), _unordered(theirs)).sum())
    in_eval = int(np.isin(theirs.rows.prompt, prompts).sum())
    return Found(
        rows,
        f"{len(prompts):,} prompts shared with {in_eval:,} eval rows; {shared:,} pairs are the very pairs of an eval row",
    )


def _unordered(columns: Columns) -> Hashes:
    """One number for a prompt and two answers, whichever was chosen, uint64 (p,)."""
    pairs = columns.pairs
    return pairs.prompt * np.uint64(0x9E3779B97F4A7C15) ^ (pairs.chosen + pairs.rejected)


def _benchmark_overlap(evidence: Evidence) -> Found | None:
    if not evidence.benchmarks:
        return None
    bits = evidence.columns.rows.benchmark
    counts = {name: int(((bits >> np.uint32(i)) & np.uint32(1)).sum()) for i, name in enumerate(evidence.benchmarks)}
    return Found(
        evidence.bit("benchmark_overlap"), ", ".join(f"{name}: {count:,} rows" for name, count in counts.items())
    )


def _truncated_equal(evidence: Evidence) -> Found | None:
    return None if evidence.truncated_equal is None else Found(evidence.truncated_equal)


def _suspect_label(evidence: Evidence) -> Found | None:
    return None if evidence.suspects is None else Found(evidence.suspects)


def _shortcut(name: str, more: str, less: str) -> Callable[[Evidence], Found]:
    def find(evidence: Evidence) -> Found:
        wins = evidence.statistics.get(name)
        if wins is None or wins.low <= 0.5 <= wins.high:
            return Found(evidence.none())
        winner, share = (more, wins) if wins.value > 0.5 else (less, _mirrored(wins))
        message = f"{winner} wins {_percent(share)} of {share.n:,} pairs"
        if worst := worst_slices(evidence.by, name)[:1]:
            where, there = worst[0]
            winner, there = (more, there) if there.value > 0.5 else (less, _mirrored(there))
            message += f"; most in {where}: {winner} {_percent(there)} of {there.n:,}"
        large = abs(wins.value - 0.5) >= _SHORTCUT
        return Found(evidence.none(), message, fires=True, severity="warning" if large else "info")

    return find


def _mirrored(wins: Estimate) -> Estimate:
    return Estimate(1 - wins.value, 1 - wins.high, 1 - wins.low, wins.n, wins.method)


def _percent(share: Estimate) -> str:
    return f"{share.value:.1%} [{share.low:.1%}, {share.high:.1%}]"


def _low_agreement(evidence: Evidence) -> Found:
    alpha = evidence.statistics.get("annotator_agreement")
    if alpha is None or alpha.high >= _LOW_AGREEMENT:
        return Found(evidence.none())
    return Found(evidence.none(), f"Krippendorff's alpha {alpha}", fires=True)


def _source_imbalance(evidence: Evidence) -> Found:
    for name in _SOURCE_COLUMNS:
        codes, values = evidence.columns.slices.get(name, (np.zeros(0, np.int16), []))
        counts = np.bincount(codes[codes >= 0], minlength=len(values))
        if len(values) > 1 and counts.max() >= _IMBALANCE * counts.min():
            most, least = int(counts.argmax()), int(counts.argmin())
            message = f"{name}: {values[most]} has {counts[most]:,} pairs, {values[least]} {counts[least]:,}"
            return Found(evidence.none(), message, fires=True)
    return Found(evidence.none())


_REMOVE = "Remove the rows (--fix does)."
RULES: tuple[Rule, ...] = (
    Rule("schema", "error", "remove", "Mend the rows where the message says, or leave them out (--fix does).", _schema),
    Rule("empty_answer", "error", "remove", _REMOVE, _marked("empty_answer", "an answer shows nothing")),
    Rule(
        "prompt_mismatch",
        "error",
        "remove",
        "Pair only answers of one prompt; --fix removes the rows.",
        _marked("prompt_mismatch", "the two sides of a pair answer different prompts"),
    ),
    Rule("equal_answers", "warning", "remove", _REMOVE, _equal_answers),
    Rule(
        "degenerate_answer",
        "warning",
        "remove",
        "Look at them: loops and bare signs teach nothing; --fix removes the rows.",
        _marked("degenerate_answer", "a long answer of a few words over and over, or nothing but signs"),
    ),
    Rule("exact_duplicate", "warning", "remove", "Keep the first (--fix does).", _exact_duplicate),
    Rule(
        "near_duplicate",
        "warning",
        "remove",
        "Keep the first (--fix does).",
        _near_duplicate,
        "near duplicates were switched off",
    ),
    Rule(
        "contradiction",
        "warning",
        "remove",
        "Decide which is right, or give votes; --fix removes both.",
        _contradiction,
    ),
    Rule("cycle", "warning", "remove", "Judge those answers again; --fix removes the rows on the circle.", _cycle),
    Rule(
        "label_disagreement",
        "warning",
        "remove",
        "Swap or remove (--fix removes).",
        _marked("label_disagreement", "the rejected answer has more votes or the higher rating"),
    ),
    Rule(
        "eval_leak",
        "warning",
        "remove",
        "Keep whole prompts on one side; --fix removes the rows from this source.",
        _eval_leak,
        "no --eval-data was given",
    ),
    Rule(
        "benchmark_overlap",
        "warning",
        "remove",
        "Remove the rows before reporting on that benchmark (--fix does).",
        _benchmark_overlap,
        "no --benchmark was given",
    ),
    Rule(
        "role_marker",
        "warning",
        "remove",
        "A transcript was split in the wrong place; --fix removes the rows.",
        _marked("role_marker", "an answer goes on with the marker of another turn"),
    ),
    Rule(
        "template_token",
        "warning",
        "none",
        "rewardsmith reads them as plain text; another tool may take them for control tokens.",
        _marked("template_token", "a text holds control tokens of chat templates"),
    ),
    Rule(
        "control_characters",
        "warning",
        "mend",
        "Delete the characters (--fix does).",
        _marked("control_characters", "invisible characters in a text"),
    ),
    Rule(
        "mojibake",
        "warning",
        "mend",
        "Decode the source rightly; --fix repairs the text.",
        _marked("mojibake", "a text was decoded with the wrong encoding"),
    ),
    Rule(
        "truncated_equal",
        "warning",
        "remove",
        "Raise max_length, or remove the rows (--fix does).",
        _truncated_equal,
        "no --tokenizer was given",
    ),
    Rule(
        "suspect_label",
        "warning",
        "remove",
        "Read them before you believe it; --fix removes the rows.",
        _suspect_label,
        "no --suspects model was given",
    ),
    Rule(
        "longer_wins",
        "warning",
        "none",
        "Balance lengths, or check the trained model against the baseline `longer`.",
        _shortcut("longer_wins", "the longer answer", "the shorter answer"),
    ),
    Rule(
        "markdown_wins",
        "warning",
        "none",
        "Balance formats, or check the trained model against the baseline `markdown`.",
        _shortcut("markdown_wins", "the answer with more Markdown", "the answer with less Markdown"),
    ),
    Rule(
        "list_wins",
        "warning",
        "none",
        "Balance formats.",
        _shortcut("list_wins", "the answer with a list", "the answer without a list"),
    ),
    Rule(
        "apology_wins",
        "warning",
        "none",
        "Check whether apologies should win in this data.",
        _shortcut("apology_wins", "the apologising answer", "the answer without apology"),
    ),
    Rule(
        "refusal_wins",
        "warning",
        "none",
        "Check whether refusals should win in this data.",
        _shortcut("refusal_wins", "the refusing answer", "the answer that does not refuse"),
    ),
    Rule(
        "order_bias",
        "warning",
        "none",
        "Show answers in random order; balance the order that was shown.",
        _shortcut("first_shown_wins", "the answer shown first", "the answer shown second"),
    ),
    Rule(
        "low_agreement",
        "warning",
        "none",
        "Annotators hardly agree: collect more votes a pair, or train with vote shares.",
        _low_agreement,
    ),
    Rule(
        "empty_prompt",
        "warning",
        "none",
        "Give each row its prompt; rows without one count as one prompt in splits and intervals.",
        _marked("empty_prompt", "the prompt shows nothing"),
    ),
    Rule(
        "replacement_character",
        "info",
        "none",
        "A decoder gave up on these texts: fetch them again if you can.",
        _marked("replacement_character", "a text holds U+FFFD"),
    ),
    Rule(
        "role_order",
        "info",
        "none",
        "Roles should alternate from user to assistant after one system message.",
        _marked("role_order", "turns that do not alternate"),
    ),
    Rule(
        "mixed_language",
        "info",
        "none",
        "A model can tell the sides apart by the script alone.",
        _marked("mixed_language", "chosen and rejected are written in different scripts"),
    ),
    Rule(
        "labelled_tie",
        "info",
        "none",
        "Ties train only losses made for them, and stand outside accuracy.",
        _marked("labelled_tie", "annotators called the two equal"),
    ),
    Rule("source_imbalance", "info", "none", "Report results by source.", _source_imbalance),
)
RULE_NAMES = tuple(rule.name for rule in RULES)
