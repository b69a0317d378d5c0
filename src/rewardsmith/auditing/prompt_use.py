"""How much of what a scorer knows needs the prompt: accuracies with it, with another one and with none; answers to it told from answers to others.

docs/prompt_use.md says how to read the numbers. A tie is one half everywhere. Legend: `n` pairs, `R` bootstrap resamples.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from rich.markup import escape
from rich.table import Table

from rewardsmith.auditing.probes.prompt_use import NO_PROMPT, Prompts
from rewardsmith.auditing.trials import score_all, subjects_of
from rewardsmith.data.faults import content_fault
from rewardsmith.data.schema import Pair, Preference, Prompt, prompt_key
from rewardsmith.errors import DataError
from rewardsmith.metrics import wins
from rewardsmith.scores import Scorer, Scores
from rewardsmith.significance import LEVEL, holm, paired_test
from rewardsmith.stats import Estimate, Floats, cluster_bootstrap, cluster_codes, mean, proportion, wilson

Codes: TypeAlias = NDArray[np.int64]
Known: TypeAlias = Mapping[tuple[str, str], float]
"""{(key of the prompt, answer): score}."""

MEASURES = {
    "accuracy": "preferred over rejected, own prompt",
    "accuracy_wrong_prompt": "preferred over rejected, another prompt",
    "accuracy_no_prompt": "preferred over rejected, no prompt",
    "match": "own preferred answer over that to another prompt",
    "match_hard": "own preferred answer over that to a similar prompt",
    "off_topic_beats_rejected": "preferred answer to another prompt over the rejected one",
    "hard_negative_beats_rejected": "preferred answer to a similar prompt over the rejected one",
}
"""Each is the share of pairs in which the first text scores higher than the second."""
INDICES = {
    "index": ("accuracy_wrong_prompt", "share of the skill that needs the prompt"),
    "index_no_prompt": ("accuracy_no_prompt", "the same, against no prompt at all"),
}
"""(A - A_other) / (A - 1/2), A_other being the accuracy named here: 0 where the prompt changes nothing, 1 where without it nothing is left."""


@dataclass(frozen=True)
class PromptUse:
    """What a scorer makes of the prompts of some pairs.

    Args:
        ids: (n,) of the pairs.
        clusters: (n,) codes of their prompts.
        outcomes: by measure, (n,): 1, 0, 0.5 for a tie, NaN where no other prompt fits.
        estimates: by measure; None where it applies to no pair.
        indices: by name of `INDICES`; None where there is no skill to share out.
        why_not: why an index is None.
        mean_cosine: of the similar prompts; None where there are none.
        left_out: pairs that were not looked at, by reason.
        texts: a hash of everything that was scored: two scorers are compared on the same texts.
    """

    ids: tuple[str, ...] = field(repr=False)
    clusters: Codes = field(repr=False)
    outcomes: dict[str, Floats] = field(repr=False)
    estimates: dict[str, Estimate | None]
    indices: dict[str, Estimate | None]
    why_not: dict[str, str]
    mean_cosine: float | None
    left_out: dict[str, int]
    texts: str

    @property
    def reading(self) -> str:
        """The numbers in a few sentences."""
        at = self.estimates
        sentences = [
            f"With their own prompts the scorer is right on {_share(at['accuracy'])} of the pairs, "
            f"with other prompts on {_share(at['accuracy_wrong_prompt'])}, with none on {_share(at['accuracy_no_prompt'])}."
        ]
        index = self.indices["index"]
        if index is None:
            sentences.append(f"How much of its skill needs the prompt cannot be said: {self.why_not['index']}.")
        else:
            sentences.append(f"Of what it knows beyond chance, {index.value:.2f} {_interval(index)} needs the prompt.")
        if at["match"] is not None:
            hard = "" if at["match_hard"] is None else f" ({_share(at['match_hard'])} where the prompts are similar)"
            sentences.append(
                f"It puts the preferred answer over one to another prompt in {_share(at['match'])}{hard}, "
                f"and that one over the rejected answer in {_share(at['off_topic_beats_rejected'])}."
            )
        return " ".join(sentences)

    def as_dict(self) -> dict[str, Any]:
        """The section `prompt_use` of the audit's document."""
        return {
            "num_pairs": len(self.ids),
            "num_prompts": int(self.clusters.max()) + 1,
            "left_out": self.left_out,
            **{name: _document(estimate) for name, estimate in self.estimates.items()},
            **{name: _document(estimate) for name, estimate in self.indices.items()},
            "why_not": self.why_not,
            "mean_cosine_of_similar_prompts": self.mean_cosine,
            "reading": self.reading,
        }


def measure_prompt_use(
    scorer: Scorer,
    pairs: Sequence[Preference],
    *,
    seed: int = 0,
    known: Known | None = None,
    on_texts: Callable[[int], None] | None = None,
) -> PromptUse:
    """Score the pairs' answers under their own prompts, others and none.

    Args:
        scorer: anything that scores.
        pairs: labelled pairs; those labelled as ties and those with a fault of content are left out and counted.
        seed: of the other prompts and the bootstrap; with the same seed and the same pairs they are those of the probes.
        known: scores that need not be asked for again; see `known_scores`.
        on_texts: called with the number of texts scored so far.

    Raises:
        DataError: if fewer than two prompts are left.
        ScoreError: if a score is missing or not finite.
    """
    faults = [_fault(pair) for pair in pairs]
    judged = [pair for pair, fault in zip(pairs, faults, strict=True) if fault is None]
    keys = [prompt_key(pair.prompt) for pair in judged]
    if len(set(keys)) < 2:
        raise DataError(
            "decided pairs of at least two prompts",
            f"{len(set(keys))} prompts in {len(pairs):,} pairs",
            "Give more pairs: prompts are exchanged between them.",
        )
    asked = _Asked.of(judged, seed)
    scores = _scores(scorer, asked, known or {}, on_texts)
    outcomes = {name: asked.outcomes(name, scores) for name in MEASURES}
    clusters = cluster_codes(keys)
    estimates = {name: _proportion(values, clusters, seed) for name, values in outcomes.items()}
    indices, why_not = _indices(outcomes, clusters, estimates["accuracy"], seed)
    return PromptUse(
        ids=tuple(pair.id for pair in judged),
        clusters=clusters,
        outcomes=outcomes,
        estimates=estimates,
        indices=indices,
        why_not=why_not,
        mean_cosine=asked.mean_cosine,
        left_out=dict(Counter(fault for fault in faults if fault is not None)),
        texts=asked.fingerprint(),
    )


def known_scores(pairs: Sequence[Pair], scores: Scores) -> dict[tuple[str, str], float]:
    """Scores by prompt and answer, for `measure_prompt_use`."""
    return {(prompt_key(prompt), answer): score for (prompt, answer), score in zip(pairs, scores.tolist(), strict=True)}


def _fault(pair: Preference) -> str | None:
    return "labelled_tie" if pair.tie else content_fault(pair)


@dataclass(frozen=True)
class _Asked:
    """By measure, the two texts of each pair whose scores are compared; None where no other prompt fits."""

    texts: dict[str, list[tuple[Pair, Pair] | None]]
    mean_cosine: float | None

    @classmethod
    def of(cls, pairs: Sequence[Preference], seed: int) -> _Asked:
        prompts = Prompts(subjects_of(pairs), seed)
        others, similars = prompts.others(), prompts.similar()
        other, similar = ([None if row < 0 else pairs[row] for row in one.rows.tolist()] for one in (others, similars))

        def under(prompts: Sequence[Prompt | None]) -> list[tuple[Pair, Pair] | None]:
            return [
                None if prompt is None else ((prompt, pair.chosen), (prompt, pair.rejected))
                for pair, prompt in zip(pairs, prompts, strict=True)
            ]

        def lent(lenders: Sequence[Preference | None], *, over_own: bool) -> list[tuple[Pair, Pair] | None]:
            """The lent answer against the rejected one, or the pair's own preferred answer against the lent one."""
            texts: list[tuple[Pair, Pair] | None] = []
            for pair, lender in zip(pairs, lenders, strict=True):
                if lender is None:
                    texts.append(None)
                    continue
                foreign = (pair.prompt, lender.chosen)
                texts.append((pair.chosen_pair, foreign) if over_own else (foreign, pair.rejected_pair))
            return texts

        cosines = similars.cosines[similars.rows >= 0]
        return cls(
            {
                "accuracy": under([pair.prompt for pair in pairs]),
                "accuracy_wrong_prompt": under([None if one is None else one.prompt for one in other]),
                "accuracy_no_prompt": under([NO_PROMPT] * len(pairs)),
                "match": lent(other, over_own=True),
                "match_hard": lent(similar, over_own=True),
                "off_topic_beats_rejected": lent(other, over_own=False),
                "hard_negative_beats_rejected": lent(similar, over_own=False),
            },
            float(cosines.mean()) if len(cosines) else None,
        )

    def all(self) -> list[Pair]:
        """Every text, each once."""
        texts = [text for both in self.texts.values() for one in both if one is not None for text in one]
        return list({(prompt_key(prompt), answer): (prompt, answer) for prompt, answer in texts}.values())

    def outcomes(self, name: str, scores: Known) -> Floats:
        """1 where the first text scores higher, 0 where the second does; NaN where there are none."""
        margins = [
            np.nan if one is None else _score(scores, one[0]) - _score(scores, one[1]) for one in self.texts[name]
        ]
        return wins(np.array(margins, dtype=np.float64))

    def fingerprint(self) -> str:
        """A hash of the texts in their order."""
        digest = hashlib.sha256()
        for prompt, answer in self.all():
            digest.update(f"{prompt_key(prompt)}\x1d{answer}\x1c".encode("utf-8", "surrogatepass"))
        return digest.hexdigest()


def _score(scores: Known, text: Pair) -> float:
    return scores[prompt_key(text[0]), text[1]]


def _scores(scorer: Scorer, asked: _Asked, known: Known, on_texts: Callable[[int], None] | None) -> Known:
    """All scores that are needed, those that are not known asked for."""
    unknown = [(prompt, answer) for prompt, answer in asked.all() if (prompt_key(prompt), answer) not in known]
    found = score_all(scorer, unknown, on_texts=on_texts)
    return {**known, **known_scores(unknown, found.scores)}


def _proportion(values: Floats, clusters: Codes, seed: int) -> Estimate | None:
    there = ~np.isnan(values)
    return proportion(values[there], cluster_codes(clusters[there]), seed=seed) if there.any() else None


def _indices(
    outcomes: Mapping[str, Floats], clusters: Codes, accuracy: Estimate | None, seed: int
) -> tuple[dict[str, Estimate | None], dict[str, str]]:
    indices: dict[str, Estimate | None] = {}
    why_not: dict[str, str] = {}
    for name, (other, _) in INDICES.items():
        there = ~np.isnan(outcomes[other])
        indices[name] = None
        if not there.any():
            why_not[name] = "no other prompt fits"
        elif accuracy is None or accuracy.low <= 0.5:
            why_not[name] = f"the accuracy under the pairs' own prompts, {accuracy}, is not told from one half"
        else:
            own, foreign = outcomes["accuracy"][there], outcomes[other][there]
            indices[name] = _index(own, foreign, cluster_codes(clusters[there]), seed)
    return indices, why_not


def _index(own: Floats, other: Floats, clusters: Codes, seed: int) -> Estimate:
    """(A - A_other) / (A - 1/2) with a bootstrap interval over prompts; A is above one half."""
    found = cluster_bootstrap(lambda weights: _ratios(weights, own, other), clusters, seed=seed)
    if found.low < found.high:
        return found
    # Outcomes that are all alike are alike in every resample; Wilson on the number of prompts says how many others so few could hide.
    num_prompts = int(clusters.max()) + 1
    reach = wilson(0, num_prompts).high / max(float(own.mean()) - 0.5, 0.5 / len(own))
    return Estimate(found.value, found.value - reach, found.value + reach, found.n, f"wilson on {num_prompts} prompts")


def _ratios(weights: Floats, own: Floats, other: Floats) -> Floats:
    """The index of each resample; (R, n) -> (R,)."""
    totals = weights.sum(axis=1)
    skill = weights @ (own - 0.5) / totals
    # A resample without skill has an index without bound; half a pair beyond chance is the least that n pairs can show.
    return np.asarray(weights @ (own - other) / totals / np.maximum(skill, 0.5 / len(own)))


@dataclass(frozen=True)
class PromptUseChange:
    """Two scorers on the same texts: what a cure has changed. The document of `as_dict` has one row a measure."""

    document: dict[str, Any]

    @property
    def reading(self) -> str:
        """The change in one sentence a number."""
        return str(self.document["reading"])

    def as_dict(self) -> dict[str, Any]:
        """The document."""
        return self.document


def compare_prompt_use(
    before: PromptUse, after: PromptUse, *, names: tuple[str, str] = ("before", "after"), seed: int = 0
) -> PromptUseChange:
    """Hold two scorers against each other pair by pair, for example a model and the same one trained with prompt_swap.

    Args:
        before: of the one scorer.
        after: of the other.
        names: of the two, for the document.
        seed: of bootstraps and sign flips.

    Raises:
        DataError: if the two were not measured on the same texts.
    """
    if before.texts != after.texts:
        raise DataError(
            "two scorers measured on the same pairs with the same seed",
            f"{len(before.ids):,} and {len(after.ids):,} pairs with other texts",
            "Measure both with `measure_prompt_use` on the same pairs, with one seed.",
        )
    rows = {name: _change(name, before, after, seed) for name in MEASURES if before.estimates[name] is not None}
    for row, adjusted in zip(rows.values(), holm([row["p_value"] for row in rows.values()]), strict=True):
        row["p_adjusted"] = adjusted
    indices = {name: _index_change(name, other, before, after, seed) for name, (other, _) in INDICES.items()}
    document = {
        "names": list(names),
        "num_pairs": len(before.ids),
        "num_prompts": int(before.clusters.max()) + 1,
        "measures": rows,
        "indices": indices,
        "reading": _change_reading(rows, indices),
    }
    return PromptUseChange(document)


def _change(name: str, before: PromptUse, after: PromptUse, seed: int) -> dict[str, Any]:
    there = ~np.isnan(before.outcomes[name])
    differences = after.outcomes[name][there] - before.outcomes[name][there]
    clusters = cluster_codes(before.clusters[there])
    return {
        "before": _document(before.estimates[name]),
        "after": _document(after.estimates[name]),
        "difference": mean(differences, clusters, seed=seed).as_dict(),
        "p_value": paired_test(differences, clusters, seed=seed).p_value,
    }


def _index_change(name: str, other: str, before: PromptUse, after: PromptUse, seed: int) -> dict[str, Any]:
    row = {"before": _document(before.indices[name]), "after": _document(after.indices[name]), "difference": None}
    if before.indices[name] is None or after.indices[name] is None:
        return row
    there = ~np.isnan(before.outcomes[other])
    sides = [(one.outcomes["accuracy"][there], one.outcomes[other][there]) for one in (after, before)]
    difference = cluster_bootstrap(
        lambda weights: _ratios(weights, *sides[0]) - _ratios(weights, *sides[1]),
        cluster_codes(before.clusters[there]),
        seed=seed,
    )
    return row | {"difference": difference.as_dict()}


def _change_reading(rows: Mapping[str, Mapping[str, Any]], indices: Mapping[str, Mapping[str, Any]]) -> str:
    parts = [
        f"{says}: {row['before']['value']:.3f} -> {row['after']['value']:.3f} ({_change_of(row)})"
        for says, row in [
            *((MEASURES[name], row) for name, row in rows.items()),
            *((INDICES[name][1], row) for name, row in indices.items() if row["difference"] is not None),
        ]
    ]
    told = [name for name, row in rows.items() if row["p_adjusted"] < LEVEL]
    if not told:
        return f"{'; '.join(parts)}. None of these measures is told apart beyond chance."
    return f"{'; '.join(parts)}. Told apart beyond chance: {', '.join(told)}."


def _change_of(row: Mapping[str, Any]) -> str:
    difference = row["difference"]
    return f"{difference['value']:+.3f} [{difference['low']:+.3f}, {difference['high']:+.3f}]"


def change_table(document: Mapping[str, Any], title: str) -> Table:
    """The table of before and after, from `PromptUseChange.as_dict`."""
    table = Table(title=escape(title), title_justify="left")
    table.add_column("")
    for column in (*(escape(name) for name in document["names"]), "difference, paired", "p (Holm)"):
        table.add_column(column, justify="right")
    for name, row in document["measures"].items():
        table.add_row(MEASURES[name], *_cells(row), f"{row['p_adjusted']:.2g}")
    table.add_section()
    for name, row in document["indices"].items():
        table.add_row(INDICES[name][1], *_cells(row), "")
    return table


def _cells(row: Mapping[str, Any]) -> list[str]:
    sides = ["-" if row[side] is None else f"{row[side]['value']:.3f}" for side in ("before", "after")]
    return [*sides, "-" if row["difference"] is None else escape(_change_of(row))]


def _document(estimate: Estimate | None) -> dict[str, Any] | None:
    return None if estimate is None else estimate.as_dict()


def _share(estimate: Estimate | None) -> str:
    return "none" if estimate is None else f"{estimate.value:.3f} {_interval(estimate)}"


def _interval(estimate: Estimate) -> str:
    return f"[{estimate.low:.3f}, {estimate.high:.3f}]"
