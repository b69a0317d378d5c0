"""Best-of-n: of several answers to a prompt, the one that a reward model scores highest, with the full ranking, and whether the choice can be relied on.

The runner-up is the best *other* text. Equal scores are ranked by a number that the seed and the texts give, so that the order of a file decides nothing; expectations share them evenly.

Legend: `G` groups, `N` candidates of a group, `P` candidates of all groups end to end.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np

from rewardsmith.auditing.best_of_n import Ints, kl_of_best_of
from rewardsmith.auditing.draws import draw_key, text_code
from rewardsmith.auditing.ensembles import Rule
from rewardsmith.auditing.pools import Candidate, Candidates, Pool
from rewardsmith.data.schema import prompt_key
from rewardsmith.errors import DataError, SettingsError
from rewardsmith.functions import Function, as_scorer
from rewardsmith.metrics import win_probabilities
from rewardsmith.scores import Scorer
from rewardsmith.stats import Estimate, Floats, cluster_codes, mean, proportion
from rewardsmith.use.candidates import EnsembleScores, PoolScores, score_pool, score_together
from rewardsmith.use.selection_curve import SelectionCurve, selection_curve
from rewardsmith.use.soft_best import check_temperature, kl_of_choice, soft_draw, soft_weights

_TIE_WARNING = 0.01


@dataclass(frozen=True, slots=True)
class Abstention:
    """When a choice is too close to be made.

    Args:
        by: "probability" that the best answer beats the runner-up, at the model's temperature; or "margin" between their scores.
        below: abstain under this.
    """

    by: Literal["probability", "margin"]
    below: float

    def __post_init__(self) -> None:
        """Refuse a rule that never holds, or always.

        Raises:
            SettingsError: at another `by`, a probability outside of 0.5 to 1, or a margin that is not above 0.
        """
        if self.by not in ("probability", "margin"):
            raise SettingsError("to abstain by the probability or the margin", f"by {self.by!r}", "Name one of them.")
        if self.by == "probability" and not 0.5 < self.below <= 1:
            raise SettingsError(
                "a probability above 0.5, at most 1, to abstain below",
                f"{self.below:g}",
                "The best answer beats the runner-up with at least 0.5: give for example 0.6.",
            )
        if self.by == "margin" and not (np.isfinite(self.below) and self.below > 0):
            raise SettingsError("a finite margin above 0 to abstain below", f"{self.below:g}", "Give a larger one.")


def check_abstention(abstain: Abstention | None, temperature: float | None, name: str) -> None:
    """Refuse to ask for probabilities that a model cannot give.

    Raises:
        SettingsError: if the rule goes by probability and there is no temperature.
    """
    if abstain is not None and abstain.by == "probability" and temperature is None:
        raise SettingsError(
            "a stored temperature, for the probability that the best answer beats the runner-up",
            f"none with {name}",
            "Fit one to its folder with `rewardsmith calibrate MODEL PAIRS`, or abstain by the margin of scores.",
        )


@dataclass(frozen=True, slots=True)
class Choice:
    """What became of one group.

    Args:
        ranking: places of its candidates, best first, (N,).
        taken: the place of the answer that is taken: the first of the ranking, or with soft best-of-n a drawn one.
        runner_up: the place of the best other text; None where there is none.
        num_tied: other texts that score as high as the best one.
        margin: score of the best one minus that of the runner-up.
        probability: that the best one beats the runner-up.
        reason: why no answer is vouched for; None where one is.
    """

    ranking: tuple[int, ...]
    taken: int
    runner_up: int | None
    num_tied: int
    margin: float | None
    probability: float | None
    reason: str | None

    @property
    def is_abstained(self) -> bool:
        """Whether the two best are too close."""
        return self.reason is not None


@dataclass(frozen=True)
class BestAnswers:
    """The choices of a pool, and what is to be known of them.

    Args:
        pool: of candidates.
        scored: their scores.
        choices: one a group.
        temperature: of probabilities; None where there is none.
        soft: the temperature of soft best-of-n; None for best-of-n.
        abstain: when a choice is too close.
        ensemble: where the scores are those of several models.
        seed: of ties, draws and intervals.
    """

    pool: Pool
    scored: PoolScores
    choices: list[Choice]
    temperature: float | None = None
    soft: float | None = None
    abstain: Abstention | None = None
    ensemble: EnsembleScores | None = None
    seed: int = 0

    def taken(self) -> list[Candidate]:
        """The answer that is taken of each group, abstained or not, (G,)."""
        return [group.answers[one.taken] for group, one in zip(self.pool.groups, self.choices, strict=True)]

    def group_scores(self) -> list[Floats]:
        """The scores of each group's candidates, G arrays (N,)."""
        return np.split(self.scored.scores, self.pool.starts[1:-1])

    @cached_property
    def curve(self) -> SelectionCurve:
        """What more candidates buy."""
        return selection_curve(self.scored.scores, self._labels, self.pool.starts, self._clusters, seed=self.seed)

    @cached_property
    def _clusters(self) -> Ints:
        """The code of each group's prompt, (G,)."""
        return cluster_codes(self.pool.prompts())

    @cached_property
    def _labels(self) -> Floats:
        """(P,), NaN for all candidates of a group of which one has no label."""
        labels = np.array([np.nan if one.label is None else one.label for one in self.pool.candidates()])
        starts = self.pool.starts
        return np.where(np.isnan(np.repeat(np.add.reduceat(labels, starts[:-1]), np.diff(starts))), np.nan, labels)

    @cached_property
    def _weights(self) -> list[Floats]:
        """How likely each candidate of a group is to be taken; of equal best scores each one equally."""
        if self.soft is not None:
            return [soft_weights(scores, self.soft) for scores in self.group_scores()]
        return [(scores == scores.max()) / (scores == scores.max()).sum() for scores in self.group_scores()]

    def _expected(self, values: Floats) -> Floats:
        """What is expected of the taken answers, from (P,) to (G,)."""
        return np.add.reduceat(np.concatenate(self._weights) * values, self.pool.starts[:-1])

    def _group_means(self, values: Floats) -> Floats:
        return np.add.reduceat(values, self.pool.starts[:-1]) / self.pool.sizes

    def _mean(self, values: Floats, groups: Ints | None = None) -> Estimate | None:
        """The mean over groups; None where there is none."""
        return self._over(mean, values, groups)

    def _share(self, values: Floats, groups: Ints | None = None) -> Estimate | None:
        return self._over(proportion, np.clip(values, 0.0, 1.0), groups)

    def _over(self, estimate: Callable[..., Estimate], values: Floats, groups: Ints | None) -> Estimate | None:
        clusters = self._clusters
        if groups is not None:
            values, clusters = values[groups], cluster_codes(clusters[groups])
        return estimate(values, clusters, seed=self.seed) if len(values) else None

    @cached_property
    def contested(self) -> Ints:
        """Groups with two different texts or more."""
        return np.flatnonzero([one.runner_up is not None for one in self.choices])

    @cached_property
    def num_duplicates(self) -> int:
        """Candidates whose text their group holds already."""
        return sum(len(group.answers) - len({one.answer for one in group.answers}) for group in self.pool.groups)

    @cached_property
    def num_collapsed(self) -> int:
        """Groups whose two best texts are the same to the model, since what tells them apart was cut."""
        digests = self.scored.digests
        if digests is None:
            return 0
        starts = self.pool.starts
        best = [starts[g] + self.choices[g].ranking[0] for g in self.contested]
        second = [starts[g] + self.choices[g].runner_up for g in self.contested]
        return int((digests[best] == digests[second]).sum()) if best else 0

    @cached_property
    def ties(self) -> Estimate | None:
        """The share of groups whose two best texts have equal scores; None where no group has two."""
        return self._share(np.array([float(one.num_tied > 0) for one in self.choices]), self.contested)

    @cached_property
    def abstained(self) -> Estimate | None:
        """The share of groups of which no answer is vouched for; None without a rule, or where no group has two texts."""
        if self.abstain is None:
            return None
        return self._share(np.array([float(one.is_abstained) for one in self.choices]), self.contested)

    def rows(self, *, with_drawn: bool = False) -> list[dict[str, Any]]:
        """One row a group, in order, which is a single answer to every reader; with its candidates (`drawn`) where no file of the user's holds them."""
        truncated = self.scored.truncated
        parts = None if truncated is None else np.split(truncated, self.pool.starts[1:-1])
        found = []
        for g, (group, choice, scores) in enumerate(
            zip(self.pool.groups, self.choices, self.group_scores(), strict=True)
        ):
            taken = group.answers[choice.taken]
            row: dict[str, Any] = {
                "id": group.id,
                "prompt": group.prompt,
                "answer": taken.answer,
                "score": float(scores[choice.taken]),
                "taken": choice.taken,
                "ranking": list(choice.ranking),
                "scores": scores.tolist(),
                "num_candidates": len(group.answers),
                "num_distinct": len({one.answer for one in group.answers}),
                "num_tied": choice.num_tied,
                "margin": choice.margin,
                "probability": choice.probability,
                "abstained": choice.is_abstained,
                "reason": choice.reason,
                "is_cut": taken.is_cut,
                "truncated": None if parts is None else bool(parts[g][choice.taken]),
            }
            if with_drawn:
                row["drawn"] = [{"answer": one.answer, "is_cut": one.is_cut} for one in group.answers]
            found.append(row)
        return found

    def as_dict(self) -> dict[str, Any]:
        """The keys of the document."""
        sizes = self.pool.sizes
        return {
            "num_prompts": len(set(self.pool.prompts())),
            "num_groups": len(self.pool.groups),
            "num_candidates": int(sizes.sum()),
            "candidates_per_group": {"least": int(sizes.min()), "most": int(sizes.max())},
            "num_texts": self.scored.num_texts,
            "duplicates": self.num_duplicates,
            "uncontested": len(self.choices) - len(self.contested),
            "truncated": None if self.scored.truncated is None else int(self.scored.truncated.sum()),
            "cut": sum(one.is_cut for one in self.pool.candidates()),
            "cut_taken": sum(one.is_cut for one in self.taken()),
            "prompts_cut": sum(group.prompt_cut > 0 for group in self.pool.groups),
            "collapsed": self.num_collapsed,
            "ties": _maybe(self.ties),
            "mean_score": _maybe(self._mean(self._group_means(self.scored.scores))),
            "best_score": _maybe(self._mean(np.maximum.reduceat(self.scored.scores, self.pool.starts[:-1]))),
            "margin": _maybe(self._mean(np.array([one.margin or 0.0 for one in self.choices]), self.contested)),
            "kl": self._kl(),
            "curve": [point.as_dict() for point in self.curve.points],
            "curve_groups": self.curve.num_groups,
            "labels": self._label_document,
            "soft": self._soft_document(),
            "abstained": _maybe(self.abstained),
            "abstention": self._abstention_document(),
            "ensemble": self._ensemble_document(),
            "warnings": self.warnings(),
        }

    def _kl(self) -> dict[str, Any]:
        """Of best-of-n with all candidates, the mean over groups; see `kl_of_best_of`."""
        equal = any(len(np.unique(scores)) < len(scores) for scores in self.group_scores())
        return {"value": float(kl_of_best_of(self.pool.sizes).mean()), "is_upper_bound": equal}

    def _told(self) -> Ints:
        """Groups of which labels tell a best answer from others."""
        starts = self.pool.starts[:-1]
        return np.flatnonzero(np.maximum.reduceat(self._labels, starts) > np.minimum.reduceat(self._labels, starts))

    def _is_best(self) -> Floats:
        best = np.maximum.reduceat(self._labels, self.pool.starts[:-1])
        return np.asarray(self._labels == np.repeat(best, self.pool.sizes), dtype=np.float64)

    @cached_property
    def _label_document(self) -> dict[str, Any] | None:
        """What labels say of the taken answers; None where there are none."""
        labelled = np.flatnonzero(np.isfinite(np.add.reduceat(self._labels, self.pool.starts[:-1])))
        if not len(labelled):
            return None
        labels, told, is_best = np.nan_to_num(self._labels), self._told(), self._is_best()
        taken, blind = self._expected(labels), self._group_means(labels)
        return {
            "num_groups": len(labelled),
            "all_equal": len(labelled) - len(told),
            "label": _maybe(self._mean(taken, labelled)),
            "label_blindly": _maybe(self._mean(blind, labelled)),
            "label_gain": _maybe(self._mean(taken - blind, labelled)),
            "accuracy": _maybe(self._share(self._expected(is_best), told)),
            "chance": float(self._group_means(is_best)[told].mean()) if len(told) else None,
            "best_beats_runner_up": self._probability_document(),
        }

    def _probability_document(self) -> dict[str, Any] | None:
        """The stated probability beside how often labels agree, of groups whose two best texts have different labels."""
        found = [
            (g, one.probability, self._labels[self.pool.starts[g] + np.array([one.ranking[0], one.runner_up])])
            for g, one in enumerate(self.choices)
            if one.probability is not None
        ]
        found = [(g, stated, pair) for g, stated, pair in found if np.isfinite(pair).all() and pair[0] != pair[1]]
        if not found:
            return None
        groups = np.array([g for g, _, _ in found])
        stated, right = np.zeros(len(self.choices)), np.zeros(len(self.choices))
        stated[groups] = [one for _, one, _ in found]
        # Where the two score alike, it is the seed that put one of them first.
        right[groups] = [0.5 if self.choices[g].margin == 0 else float(pair[0] > pair[1]) for g, _, pair in found]
        return {"stated": _maybe(self._mean(stated, groups)), "found": _maybe(self._share(right, groups))}

    def _soft_document(self) -> dict[str, Any] | None:
        if self.soft is None:
            return None
        kls = np.array([kl_of_choice(weights) for weights in self._weights])
        tops = np.maximum.reduceat(self.scored.scores, self.pool.starts[:-1])
        tops = (self.scored.scores == np.repeat(tops, self.pool.sizes)).astype(np.float64)
        kl = self._mean(kls)
        assert kl is not None
        return {
            "temperature": self.soft,
            "score": _maybe(self._mean(self._expected(self.scored.scores))),
            "takes_best": _maybe(self._share(self._expected(tops))),
            "kl": kl.as_dict(),
            # No choice among n independent draws moves further than best-of-n, which gives every set of answers the most that any choice can give it.
            "kl_at_most": min(kl.value, self._kl()["value"]),
        }

    def _abstention_document(self) -> dict[str, Any] | None:
        if self.abstain is None:
            return None
        document: dict[str, Any] = {
            "by": self.abstain.by,
            "below": self.abstain.below,
            "count": sum(one.is_abstained for one in self.choices),
        }
        right, told = self._expected(self._is_best()), self._told()
        told = told[np.isin(told, self.contested)]
        gone = np.array([self.choices[g].is_abstained for g in told], dtype=bool)
        for name, groups in (("kept", told[~gone]), ("abstained", told[gone])):
            document[f"accuracy_{name}"] = _maybe(self._share(right, groups))
        return document

    def _ensemble_document(self) -> dict[str, Any] | None:
        """How the members were combined, and how often all of them rank one text of the group highest."""
        if self.ensemble is None:
            return None
        starts = self.pool.starts
        together = np.zeros(len(self.choices))
        for g, group in enumerate(self.pool.groups):
            rows = [scores[starts[g] : starts[g + 1]] for scores in self.ensemble.members.values()]
            best = [{group.answers[i].answer for i in np.flatnonzero(row == row.max())} for row in rows]
            together[g] = float(bool(set.intersection(*best)))
        return {
            "rule": self.ensemble.rule,
            "k": self.ensemble.k if self.ensemble.rule == "lower confidence" else None,
            "members": {name: one.as_dict() for name, one in self.ensemble.standards.items()},
            "same_best": _maybe(self._share(together, self.contested)),
        }

    def warnings(self) -> list[str]:
        """What a reader should know before the answers are used."""
        said = []
        num_cut, num_taken = sum(one.is_cut for one in self.pool.candidates()), sum(one.is_cut for one in self.taken())
        if num_cut:
            said.append(
                f"{num_cut:,} of {int(self.pool.sizes.sum()):,} candidates are unfinished, {num_taken:,} of the taken answers among them: raise --max-new-tokens"
            )
        if num_read := sum(group.prompt_cut > 0 for group in self.pool.groups):
            said.append(f"{num_read:,} prompts were not read whole by the policy")
        if self.scored.truncated is not None and self.scored.truncated.any():
            said.append(f"{int(self.scored.truncated.sum()):,} candidates were cut before they were scored")
        if self.num_collapsed:
            said.append(f"in {self.num_collapsed:,} groups the two best texts are the same after that cut: ties")
        if self.ties is not None and self.ties.value > _TIE_WARNING:
            said.append(
                f"in {100 * self.ties.value:.1f} % of the groups the two best texts have equal scores: the seed decides"
            )
        if uncontested := len(self.choices) - len(self.contested):
            said.append(f"{uncontested:,} groups hold one text alone: nothing was chosen")
        labelled = self.curve.points[-1].labels
        if len(self.curve.points) > 1 and labelled is not None and labelled.gain.low <= 0:
            said.append(f"labels do not show that this selection makes answers better: gain {labelled.gain}")
        stated = (self._label_document or {}).get("best_beats_runner_up")
        if stated and stated["stated"]["value"] > stated["found"]["high"]:
            said.append(
                "the probabilities are too high where they are used: the best of many beats the runner-up less often than the temperature, fitted on other pairs, says"
            )
        return said


def best_answers(
    scorer: Scorer | Function | Mapping[str, Scorer | Function],
    pool: Pool,
    *,
    temperature: float | None = None,
    soft: float | None = None,
    abstain: Abstention | None = None,
    rule: Rule = "mean",
    k: float = 1.0,
    seed: int = 0,
    on_texts: Callable[[int, int], None] = lambda done, total: None,
) -> BestAnswers:
    """Choose an answer to each prompt of a pool.

    Args:
        scorer: a model, a function of (prompt, answer), or several of them by name, which then score together.
        pool: of candidates, e.g. from `candidates_of` or `auditing.pools.drawn_pool`.
        temperature: of the probability sigmoid(margin / temperature); several models have none.
        soft: the temperature of soft best-of-n; None takes the best.
        abstain: when a choice is too close; None never abstains.
        rule: of several models; see `auditing.ensembles`.
        k: of the rule "lower confidence".
        seed: of ties, draws and intervals.
        on_texts: called with the texts scored and the number of all.

    Raises:
        DataError: if there is no group, or one without an answer.
        SettingsError: at a temperature, a rule or a number of models that cannot be meant.
        ScoreError: if a score is missing or not finite.

    >>> pool = Pool([Candidates("a", "2 + 2?", (Candidate("4"), Candidate("4, as ever"), Candidate("4")))])
    >>> best_answers(lambda prompt, answer: -len(answer), pool).choices[0].ranking
    (0, 2, 1)
    """
    together = isinstance(scorer, Mapping)
    if not pool.groups or not pool.sizes.all():
        raise DataError("at least one group, each of at least one answer", f"{pool.sizes.tolist()}", "Check the pool.")
    if temperature is not None and together:
        raise SettingsError("no temperature with several models", f"{temperature:g}", "Abstain by the margin.")
    if temperature is not None and not (np.isfinite(temperature) and temperature > 0):
        raise SettingsError("a finite temperature of probabilities, above 0", f"{temperature}", "Calibrate the model.")
    check_abstention(abstain, temperature, "several models" if together else "this model")
    if soft is not None:
        check_temperature(soft)
    ensemble = None
    if isinstance(scorer, Mapping):
        members = {name: as_scorer(one) for name, one in scorer.items()}
        ensemble = score_together(members, pool, rule, k=k, on_texts=on_texts)
        scored = ensemble.scored
    else:
        scored = score_pool(as_scorer(scorer), pool, on_texts=on_texts)
    parts = np.split(scored.scores, pool.starts[1:-1])
    choices = [
        _choice(group, scores, temperature, soft, abstain, seed)
        for group, scores in zip(pool.groups, parts, strict=True)
    ]
    return BestAnswers(pool, scored, choices, temperature, soft, abstain, ensemble, seed)


def _choice(
    group: Candidates,
    scores: Floats,
    temperature: float | None,
    soft: float | None,
    abstain: Abstention | None,
    seed: int,
) -> Choice:
    key, texts = prompt_key(group.prompt), [one.answer for one in group.answers]
    order = sorted(range(len(texts)), key=lambda i: (-scores[i], draw_key(seed, key, texts[i]), i))
    best = order[0]
    runner_up = next((i for i in order if texts[i] != texts[best]), None)
    margin = None if runner_up is None else float(scores[best] - scores[runner_up])
    probability = None
    if margin is not None and temperature is not None:
        probability = float(win_probabilities(np.array([margin]), temperature)[0])
    tied = {text for text, score in zip(texts, scores, strict=True) if score == scores[best]}
    taken = best
    if soft is not None:
        # Along the ranking, so that the order of the file decides nothing here either.
        weights = soft_weights(scores, soft)[order]
        taken = order[soft_draw(weights, seed=seed, code=text_code(key, *sorted(texts)))]
    reason = _reason(abstain, margin, probability)
    return Choice(tuple(order), taken, runner_up, len(tied) - 1, margin, probability, reason)


def _reason(abstain: Abstention | None, margin: float | None, probability: float | None) -> str | None:
    """Why the rule abstains; None where it does not, and where nothing was chosen."""
    if abstain is None or margin is None:
        return None
    found = probability if abstain.by == "probability" else margin
    assert found is not None
    if found >= abstain.below:
        return None
    what = (
        "the probability that the best answer beats the runner-up"
        if abstain.by == "probability"
        else "the margin of the two best answers"
    )
    return f"{what} is {found:.3g}, below {abstain.below:g}"


def _maybe(estimate: Estimate | None) -> dict[str, Any] | None:
    return None if estimate is None else estimate.as_dict()
