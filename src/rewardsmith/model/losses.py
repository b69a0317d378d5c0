"""Losses of preference data: small tensor functions, and one module a loss that holds what it learns beside the network.

Legend: `B` examples (a pair, a list, or rated answers of one prompt), `N` answers, `A` outputs of the network; d = s_chosen - s_rejected. Functions of pairs
take and give (B,) unless they say otherwise. Losses are negative log-likelihoods in nats, or squared errors. `LOSSES` names them all, with the data that
each needs; it is judged before any model loads.

Sources: Bradley & Terry 1952; Rao & Kupper 1967 and Davidson 1970 for ties; Luce 1959 and Plackett 1975 for lists; McCullagh 1980 for ordered levels;
Llama 2 (Touvron et al. 2023, eq. 2) for the margin; Eisenstein et al. 2023 (eq. 2) for centring.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import logsigmoid, softplus

from rewardsmith.config import LossSettings
from rewardsmith.data.schema import Group, Preference
from rewardsmith.errors import DataError, SettingsError

MAX_LEVELS = 20
# Attributes share one mean squared error: past this ratio of their ranges the smaller one would hardly be learned.
MAX_RANGE_RATIO = 10.0
# Keeps what must be positive away from the 0 at which its logarithm has no gradient.
_LEAST_POSITIVE = 1e-6


@dataclass(frozen=True)
class Labels:
    """Labels of a batch: B examples of K_b answers each, N answers end to end in the order of the examples (of a pair: chosen, then rejected).

    Args:
        sizes: K of each example, int64 (B,); they sum to N.
        weight: of each example, (B,).
        margin: by how much chosen should win, (B,).
        share: the share of votes for chosen, (B,); 0.5 is a labelled tie.
        tie: whether the pair is a labelled tie, bool (B,).
        votes: for chosen and for rejected, (B, 2).
        rating: (N, A), NaN where unknown; one column but for `attributes`. For `plackett_luce` higher is better, and equal is the same place.
    """

    sizes: Tensor
    weight: Tensor | None = None
    margin: Tensor | None = None
    share: Tensor | None = None
    tie: Tensor | None = None
    votes: Tensor | None = None
    rating: Tensor | None = None


def bradley_terry(margin: Tensor) -> Tensor:
    """-log sigmoid(s_chosen - s_rejected), stable for any margin.

    >>> bradley_terry(torch.tensor([0.0])).item()  # ln 2: knows nothing
    0.6931471824645996
    """
    return softplus(-margin)


def soft_bradley_terry(margin: Tensor, share: Tensor) -> Tensor:
    """-q log sigmoid(d) - (1 - q) log sigmoid(-d), q the share of votes for chosen; a labelled tie is q = 1/2."""
    return share * softplus(-margin) + (1 - share) * softplus(margin)


def smoothed_share(share: Tensor, smoothing: float) -> Tensor:
    """Label smoothing: every label keeps 1 - e of itself and gives e to its opposite."""
    return share * (1 - smoothing) + (1 - share) * smoothing


def centring_penalty(chosen: Tensor, rejected: Tensor) -> Tensor:
    """(s_chosen + s_rejected)^2. The square of the *sum*: that of the difference would undo the training."""
    return (chosen + rejected) ** 2


def log_between(upper: Tensor, lower: Tensor, width: Tensor) -> Tensor:
    """log(sigmoid(upper) - sigmoid(lower)), where `width` = upper - lower > 0 comes apart so that no digit of it is lost.

    sigmoid(a) - sigmoid(b) = sigmoid(a) sigmoid(-b) (1 - e^(b - a)): three factors, none of them a difference of large numbers.
    """
    return logsigmoid(upper) + logsigmoid(-lower) + torch.log(-torch.expm1(-width))


def rao_kupper(difference: Tensor, tie: Tensor, threshold: Tensor) -> Tensor:
    """Ties as differences that are too small to see: P(chosen wins) = sigmoid(d - t), and P(tie) = sigmoid(d + t) - sigmoid(d - t).

    Args:
        difference: d.
        tie: bool; whether the pair is a labelled tie.
        threshold: t > 0, a scalar.
    """
    tied = -log_between(difference + threshold, difference - threshold, 2 * threshold)
    return torch.where(tie, tied, softplus(threshold - difference))


def davidson(difference: Tensor, tie: Tensor, log_nu: Tensor) -> Tensor:
    """Ties as a third outcome: with p = e^s, wins and ties are as p_chosen : p_rejected : nu sqrt(p_chosen p_rejected).

    Args:
        difference: d.
        tie: bool; whether the pair is a labelled tie.
        log_nu: a scalar; at d = 0 a tie is nu times as likely as either win.
    """
    # Each is log(1 + the odds of the other two outcomes), so that losses near 0 keep their digits.
    tied = softplus(torch.logaddexp(difference / 2, -difference / 2) - log_nu)
    won = softplus(torch.logaddexp(-difference, log_nu - difference / 2))
    return torch.where(tie, tied, won)


def binomial_votes(difference: Tensor, votes: Tensor) -> Tensor:
    """-(k log sigmoid(d) + (n - k) log sigmoid(-d)) for `votes` (B, 2): k for chosen, n - k for rejected; without the binomial coefficient."""
    return votes[:, 0] * softplus(-difference) + votes[:, 1] * softplus(difference)


def flip_noise(difference: Tensor, flip_rate: float) -> Tensor:
    """-log[(1 - e) sigmoid(d) + e sigmoid(-d)]: the label is the wrong way round with probability e.

    It stops at -log e, so that a pair that the model is sure about the other way no longer pulls; label smoothing pulls ever harder.
    """
    right = math.log1p(-flip_rate) + logsigmoid(difference)
    return -torch.logaddexp(right, math.log(flip_rate) + logsigmoid(-difference))


def example_of_answers(sizes: Tensor) -> Tensor:
    """Which example each answer belongs to, int64 (N,), from the sizes (B,)."""
    return torch.repeat_interleave(torch.arange(len(sizes), device=sizes.device), sizes)


def mean_of_counted(values: Tensor, counted: Tensor, sizes: Tensor) -> Tensor:
    """The mean of each example's counted values, (N, A) -> (B,); 0 where none counts."""
    # Sums over masks, not scatters or products of matrices: these add in no fixed order, or in less than float32, on a GPU.
    of_example = example_of_answers(sizes) == torch.arange(len(sizes), device=sizes.device)[:, None]  # (B, N)
    totals = torch.where(counted, values, torch.zeros_like(values)).sum(1)  # (N, A) -> (N,)
    sums = torch.where(of_example, totals, torch.zeros_like(totals)).sum(1)  # (B, N) -> (B,)
    counts = torch.where(of_example, counted.sum(1), 0).sum(1)
    return sums / counts.clamp(min=1)


def plackett_luce(scores: Tensor, rating: Tensor, sizes: Tensor) -> Tensor:
    """-log of the probability that each answer is taken before the strictly lower ones of its list, the mean over a list's terms, (N,) -> (B,).

    Without ties these are exactly the choices of Plackett and Luce: the best of all, the best of the rest, and so on; a list of two is Bradley-Terry.
    Tied answers are not compared. That is exact where only the last place is shared; ties further up make it a composite likelihood, for the exact one
    sums over all orders of tied answers. In simulations of such ratings it spreads the scores by 10 to 40 % too far, as Bradley-Terry on all pairs of the
    list does; counting tied answers among the choices instead narrows them by as much or more.

    The mean and not the sum, so that a list of eight does not weigh seven times as much as a pair: its choices are about one prompt, and learning rates
    stay those of pairs. A list of which all ratings are equal has no term, and a loss of 0.

    Args:
        scores: (N,).
        rating: (N,), higher is better; an answer with NaN takes no part.
        sizes: of the lists, (B,).
    """
    example = example_of_answers(sizes)
    lower = (example[:, None] == example) & (rating < rating[:, None])  # (N, N): row i holds the answers below i
    choices = lower | torch.eye(len(scores), dtype=torch.bool, device=scores.device)
    terms = torch.logsumexp(torch.where(choices, scores, -math.inf), dim=1) - scores  # (N, N) -> (N,)
    return mean_of_counted(terms[:, None], lower.any(1)[:, None], sizes)


def squared_error(outputs: Tensor, rating: Tensor, sizes: Tensor) -> Tensor:
    """The mean squared error over the known ratings of each example, (N, A) -> (B,); 0 where none is known."""
    known = ~torch.isnan(rating)
    # Not the square of a NaN masked afterwards: its gradient would be NaN.
    errors = outputs - torch.where(known, rating, torch.zeros_like(rating))
    return mean_of_counted(errors**2, known, sizes)


def cumulative_logit(scores: Tensor, level: Tensor, thresholds: Tensor, widths: Tensor) -> Tensor:
    """-log P(y = k) of ordered levels 0..L-1 with P(y <= k) = sigmoid(theta_k - s), (N,) -> (N,).

    Args:
        scores: s, (N,).
        level: k, int64 (N,).
        thresholds: theta, rising, (L - 1,).
        widths: theta_k - theta_(k-1) of each level, (L,), infinite for the first and the last.
    """
    last = len(thresholds)
    # The first level has no lower bound, and the last no upper one: a probability of 1, whose logarithm is 0.
    upper = torch.where(level < last, logsigmoid(thresholds[level.clamp(max=last - 1)] - scores), 0.0)
    lower = torch.where(level > 0, logsigmoid(scores - thresholds[(level - 1).clamp(min=0)]), 0.0)
    return -(upper + lower + torch.log(-torch.expm1(-widths))[level])


def positive(free: Tensor) -> Tensor:
    """A positive number from any number."""
    return softplus(free) + _LEAST_POSITIVE


def free_of_positive(value: float) -> float:
    """The number that `positive` maps to `value`."""
    above = max(value - _LEAST_POSITIVE, _LEAST_POSITIVE)
    return above + math.log(-math.expm1(-above))


def batch_loss(losses: Tensor, weight: Tensor | None) -> Tensor:
    """The loss of a batch, a scalar: the sum of weight x loss over B, so that a batch of light examples moves the model little."""
    return (losses if weight is None else losses * weight).mean()


class Objective(nn.Module, ABC):
    """One loss with what it learns beside the network.

    Attributes:
        num_outputs: heads that the network must have while it trains.
        pins_level: whether adding a number to all scores changes the loss; only then the head's bias is trained.
    """

    num_outputs: int = 1
    pins_level: bool = False

    @abstractmethod
    def forward(self, outputs: Tensor, labels: Labels) -> Tensor:
        """The losses to train on, unweighted: float32 (N, num_outputs) -> (B,)."""

    @abstractmethod
    def dev_losses(self, outputs: Tensor, labels: Labels) -> Tensor:
        """What a checkpoint is chosen by, (N, num_outputs) -> (B,): the data's own likelihood, without smoothing, margins and centring."""

    def initial_bias(self) -> Tensor:
        """Where the head's bias starts, (num_outputs,)."""
        return torch.zeros(self.num_outputs)

    def score(self, outputs: Tensor) -> Tensor:
        """The one score of each answer, (N, num_outputs) -> (N,)."""
        return outputs[:, 0]

    def learned(self) -> dict[str, float | list[float]]:
        """What was learned beside the network, under readable names."""
        return {}


class PairObjective(Objective):
    """A likelihood of d, with centring."""

    def __init__(self, settings: LossSettings) -> None:
        """Only centring sees the level of scores."""
        super().__init__()
        self.centring = settings.centring
        self.pins_level = settings.centring > 0

    @abstractmethod
    def likelihood(self, difference: Tensor, labels: Labels) -> Tensor:
        """-log P(labels | d), (B,)."""

    def fitted(self, difference: Tensor, labels: Labels) -> Tensor:
        """What is trained on before centring, (B,)."""
        return self.likelihood(difference, labels)

    def forward(self, outputs: Tensor, labels: Labels) -> Tensor:
        """See `Objective`; N = 2B."""
        chosen, rejected = _sides(outputs)
        losses = self.fitted(chosen - rejected, labels)
        return losses + self.centring * centring_penalty(chosen, rejected) if self.centring else losses

    def dev_losses(self, outputs: Tensor, labels: Labels) -> Tensor:
        """See `Objective`; N = 2B."""
        chosen, rejected = _sides(outputs)
        return self.likelihood(chosen - rejected, labels)


class BradleyTerry(PairObjective):
    """-log sigmoid(d - margin), smoothed; reads `margin`, `votes` (as the share) and `tie` (a share of one half, whatever the votes say)."""

    def __init__(self, settings: LossSettings, pairs: Sequence[Preference]) -> None:
        """Nothing is taken from the data."""
        super().__init__(settings)
        self.smoothing, self.margin = settings.label_smoothing, settings.margin

    def likelihood(self, difference: Tensor, labels: Labels) -> Tensor:
        """-log P(the votes | d)."""
        share = _share_of(labels, difference)
        return bradley_terry(difference) if share is None else soft_bradley_terry(difference, share)

    def fitted(self, difference: Tensor, labels: Labels) -> Tensor:
        """With margin and smoothing."""
        if self.margin and labels.margin is not None:
            difference = difference - labels.margin
        if not self.smoothing:
            return self.likelihood(difference, labels)
        share = _share_of(labels, difference)
        share = torch.ones_like(difference) if share is None else share
        return soft_bradley_terry(difference, smoothed_share(share, self.smoothing))


class RaoKupper(PairObjective):
    """See `rao_kupper`; reads `tie`. The threshold starts where a network that knows nothing (d = 0) expects the ties that there are."""

    def __init__(self, settings: LossSettings, pairs: Sequence[Preference]) -> None:
        """P(tie | d = 0) = 1 - 2 sigmoid(-t) = tanh(t / 2)."""
        super().__init__(settings)
        self.free_threshold = nn.Parameter(torch.tensor(free_of_positive(2 * math.atanh(_tie_share(pairs)))))

    def likelihood(self, difference: Tensor, labels: Labels) -> Tensor:
        """-log P(win, or tie | d)."""
        return rao_kupper(difference, _ties_of(labels, difference), positive(self.free_threshold))

    def learned(self) -> dict[str, float | list[float]]:
        """The threshold: a smaller difference of scores is more likely a tie than a win."""
        return {"threshold": float(positive(self.free_threshold.detach()))}


class Davidson(PairObjective):
    """See `davidson`; reads `tie`. nu starts where a network that knows nothing (d = 0) expects the ties that there are."""

    def __init__(self, settings: LossSettings, pairs: Sequence[Preference]) -> None:
        """P(tie | d = 0) = nu / (2 + nu)."""
        super().__init__(settings)
        share = _tie_share(pairs)
        self.log_nu = nn.Parameter(torch.tensor(math.log(2 * share / (1 - share))))

    def likelihood(self, difference: Tensor, labels: Labels) -> Tensor:
        """-log P(win, or tie | d)."""
        return davidson(difference, _ties_of(labels, difference), self.log_nu)

    def learned(self) -> dict[str, float | list[float]]:
        """Nu: how much likelier a tie is than either win between equal answers."""
        return {"nu": float(self.log_nu.detach().exp())}


class VoteShare(PairObjective):
    """See `binomial_votes`; reads `votes`, and a labelled tie is what its votes say.

    Unlike the soft labels of Bradley-Terry, a pair with ten votes weighs ten times as much as a pair with one. Divided by the mean number of votes of the
    training data, which keeps the loss, and with it the learning rate, at the size of one vote's.
    """

    def __init__(self, settings: LossSettings, pairs: Sequence[Preference]) -> None:
        """Count the votes."""
        super().__init__(settings)
        self.mean_votes = sum(sum(pair.votes) for pair in pairs if pair.votes is not None) / len(pairs)

    def likelihood(self, difference: Tensor, labels: Labels) -> Tensor:
        """-log P(the votes | d), but for the binomial coefficient."""
        assert labels.votes is not None
        return binomial_votes(difference, labels.votes) / self.mean_votes


class FlipNoise(PairObjective):
    """See `flip_noise`; reads `tie`. A tie has no way round to be wrong about: it is half a pair each way, smallest at d = 0."""

    def __init__(self, settings: LossSettings, pairs: Sequence[Preference]) -> None:
        """Nothing is taken from the data."""
        super().__init__(settings)
        self.flip_rate = settings.flip_rate

    def likelihood(self, difference: Tensor, labels: Labels) -> Tensor:
        """-log P(label | d)."""
        losses = flip_noise(difference, self.flip_rate)
        if labels.tie is None:
            return losses
        return torch.where(labels.tie, (losses + flip_noise(-difference, self.flip_rate)) / 2, losses)


class PlackettLuce(Objective):
    """See `plackett_luce`; reads the order of ranked groups and the `ratings` of rated ones."""

    def __init__(self, settings: LossSettings, groups: Sequence[Group]) -> None:
        """Nothing is taken from the data."""
        super().__init__()

    def forward(self, outputs: Tensor, labels: Labels) -> Tensor:
        """See `Objective`."""
        assert labels.rating is not None
        return plackett_luce(outputs[:, 0], labels.rating[:, 0], labels.sizes)

    def dev_losses(self, outputs: Tensor, labels: Labels) -> Tensor:
        """The same."""
        return self(outputs, labels)


class SquaredError(Objective):
    """The mean squared error of each answer against its ratings; the score is the weighted sum of the outputs.

    Args:
        weights: of the outputs in the score, (A,).
        ratings: of the training data, (n, A), NaN where unknown; the bias of the head starts at their means.
    """

    pins_level = True

    def __init__(self, weights: Sequence[float], ratings: NDArray[np.float64]) -> None:
        """Take the means of the columns."""
        super().__init__()
        self.num_outputs = len(weights)
        self.register_buffer("weights", torch.tensor(weights, dtype=torch.float32))
        self.means = torch.tensor(np.nanmean(ratings, axis=0), dtype=torch.float32)

    def forward(self, outputs: Tensor, labels: Labels) -> Tensor:
        """See `Objective`."""
        assert labels.rating is not None
        return squared_error(outputs, labels.rating, labels.sizes)

    def dev_losses(self, outputs: Tensor, labels: Labels) -> Tensor:
        """The same."""
        return self(outputs, labels)

    def initial_bias(self) -> Tensor:
        """The mean ratings: what a network that knows nothing should say."""
        return self.means.clone()

    def score(self, outputs: Tensor) -> Tensor:
        """The weighted sum of the outputs."""
        return (outputs * self.weights).sum(1)


class Ordinal(Objective):
    """See `cumulative_logit`, the mean over an example's answers; reads `ratings`, whose distinct training values are the levels.

    Thresholds start where a network that knows nothing (s = 0) expects each level as often as it is. They take up the level of the scores, so that the
    head needs no bias. A rating that training never saw counts as the nearest level, the lower of two.
    """

    def __init__(self, settings: LossSettings, groups: Sequence[Group]) -> None:
        """Find the levels and how often each stands in the data."""
        super().__init__()
        levels, counts = np.unique(_ratings_of(groups).astype(np.float32), return_counts=True)
        below = np.cumsum(counts)[:-1] / counts.sum()
        thresholds = np.log(below) - np.log1p(-below)
        gaps = [free_of_positive(float(gap)) for gap in np.diff(thresholds)]
        self.levels = levels.tolist()
        self.register_buffer("midpoints", torch.from_numpy((levels[1:] + levels[:-1]) / 2))
        # The lowest threshold, then the gaps in a form that may be any number: no step can put thresholds out of order.
        self.steps = nn.Parameter(torch.tensor([float(thresholds[0]), *gaps], dtype=torch.float32))

    def forward(self, outputs: Tensor, labels: Labels) -> Tensor:
        """See `Objective`."""
        assert labels.rating is not None
        known = ~torch.isnan(labels.rating)
        level = torch.bucketize(labels.rating[:, 0].nan_to_num().to(self.midpoints.dtype), self.midpoints)
        gaps = positive(self.steps[1:])
        thresholds = torch.cumsum(torch.cat([self.steps[:1], gaps]), 0)
        unbounded = gaps.new_full((1,), math.inf)
        losses = cumulative_logit(outputs[:, 0], level, thresholds, torch.cat([unbounded, gaps, unbounded]))
        return mean_of_counted(losses[:, None], known, labels.sizes)

    def dev_losses(self, outputs: Tensor, labels: Labels) -> Tensor:
        """The same."""
        return self(outputs, labels)

    def learned(self) -> dict[str, float | list[float]]:
        """The levels, and the thresholds between them on the scale of scores."""
        steps = self.steps.detach()
        thresholds = torch.cumsum(torch.cat([steps[:1], positive(steps[1:])]), 0)
        return {"levels": self.levels, "thresholds": thresholds.tolist()}


def _sides(outputs: Tensor) -> tuple[Tensor, Tensor]:
    """(chosen, rejected) scores, (2B, 1) -> twice (B,)."""
    return outputs[0::2, 0], outputs[1::2, 0]


def _share_of(labels: Labels, like: Tensor) -> Tensor | None:
    """The share of votes for chosen with ties at one half, (B,), or None where every label is certain."""
    if labels.tie is None:
        return labels.share
    share = torch.ones_like(like) if labels.share is None else labels.share
    return torch.where(labels.tie, 0.5, share)


def _ties_of(labels: Labels, like: Tensor) -> Tensor:
    """Which pairs are labelled ties, bool (B,); none where no label says so."""
    return torch.zeros_like(like, dtype=torch.bool) if labels.tie is None else labels.tie


def _tie_share(pairs: Sequence[Preference]) -> float:
    return sum(pair.tie for pair in pairs) / len(pairs)


def _ratings_of(groups: Sequence[Group]) -> NDArray[np.float64]:
    """All ratings of some groups end to end, (N,)."""
    return np.array([rating for group in groups for rating in group.ratings or ()], dtype=np.float64)


def attribute_ratings(group: Group, columns: Sequence[str]) -> NDArray[np.float64]:
    """What `per_answer` says of each answer in each of the columns, (K, A); NaN where it says nothing.

    Raises:
        DataError: at a value that is no finite number.
    """
    per_answer = group.metadata.get("per_answer", {})
    ratings = np.full((len(group.answers), len(columns)), math.nan)
    for column, name in enumerate(columns):
        for answer, value in enumerate(per_answer.get(name, ())):
            if value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
                raise DataError(
                    f"a finite number or null in `per_answer.{name}`",
                    f"{value!r} in group `{group.id}`",
                    "Mend the row, or leave the attribute out.",
                )
            ratings[answer, column] = value
    return ratings


def _all_attributes(groups: Sequence[Group], columns: Sequence[str]) -> NDArray[np.float64]:
    """The attributes of all answers end to end, (N, A)."""
    return np.concatenate([attribute_ratings(group, columns) for group in groups])


def _build_regression(settings: LossSettings, groups: Sequence[Group]) -> Objective:
    return SquaredError([1.0], _ratings_of(groups)[:, None])


def _build_attributes(settings: LossSettings, groups: Sequence[Group]) -> Objective:
    return SquaredError(list(settings.attributes.values()), _all_attributes(groups, list(settings.attributes)))


# ---------------------------------------------------------------- which data each loss needs, judged before any model loads

Check = Callable[[LossSettings, Sequence[Any]], None]


@dataclass(frozen=True)
class LossKind:
    """A loss as far as settings and data go.

    Args:
        data: which examples it is computed over: `Preference`, or `Group` for lists and ratings.
        needs: the data that it needs, for people.
        reads: label columns that it reads, if the settings let it; any other label in the data is left unread. `weight` is applied by `batch_loss`.
        check: refuses settings and training data that do not go with the loss.
        check_rows: the part of `check` that any data must pass, dev data too: what every single row needs.
        build: the module, from settings and training data that passed `check`.
        models_ties: whether a labelled tie has a likelihood of its own under it (of votes: what they say), so that ties belong in the dev part.
    """

    data: Literal["pairs", "lists", "ratings"]
    needs: str
    reads: frozenset[str]
    check: Check
    check_rows: Check
    build: Callable[[LossSettings, Sequence[Any]], Objective]
    models_ties: bool


def _loss_kind(
    data: Literal["pairs", "lists", "ratings"],
    needs: str,
    reads: set[str],
    build: Callable[[LossSettings, Sequence[Any]], Objective],
    *,
    rows: Sequence[Check] = (),
    whole: Sequence[Check] = (),
    models_ties: bool = False,
) -> LossKind:
    """A kind whose checks run in the order: settings, the kind of rows, every row, the data as a whole."""
    of_kind = _are_pairs if data == "pairs" else _are_groups
    check = _in_turn(_settings_are_read, of_kind, *rows, *whole)
    reads = {*reads, "weight"} if data == "pairs" else reads  # no other row has a weight
    return LossKind(data, needs, frozenset(reads), check, _in_turn(of_kind, *rows), build, models_ties)


def _in_turn(*checks: Check) -> Check:
    def check(settings: LossSettings, examples: Sequence[Any]) -> None:
        for part in checks:
            part(settings, examples)

    return check


def _settings_are_read(settings: LossSettings, examples: Sequence[Any]) -> None:
    """Refuse what is set but would not be read: no setting is ignored in silence."""
    pairs = {name for name, kind in LOSSES.items() if kind.data == "pairs"}
    readers = {
        "label_smoothing": {"bradley_terry"},
        "margin": {"bradley_terry"},
        "votes": {"bradley_terry"},
        "flip_rate": {"flip_noise"},
        "rating": {"regression", "ordinal"},
        "centring": pairs,
    }
    for field, names in readers.items():
        value = getattr(settings, field)
        if settings.name not in names and value != LossSettings.model_fields[field].default:
            raise SettingsError(
                f"`loss.{field}` only with a loss that reads it ({', '.join(sorted(names))})",
                f"{field} = {value!r} with the loss {settings.name}",
                f"Leave loss.{field} out, or choose such a loss.",
            )


def _are_pairs(settings: LossSettings, examples: Sequence[Any]) -> None:
    _refuse_any(
        [example for example in examples if not isinstance(example, Preference)],
        f"pairs for the loss {settings.name}",
        "that are none",
        "Write groups as pairs, or choose a loss of lists or ratings.",
    )


def _are_groups(settings: LossSettings, examples: Sequence[Any]) -> None:
    _refuse_any(
        [example for example in examples if not isinstance(example, Group)],
        f"{LOSSES[settings.name].needs} for the loss {settings.name}",
        "that are single pairs",
        "Give such rows, or choose a loss of pairs.",
    )


def _has_ties_and_wins(settings: LossSettings, pairs: Sequence[Preference]) -> None:
    ties = sum(pair.tie for pair in pairs)
    if ties in (0, len(pairs)):
        raise DataError(
            f"labelled ties (`tie`: true) and decided pairs for the loss {settings.name}",
            f"{ties} ties among {len(pairs)} pairs",
            'Use loss.name = "bradley_terry", or data with both.',
        )


def _have_votes(settings: LossSettings, pairs: Sequence[Preference]) -> None:
    _refuse_any(
        [pair for pair in pairs if pair.votes is None],
        "`votes` in every pair for the loss vote_share (a labelled tie counts by its votes too)",
        "without",
        'Add the votes, or use loss.name = "bradley_terry", which takes pairs with and without votes.',
    )


def _are_lists(settings: LossSettings, groups: Sequence[Group]) -> None:
    _refuse_any(
        [group for group in groups if group.order not in ("ranked", "rated") or len(group.answers) < 2],
        "ranked or rated groups of at least two answers for the loss plackett_luce",
        "that have no order, or one answer",
        "Give `ranked`, or `answers` with `ratings`.",
    )
    _refuse_any(
        [group for group in groups if group.order == "rated" and not _is_rated(group)],
        "a finite rating of every answer of a rated group",
        "without",
        "Mend the rows.",
    )


def _has_a_list_of_three(settings: LossSettings, groups: Sequence[Group]) -> None:
    if not any(len(group.answers) >= 3 and _is_ordered(group) for group in groups):
        raise DataError(
            "at least one list of three or more answers that are not all equal for the loss plackett_luce",
            f"{len(groups)} without",
            'Use loss.name = "bradley_terry": of two answers the losses are the same.',
        )


def _have_ratings(settings: LossSettings, groups: Sequence[Group]) -> None:
    _refuse_any(
        [group for group in groups if not group.answers or not _is_rated(group)],
        f"a finite rating of every answer for the loss {settings.name}",
        "without",
        "Give `answers` with `ratings` (or single answers with the column that loss.rating names), or choose a loss of pairs or lists.",
    )


def _has_two_ratings(settings: LossSettings, groups: Sequence[Group]) -> None:
    if len(np.unique(_ratings_of(groups))) < 2:
        raise DataError(
            f"at least two different ratings for the loss {settings.name}",
            f"one and the same in {len(groups)} rows" if groups else "no rows",
            "Give other data: nothing can be learned from a constant.",
        )


def _has_few_levels(settings: LossSettings, groups: Sequence[Group]) -> None:
    levels = len(np.unique(_ratings_of(groups).astype(np.float32)))
    if not 2 <= levels <= MAX_LEVELS:
        raise DataError(
            f"2 to {MAX_LEVELS} levels of ratings for the loss ordinal",
            f"{levels} different ratings",
            'Use loss.name = "regression", or round the ratings.' if levels > 2 else "Give other data.",
        )


def _know_attributes(settings: LossSettings, groups: Sequence[Group]) -> None:
    known = {name for group in groups for name in group.metadata.get("per_answer", {})}
    if missing := [name for name in settings.attributes if name not in known]:
        raise DataError(
            f"the columns {', '.join(settings.attributes)} in `per_answer` for the loss attributes",
            f"none named {', '.join(missing)} (the data's columns: {', '.join(sorted(known)) or 'none'})",
            "Mend the names in loss.attributes, or leave those attributes out.",
        )


def _have_attributes(settings: LossSettings, groups: Sequence[Group]) -> None:
    columns = list(settings.attributes)
    _refuse_any(
        [group for group in groups if np.isnan(attribute_ratings(group, columns)).all()],
        f"a value of at least one attribute ({', '.join(columns)}) in every row",
        "without any",
        "Leave these rows out, or add their `per_answer`.",
    )


def _attributes_vary_alike(settings: LossSettings, groups: Sequence[Group]) -> None:
    columns = list(settings.attributes)
    ratings = _all_attributes(groups, columns)
    for column, name in enumerate(columns):
        if np.isnan(ratings[:, column]).all():
            raise DataError(
                f"a value in `per_answer.{name}` somewhere in the data", "null everywhere", "Leave the attribute out."
            )
    ranges = dict(zip(columns, np.nanmax(ratings, axis=0) - np.nanmin(ratings, axis=0), strict=True))
    widest, narrowest = max(columns, key=ranges.__getitem__), min(columns, key=ranges.__getitem__)
    if ranges[narrowest] == 0:
        raise DataError(
            f"at least two different values in `per_answer.{narrowest}`",
            f"one in {len(groups)} rows",
            "Leave the attribute out: nothing can be learned from a constant.",
        )
    if ranges[widest] > MAX_RANGE_RATIO * ranges[narrowest]:
        raise DataError(
            f"attributes of about one scale (ranges within a factor of {MAX_RANGE_RATIO:g}), for one mean squared error is taken over all",
            f"a range of {ranges[widest]:g} in `{widest}` and of {ranges[narrowest]:g} in `{narrowest}`",
            "Rescale the columns, and their weights with them.",
        )


def _is_rated(group: Group) -> bool:
    ratings = group.ratings
    return ratings is not None and len(ratings) == len(group.answers) and all(map(math.isfinite, ratings))


def _is_ordered(group: Group) -> bool:
    return group.ratings is None or len(set(group.ratings)) > 1


def _refuse_any(refused: Sequence[Any], needed: str, without: str, mend: str) -> None:
    """Raise a DataError that counts the refused rows and names the first ones."""
    if refused:
        ids = ", ".join(f"`{example.id}`" for example in refused[:3])
        raise DataError(needed, f"{len(refused)} rows {without}, the first {ids}", mend)


LOSSES: dict[str, LossKind] = {
    "bradley_terry": _loss_kind("pairs", "pairs", {"margin", "votes", "tie"}, BradleyTerry),
    "rao_kupper": _loss_kind(
        "pairs", "pairs, some of them labelled ties", {"tie"}, RaoKupper, whole=[_has_ties_and_wins], models_ties=True
    ),
    "davidson": _loss_kind(
        "pairs", "pairs, some of them labelled ties", {"tie"}, Davidson, whole=[_has_ties_and_wins], models_ties=True
    ),
    "vote_share": _loss_kind("pairs", "pairs with votes", {"votes"}, VoteShare, rows=[_have_votes], models_ties=True),
    "flip_noise": _loss_kind("pairs", "pairs", {"tie"}, FlipNoise),
    "plackett_luce": _loss_kind(
        "lists",
        "ranked or rated groups, some of three or more answers",
        {"ratings"},
        PlackettLuce,
        rows=[_are_lists],
        whole=[_has_a_list_of_three],
    ),
    "regression": _loss_kind(
        "ratings",
        "answers with ratings",
        {"ratings"},
        _build_regression,
        rows=[_have_ratings],
        whole=[_has_two_ratings],
    ),
    "ordinal": _loss_kind(
        "ratings",
        f"answers with ratings of 2 to {MAX_LEVELS} levels",
        {"ratings"},
        Ordinal,
        rows=[_have_ratings],
        whole=[_has_few_levels],
    ),
    "attributes": _loss_kind(
        "ratings",
        "answers with columns of attributes in `per_answer`",
        {"per_answer"},
        _build_attributes,
        rows=[_have_attributes],
        whole=[_know_attributes, _attributes_vary_alike],
    ),
}
