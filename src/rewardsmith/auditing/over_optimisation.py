"""Over-optimisation: how far can a policy follow this reward model before the answers stop getting better?

Best-of-n stands for the policy. As n grows, the score of the reward model (the proxy) can only rise; what a better judge (gold) says of the same answers rises
at first, and where the proxy's errors are selected more than its merits, it falls again (Gao, Schulman and Hilton 2022, "Scaling laws for reward model
overoptimization"). Gains over n = 1 are in standard deviations of the score within prompts, so that two scorers can be laid beside each other.

Legend: `G` groups, `P` candidates of all groups, `L` values of n, `R` resamples, `K` members.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeAlias

import numpy as np
from rich.markup import escape
from rich.table import Table
from scipy.linalg import lstsq

from rewardsmith.auditing.best_of_n import Ints, best_of, grid, kl_of_best_of, within
from rewardsmith.auditing.controls import LENGTH, RANDOM, SHUFFLED, TRAINED, LengthScorer, RandomScorer, shuffled
from rewardsmith.auditing.draws import draw_key
from rewardsmith.auditing.effects import Effect, ScoreUnit
from rewardsmith.auditing.ensembles import RULES, Ensemble, Standard
from rewardsmith.auditing.pools import Pool
from rewardsmith.auditing.resampling import Resamples
from rewardsmith.auditing.selected import ProbeChanges, TraitChange, probe_changes, selected_subjects, trait_changes
from rewardsmith.auditing.trials import LEAST_EFFECT, Probe, Scored, score_all
from rewardsmith.data.schema import Pair, prompt_key
from rewardsmith.errors import DataError, ScoreError, SettingsError
from rewardsmith.functions import Function, as_scorer
from rewardsmith.scores import Scorer, Scores
from rewardsmith.significance import LEVEL, holm
from rewardsmith.stats import Estimate, Floats

Role: TypeAlias = Literal["proxy", "ensemble", "gold", "control"]
Gold: TypeAlias = Scorer | Function | Literal["labels"]
GOLD, AVERAGE = "gold", "average member"
LABELS: Literal["labels"] = "labels"
NUM_PROBED = 100
"""Groups whose selected answers are probed where nothing else is asked."""
_RESERVED = {GOLD, AVERAGE, RANDOM, LENGTH, SHUFFLED, TRAINED, *RULES}
# A parabola through the origin goes through any two points.
_FEWEST_POINTS = 3


class ScoredOnce:
    """A scorer that is asked for each distinct text once."""

    def __init__(self, scorer: Scorer, *, on_texts: Callable[[int, int], None]) -> None:
        """Remember nothing yet.

        Args:
            scorer: anything that scores.
            on_texts: called with the texts scored and the number of all of a call.
        """
        self.scorer, self._on_texts = scorer, on_texts
        self._known: dict[tuple[str, str], tuple[np.float32, np.uint64 | None, np.bool_ | None]] = {}

    def scored(self, pairs: Sequence[Pair]) -> Scored:
        """Scores of some texts, in their order."""
        keys = [(prompt_key(prompt), answer) for prompt, answer in pairs]
        new = {key: pair for key, pair in zip(keys, pairs, strict=True) if key not in self._known}
        if new:
            found = score_all(self.scorer, list(new.values()), on_texts=lambda done: self._on_texts(done, len(new)))
            for i, key in enumerate(new):
                digest = None if found.digests is None else found.digests[i]
                self._known[key] = (found.scores[i], digest, None if found.truncated is None else found.truncated[i])
        rows = [self._known[key] for key in keys]
        tells = all(digest is not None for _, digest, _ in rows)
        return Scored(
            np.array([score for score, _, _ in rows], np.float32),
            np.array([digest for _, digest, _ in rows], np.uint64) if tells else None,
            np.array([cut for _, _, cut in rows], np.bool_) if tells else None,
        )

    def score(self, pairs: Sequence[Pair]) -> Scores:
        """The scores alone, as of any `Scorer`."""
        return self.scored(pairs).scores


@dataclass(frozen=True)
class Fit:
    """R(d) = d (a - b d) with d = sqrt(KL), fitted to a curve by least squares, every point counting alike (Gao et al. 2022, equation 1).

    Args:
        a: the slope at the beginning, in sd a square root of a nat.
        b: how fast it is used up; above 0 the curve bends down.
        a_error: standard error of `a`, over resamples of prompts.
        b_error: the same of `b`.
        misfit: root of the mean squared distance of the points, in sd.
    """

    a: Estimate
    b: Estimate
    a_error: float
    b_error: float
    misfit: float

    def as_dict(self) -> dict[str, Any]:
        """The document."""
        return {
            "a": self.a.as_dict(),
            "b": self.b.as_dict(),
            "a_error": self.a_error,
            "b_error": self.b_error,
            "misfit_sd": self.misfit,
        }


def fitted(curve: Floats, drawn: Floats, ns: Sequence[int], resamples: Resamples) -> Fit | None:
    """The fit to a curve of gains; None where fewer than three values of n lie above 1.

    Args:
        curve: (L,).
        drawn: the curve of each resample, (R, L).
        ns: (L,), the first of them 1.
        resamples: that `drawn` is of.
    """
    if len(ns) <= _FEWEST_POINTS:
        return None
    d = np.sqrt(kl_of_best_of(np.array(ns[1:])))
    columns = np.stack([d, -(d**2)], axis=1)
    curves = np.concatenate([curve[None, 1:], drawn[:, 1:]])  # (1 + R, L - 1)
    a, b = lstsq(columns, curves.T)[0]
    rest = curve[1:] - columns @ np.array([a[0], b[0]])
    return Fit(
        resamples.estimate(a[0], a[1:]),
        resamples.estimate(b[0], b[1:]),
        float(a[1:].std(ddof=1)),
        float(b[1:].std(ddof=1)),
        float(np.sqrt((rest**2).mean())),
    )


@dataclass(frozen=True)
class Selection:
    """What best-of-n by one scorer gives. Gains are over n = 1, in standard deviations within prompts.

    Args:
        name: of the scorer.
        role: a proxy, an ensemble of them, gold itself, or a control.
        ns: of the curves.
        proxy: gain of its own score at each n.
        gold: gain of gold at each n.
        n_star: where the curve of gold is highest.
        n_star_of_halves: the same on each half of the prompts.
        gold_at_n_star: gain of gold at the n* of the other half of the prompts: choosing and measuring on the same prompts would flatter it.
        decline: gold at n_max less gold at that n*, paired by prompt.
        decline_p: two-sided, after Holm's procedure over proxies and ensembles; None of others.
        gold_fit: fit to the curve of gold.
        proxy_fit: fit to the curve of its own score.
        gap_slope: slope of (proxy - gold) against sqrt(KL), through the origin: how fast the score runs away from what it stands for.
    """

    name: str
    role: Role
    ns: list[int]
    proxy: list[Estimate]
    gold: list[Estimate]
    n_star: Estimate
    n_star_of_halves: tuple[int, int]
    gold_at_n_star: Estimate
    decline: Estimate
    decline_p: float | None
    gold_fit: Fit | None
    proxy_fit: Fit | None
    gap_slope: Estimate

    @property
    def is_over_optimised(self) -> bool:
        """Whether gold falls by 0.1 sd or more from n* to n_max, and more than by chance."""
        return self.decline_p is not None and self.decline_p < LEVEL and self.decline.value <= -LEAST_EFFECT

    def as_dict(self) -> dict[str, Any]:
        """The document."""
        return {
            "name": self.name,
            "role": self.role,
            "curve": [
                {"n": n, "kl": float(kl_of_best_of(n)), "proxy": proxy.as_dict(), "gold": gold.as_dict()}
                for n, proxy, gold in zip(self.ns, self.proxy, self.gold, strict=True)
            ],
            "n_star": self.n_star.as_dict(),
            "n_star_of_halves": list(self.n_star_of_halves),
            "gold_at_n_star": self.gold_at_n_star.as_dict(),
            "gold_at_n_max": self.gold[-1].as_dict(),
            "decline": self.decline.as_dict(),
            "decline_p_adjusted": self.decline_p,
            "over_optimised": self.is_over_optimised,
            "fit": {
                "gold": None if self.gold_fit is None else self.gold_fit.as_dict(),
                "proxy": None if self.proxy_fit is None else self.proxy_fit.as_dict(),
            },
            "gap_slope": self.gap_slope.as_dict(),
        }


@dataclass(frozen=True)
class Difference:
    """Gold of the answers that one scorer selects less gold of those that another does, paired by prompt, in sd of gold.

    Args:
        family: what is compared with what; Holm's procedure goes over each family.
        first: the scorer.
        second: the other.
        at: "n_star", each at its own n* of the other half of the prompts, or "n_max".
        difference: first less second.
        p_adjusted: two-sided, after Holm's procedure.
    """

    family: str
    first: str
    second: str
    at: Literal["n_star", "n_max"]
    difference: Estimate
    p_adjusted: float

    def as_dict(self) -> dict[str, Any]:
        """The document."""
        return {
            "family": self.family,
            "first": self.first,
            "second": self.second,
            "at": self.at,
            "difference_sd": self.difference.as_dict(),
            "p_adjusted": self.p_adjusted,
        }


@dataclass(frozen=True)
class OverOptimisation:
    """What was found, with the table of all candidates that it was found in.

    Args:
        pool: the groups of at least n_max candidates.
        facts: of the pool and of gold, for the document.
        selections: proxies, ensembles, gold and controls.
        differences: ensembles against members, and both against controls.
        ensembles: rules and members' standards.
        traits: of the selected answers.
        constant_traits: that differ within no prompt.
        probes: put to the selected answers.
        scores: of every candidate by each scorer, (P,); those of gold among them.
    """

    pool: Pool = field(repr=False)
    facts: dict[str, Any]
    selections: list[Selection]
    differences: list[Difference]
    ensembles: list[dict[str, Any]]
    traits: list[TraitChange]
    constant_traits: list[str]
    probes: list[ProbeChanges]
    scores: dict[str, Floats] = field(repr=False)

    def __getitem__(self, name: str) -> Selection:
        """What the scorer of that name selects."""
        return next(one for one in self.selections if one.name == name)

    def as_dict(self) -> dict[str, Any]:
        """The section `over_optimisation` of an audit's document."""
        return {
            **self.facts,
            "selectors": [one.as_dict() for one in self.selections],
            "comparisons": [one.as_dict() for one in self.differences],
            "ensembles": self.ensembles,
            "traits": {"changes": [one.as_dict() for one in self.traits], "constant": self.constant_traits},
            "probes": [one.as_dict() for one in self.probes],
            "reading": self.reading,
        }

    def rows(self) -> Iterator[dict[str, Any]]:
        """One row a candidate with all of its scores, so that every number can be computed again."""
        place = 0
        for group in self.pool.groups:
            cluster = draw_key(0, prompt_key(group.prompt)).hex()
            for one in group.answers:
                yield {
                    "id": group.id,
                    "cluster": cluster,
                    "answer": one.answer,
                    "kind": one.kind,
                    "is_cut": one.is_cut,
                    "scores": {name: float(values[place]) for name, values in self.scores.items()},
                }
                place += 1

    @property
    def reading(self) -> str:
        """One sentence: the proxy that falls most, else the one that brings gold least; the ensemble beside it; and what chance alone does."""
        proxies = [one for one in self.selections if one.role == "proxy"]
        fallen = [one for one in proxies if one.is_over_optimised]
        worst = min(fallen or proxies, key=lambda one: one.decline.value if fallen else one.gold[-1].value)
        n_max, last = worst.ns[-1], worst.gold[-1]
        text = (
            f"Under best-of-{n_max} (KL {float(kl_of_best_of(n_max)):.2f} nats) the score of {worst.name} rises by"
            f" {worst.proxy[-1].value:.2f} sd and gold by {last.value:+.2f} sd [{last.low:+.2f}, {last.high:+.2f}]; "
        )
        fall = f"{-worst.decline.value:.2f} sd [{-worst.decline.high:.2f}, {-worst.decline.low:.2f}]"
        if worst.is_over_optimised:
            text += f"gold is highest at n = {worst.n_star.value:.0f} and falls by {fall} from there"
        elif set(worst.n_star_of_halves) == {n_max}:
            text += "gold is highest at that n, so that no fall was seen"
        else:
            text += f"no certain fall from its highest point was seen ({fall})"
        for one in self.differences:
            if (one.first, one.second, one.at) == ("lower confidence", AVERAGE, "n_star"):
                gain = one.difference
                text += (
                    f"; the lower-confidence ensemble's gold at its n* is {gain.value:+.2f} sd"
                    f" [{gain.low:+.2f}, {gain.high:+.2f}] beside the average member's"
                )
        chance = next((one.gold[-1] for one in self.selections if one.name == RANDOM), None)
        if chance is not None:
            text += f"; random scores move gold by {chance.value:+.2f} sd [{chance.low:+.2f}, {chance.high:+.2f}]"
        return text + "."

    def table(self, title: str = "Over-optimisation") -> Table:
        """The selections for people, gains in sd."""
        return over_optimisation_table(self.as_dict(), title)


@dataclass(frozen=True)
class _Judge:
    """Gold on the candidates of a pool, and what all selections are measured with."""

    scores: Floats
    starts: Ints
    ns: list[int]
    unit: ScoreUnit
    resamples: Resamples
    halves: Ints

    def selection(self, name: str, role: Role, proxy: Floats) -> tuple[Selection, Floats, Effect]:
        """What a proxy selects, its gains of gold at each group's n* (G,), and the decline."""
        curves = best_of(proxy, np.stack([proxy, self.scores], axis=1), self.starts, self.ns)  # (G, 2, L)
        gains = curves - curves[:, :, :1]
        unit = unit_of_pool(proxy, self.starts, self.resamples, name)
        count = len(self.ns)
        columns = np.concatenate(
            [gains.reshape(len(gains), -1), unit.squares[:, None], self.unit.squares[:, None]], axis=1
        )
        whole, drawn = columns.mean(axis=0), self.resamples.means(columns)
        # Both scorers' units are drawn anew with the prompts: they are known no better than the gains.
        own, gold = whole[:count] / np.sqrt(whole[-2]), whole[count:-2] / np.sqrt(whole[-1])
        own_drawn = drawn[:, :count] / np.sqrt(drawn[:, -2:-1])
        gold_drawn = drawn[:, count:-2] / np.sqrt(drawn[:, -1:])
        stars, places = self._stars(gains[:, 1])
        at_star = np.take_along_axis(gains[:, 1], places[:, None], axis=1)[:, 0]
        decline = self.effect(gains[:, 1, -1] - at_star)
        ns = np.array(self.ns)
        d = np.sqrt(kl_of_best_of(ns))
        slopes = np.concatenate([(own - gold)[None], own_drawn - gold_drawn]) @ d / (d @ d)
        selection = Selection(
            name=name,
            role=role,
            ns=self.ns,
            proxy=self.resamples.intervals(own, own_drawn),
            gold=self.resamples.intervals(gold, gold_drawn),
            n_star=self.resamples.estimate(ns[gold.argmax()], ns[gold_drawn.argmax(axis=1)], whole=True),
            n_star_of_halves=stars,
            gold_at_n_star=self.effect(at_star).interval(),
            decline=decline.interval(),
            decline_p=None,
            gold_fit=fitted(gold, gold_drawn, self.ns, self.resamples),
            proxy_fit=fitted(own, own_drawn, self.ns, self.resamples),
            gap_slope=self.resamples.estimate(slopes[0], slopes[1:]),
        )
        return selection, at_star, decline

    def effect(self, gains: Floats) -> Effect:
        """The mean of gains of gold, (G,), in sd."""
        return Effect.of(gains, self.resamples.names, self.unit)

    def at_n_max(self, proxy: Floats) -> Floats:
        """Gains of gold at n_max, (G,)."""
        curves = best_of(proxy, self.scores[:, None], self.starts, [1, self.ns[-1]])[:, 0]
        return np.asarray(curves[:, 1] - curves[:, 0])

    def _stars(self, gains: Floats) -> tuple[tuple[int, int], Ints]:
        """n* of both halves, and for each group the place in `ns` of the n* that the other half chose."""
        best = [int(gains[self.halves == half].mean(axis=0).argmax()) for half in (0, 1)]
        return (self.ns[best[0]], self.ns[best[1]]), np.where(self.halves == 0, best[1], best[0]).astype(np.int64)


def unit_of_pool(scores: Floats, starts: Ints, resamples: Resamples, name: str) -> ScoreUnit:
    """The standard deviation of a scorer within groups: the root of the mean variance, every group counting alike.

    Raises:
        ScoreError: if the scorer tells no two candidates of any group apart.
    """
    squares = within(scores[:, None], starts)[:, 0]
    if not squares.any():
        raise ScoreError(
            f"scores of {name!r} that differ between the candidates of at least one prompt",
            f"equal scores in all {len(squares):,} groups",
            "A scorer that tells no answers apart selects nothing; leave it out, or give other candidates.",
        )
    return ScoreUnit(squares, resamples.names)


def _no_progress(name: str, texts_done: int, num_texts: int) -> None:
    pass


def over_optimise(
    proxies: Mapping[str, Scorer | Function],
    pool: Pool,
    gold: Gold,
    *,
    n_max: int | None = None,
    k: float = 1.0,
    trained_on_shuffled: Scorer | Function | None = None,
    probes: Sequence[Probe] = (),
    num_probed: int = NUM_PROBED,
    seed: int = 0,
    on_texts: Callable[[str, int, int], None] = _no_progress,
) -> OverOptimisation:
    """Follow each proxy by best-of-n over a pool, and ask gold what became of the answers.

    Several proxies are also combined: by mean, worst case and lower confidence. Controls that know nothing of quality are run through the same pool.

    Args:
        proxies: the reward models, by name.
        pool: candidates.
        gold: the judge: another scorer, a function of (prompt, answer), or "labels", those of the candidates.
        n_max: the end of the curves, which are of the groups with at least so many candidates; by default the most that half of the groups have.
        k: of the lower-confidence ensemble.
        trained_on_shuffled: a model trained on shuffled labels, as a further control.
        probes: put to blindly taken and to selected answers by every proxy and ensemble; those that do not edit answers are passed over.
        num_probed: groups whose answers are probed, at most.
        seed: of controls, halves, draws and bootstraps.
        on_texts: called with a scorer's name, the texts that it has scored and how many it is to score.

    Raises:
        SettingsError: if there is no proxy, one has the name of a control or an ensemble, or n_max is below 2.
        DataError: if fewer than two prompts have n_max candidates, or labels are asked for and missing.
        ScoreError: if a score is not finite, or a scorer tells no two candidates of a prompt apart.
    """
    if not proxies or _RESERVED & set(proxies):
        came = "none" if not proxies else f"one named {min(_RESERVED & set(proxies))!r}"
        raise SettingsError("at least one proxy, of a name of its own", came, "Give each model another name.")
    n_max = _n_max(pool, n_max)
    taken = pool.of_size(n_max)
    if len(set(taken.prompts())) < 2:
        raise DataError(
            f"at least two prompts with {n_max} candidates or more",
            f"{len(set(taken.prompts()))} among {len(pool.groups):,} groups",
            "Lower n_max, or give more candidates.",
        )
    pairs, starts = taken.pairs(), taken.starts
    resamples = Resamples(taken.prompts(), seed=seed)

    def once(name: str, scorer: Scorer | Function) -> ScoredOnce:
        return ScoredOnce(as_scorer(scorer), on_texts=lambda done, of: on_texts(name, done, of))

    def of_pool(scorer: Scorer) -> Floats:
        return scorer.score(pairs).astype(np.float64)

    gold_scores = taken.labels() if isinstance(gold, str) else of_pool(once(GOLD, gold))
    judge = _Judge(
        gold_scores,
        starts,
        grid(n_max),
        unit_of_pool(gold_scores, starts, resamples, GOLD),
        resamples,
        _halves(resamples, seed),
    )
    members = {name: once(name, scorer) for name, scorer in proxies.items()}
    scores = {name: of_pool(member) for name, member in members.items()}
    roles: dict[str, Role] = dict.fromkeys(members, "proxy")
    ensembles = {}
    if len(members) > 1:
        standards = {name: Standard.of(values, name) for name, values in scores.items()}
        ensembles = {str(rule): Ensemble(members, standards, rule, k=k) for rule in RULES}
        scores |= {name: of_pool(ensemble) for name, ensemble in ensembles.items()}
        roles |= dict.fromkeys(ensembles, "ensemble")
    tested = list(scores)
    scores[GOLD], roles[GOLD] = gold_scores, "gold"
    controls = {RANDOM: of_pool(RandomScorer(seed)), LENGTH: of_pool(LengthScorer())}
    controls[SHUFFLED] = shuffled(gold_scores, starts, seed=seed)
    if trained_on_shuffled is not None:
        controls[TRAINED] = of_pool(once(TRAINED, trained_on_shuffled))
    blind = [name for name, values in controls.items() if not within(values[:, None], starts).any()]
    scores |= {name: values for name, values in controls.items() if name not in blind}
    roles |= {name: "control" for name in controls if name not in blind}

    selections, at_star = _selections(judge, scores, roles)
    changes, constant = trait_changes(taken, scores, resamples, gold=GOLD, tested=tested, n_max=n_max)
    probed = []
    if probes:
        groups = np.random.default_rng(seed).permutation(len(taken.groups))[:num_probed].tolist()
        blindly = selected_subjects(taken, gold_scores, 1, groups=groups, seed=seed)
        for name in tested:
            score = members[name].scored if name in members else _unseen(ensembles[name])
            sides = blindly, selected_subjects(taken, scores[name], n_max, groups=groups, seed=seed)
            unit = unit_of_pool(scores[name], starts, resamples, name)
            probed.append(probe_changes(score, name, sides, probes=probes, unit=unit, seed=seed))
    return OverOptimisation(
        pool=taken,
        facts=_facts(pool, taken, judge, gold, blind),
        selections=selections,
        differences=_differences(judge, scores, roles, at_star),
        ensembles=[one.as_dict() for one in ensembles.values()],
        traits=changes,
        constant_traits=constant,
        probes=probed,
        scores=scores,
    )


def _unseen(ensemble: Ensemble) -> Callable[[Sequence[Pair]], Scored]:
    """An ensemble's scores; what its members saw of a text is not one thing."""
    return lambda pairs: Scored(ensemble.score(pairs), None, None)


def _n_max(pool: Pool, wanted: int | None) -> int:
    n_max = int(np.quantile(pool.sizes, 0.5, method="lower")) if wanted is None else wanted
    if n_max < 2:
        raise SettingsError("n_max of at least 2", f"{n_max}", "Give more candidates of each prompt.")
    return n_max


def _halves(resamples: Resamples, seed: int) -> Ints:
    """0 or 1 for each group, the same within a prompt, half of the prompts each; (G,)."""
    order = np.random.default_rng([seed, 2]).permutation(resamples.num_prompts)
    return (order % 2)[resamples.codes].astype(np.int64)


def _selections(
    judge: _Judge, scores: Mapping[str, Floats], roles: Mapping[str, Role]
) -> tuple[list[Selection], dict[str, Floats]]:
    """Every selection, Holm's procedure going over the declines of proxies and ensembles; and the gains at n*, (G,), by name."""
    made = [judge.selection(name, roles[name], values) for name, values in scores.items()]
    asked = [i for i, (one, _, _) in enumerate(made) if one.role in ("proxy", "ensemble")]
    adjusted = dict(zip(asked, holm([made[i][2].p_value for i in asked]), strict=True))
    selections = [replace(one, decline_p=adjusted.get(i)) for i, (one, _, _) in enumerate(made)]
    return selections, {one.name: at_star for one, at_star, _ in made}


def _differences(
    judge: _Judge, scores: Mapping[str, Floats], roles: Mapping[str, Role], at_star: Mapping[str, Floats]
) -> list[Difference]:
    """Ensembles against members, and proxies and ensembles against controls."""
    names: dict[Role, list[str]] = {role: [] for role in ("proxy", "ensemble", "gold", "control")}
    for name, role in roles.items():
        names[role].append(name)
    gains: dict[tuple[str, str], Floats] = {(name, "n_star"): values for name, values in at_star.items()}
    gains |= {(name, "n_max"): judge.at_n_max(values) for name, values in scores.items()}
    for at in ("n_star", "n_max"):
        gains[AVERAGE, at] = np.mean([gains[name, at] for name in names["proxy"]], axis=0)
    families: dict[str, list[tuple[str, str, Literal["n_star", "n_max"]]]] = {
        "ensemble against average member": [
            (first, AVERAGE, at) for first in names["ensemble"] for at in ("n_star", "n_max")
        ],
        "ensemble against member": [
            (first, second, "n_star") for first in names["ensemble"] for second in names["proxy"]
        ],
        "against control": [
            (first, second, "n_star") for first in (*names["proxy"], *names["ensemble"]) for second in names["control"]
        ],
    }
    found = []
    for family, asked in families.items():
        effects = [judge.effect(gains[first, at] - gains[second, at]) for first, second, at in asked]
        for (first, second, at), effect, p in zip(asked, effects, holm([e.p_value for e in effects]), strict=True):
            found.append(Difference(family, first, second, at, effect.interval(), p))
    return found


def _facts(pool: Pool, taken: Pool, judge: _Judge, gold: Gold, blind: Sequence[str]) -> dict[str, Any]:
    """The document's keys on the pool and on gold."""
    candidates, sizes = taken.candidates(), pool.sizes
    return {
        "n_max": judge.ns[-1],
        "pool": {
            "num_groups": len(taken.groups),
            "num_prompts": judge.resamples.num_prompts,
            "num_candidates": len(candidates),
            "num_texts": len({(prompt_key(prompt), answer) for prompt, answer in taken.pairs()}),
            "too_small": len(pool.groups) - len(taken.groups),
            "left_out": pool.left_out,
            "kinds": dict(Counter(one.kind for one in candidates).most_common()),
            "num_cut": sum(one.is_cut for one in candidates),
            "num_prompts_cut": sum(group.prompt_cut > 0 for group in taken.groups),
            # Also beyond the curves, so that it can be seen what another n_max would rest on.
            "support": [{"n": n, "num_groups": int((sizes >= n).sum())} for n in grid(int(sizes.max()))],
        },
        "gold": {
            "kind": "labels" if isinstance(gold, str) else "scorer",
            "sd": judge.unit.sd,
            "at_n_1": judge.resamples.estimates(
                best_of(judge.scores, judge.scores[:, None], judge.starts, [1])[:, :, 0]
            )[0].as_dict(),
        },
        "controls_left_out": {name: "equal scores within every prompt" for name in blind},
    }


def over_optimisation_table(document: Mapping[str, Any], title: str) -> Table:
    """The selections of the document for people, gains in sd."""
    table = Table(title=escape(title), title_justify="left")
    for column in (
        "selected by",
        "own score",
        "gold at n_max [95 %]",
        "n*",
        "gold at n* [95 %]",
        "from n* to n_max",
        "",
    ):
        table.add_column(column, justify="left" if column in ("selected by", "") else "right")
    for one in document["selectors"]:
        last, star, decline = (Estimate(**one[key]) for key in ("gold_at_n_max", "gold_at_n_star", "decline"))
        n_star = Estimate(**one["n_star"])
        table.add_row(
            escape(one["name"] if one["role"] != "control" else f"control: {one['name']}"),
            f"{one['curve'][-1]['proxy']['value']:+.2f}",
            f"{last.value:+.2f} [{last.low:+.2f}, {last.high:+.2f}]",
            f"{n_star.value:.0f} [{n_star.low:.0f}, {n_star.high:.0f}]",
            f"{star.value:+.2f} [{star.low:+.2f}, {star.high:+.2f}]",
            f"{decline.value:+.2f} [{decline.low:+.2f}, {decline.high:+.2f}]",
            "over-optimised" if one["over_optimised"] else "",
        )
    return table
