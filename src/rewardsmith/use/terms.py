"""The steps of shaping: each takes running values of some samples to other values.

A step is settings and nothing else: frozen, checked when it is made, written to JSON and read back as it was. `name` says what it does; `label` names what it
adds, where two steps of one kind stand in a chain.

Legend: `n` samples, `K` reference answers of a prompt.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, TypeAlias

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, ValidationError, model_validator
from scipy.special import expit, log_expit
from scipy.stats import norm

from rewardsmith.auditing.ensembles import Standard
from rewardsmith.config import settings_error
from rewardsmith.data.schema import Pair
from rewardsmith.errors import DataError, SettingsError
from rewardsmith.functions import Function, as_scorer
from rewardsmith.scores import Scorer, checked
from rewardsmith.stats import Floats, cluster_codes
from rewardsmith.use.kl import AdaptiveKL, Estimator, FixedKL, kl_estimate
from rewardsmith.use.references import References
from rewardsmith.use.repetition import Unit, repeated_share
from rewardsmith.use.samples import Sample

Need: TypeAlias = Literal["num_tokens", "is_finished", "kl", "groups", "references"]
"""What a step asks for beside the score: a field of every sample, several answers to each prompt in a call, or scores of reference answers."""
LengthUnit: TypeAlias = Literal["tokens", "characters"]


@dataclass(frozen=True)
class Batch:
    """What steps are told of the samples whose values they change.

    Args:
        samples: (n,).
        references: where there are any.
        coefficients: of KL penalties as they stand, by label.
    """

    samples: Sequence[Sample]
    references: References | None
    coefficients: Mapping[str, float]

    def lengths(self, unit: LengthUnit, label: str) -> Floats:
        """The length of each answer, (n,)."""
        if unit == "characters":
            return np.array([len(sample.answer) for sample in self.samples], np.float64)
        mend = "Count them where the answers are made, or take unit = characters."
        return self.known("num_tokens", label, "the number of tokens", mend)

    def known(self, field: str, label: str, words: str, mend: str) -> Floats:
        """A field of every sample, (n,).

        Raises:
            DataError: if a sample has None.
        """
        values = [getattr(sample, field) for sample in self.samples]
        missing = sum(value is None for value in values)
        if missing:
            raise DataError(
                f"{words} of every answer, for the step `{label}`", f"{missing} of {len(values)} without", mend
            )
        return np.array(values, np.float64)

    def compared(self, label: str) -> list[Floats]:
        """The reference scores of each sample's prompt."""
        if self.references is None:
            raise SettingsError(
                f"scores of reference answers, for the step `{label}`", "none", "Give `references` to the shaping."
            )
        return self.references.of(self.samples)


class Step(BaseModel, ABC):
    """One step; see `apply` of each."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, protected_namespaces=())
    compares: ClassVar[bool] = False
    """Whether it compares raw scores with those of reference answers, and so must stand first."""

    name: str
    """What it does."""
    label: str | None = Field(default=None, min_length=1)
    """Of what it adds; its name where None."""

    def __init__(self, **settings: Any) -> None:
        """Check the settings.

        Raises:
            SettingsError: if they cannot be meant, or one is missing.
        """
        try:
            super().__init__(**settings)
        except ValidationError as error:
            raise settings_error(type(self), error) from error

    @property
    def key(self) -> str:
        """Of what it adds, in `Rewards.terms`."""
        return self.label or self.name

    @property
    def needs(self) -> frozenset[Need]:
        """What it asks for beside the score."""
        return frozenset({"references"}) if self.compares else frozenset()

    @abstractmethod
    def apply(self, values: Floats, batch: Batch) -> tuple[Floats, dict[str, int]]:
        """Other values in the place of these, (n,) float64, and what is to be counted."""


class ZScore(Step):
    """(value - mean) / sd by statistics that were measured once and stay (OpenRLHF stores such and serves by them)."""

    name: Literal["z_score"] = "z_score"
    mean: FiniteFloat
    """Of the scores that were measured."""
    sd: float = Field(gt=0, allow_inf_nan=False)
    """Their standard deviation."""
    n: int = Field(ge=2)
    """How many they were."""
    source: str = Field(min_length=1)
    """Of what they were: a data set by name or hash."""

    @classmethod
    def measured(cls, scorer: Scorer | Function, pairs: Sequence[Pair], *, source: str) -> ZScore:
        """By the scores of some (prompt, answer) pairs.

        Raises:
            ScoreError: if the scores are all equal.
        """
        scores = checked(as_scorer(scorer).score(pairs), len(pairs)).astype(np.float64)
        standard = Standard.of(scores, source)
        return cls(mean=standard.mean, sd=standard.sd, n=len(scores), source=source)

    @classmethod
    def from_contract(cls, contract: Mapping[str, Any]) -> ZScore:
        """By the normaliser of a model folder.

        Args:
            contract: the document rewardsmith.json: `RewardModel.contract.as_dict()`, `RemoteModel.contract()`, or the file itself.

        Raises:
            SettingsError: if it states none.
        """
        stated = contract.get("normaliser")
        try:
            return cls(
                mean=stated["mean"],  # type: ignore[index]
                sd=stated["std"],  # type: ignore[index]
                n=stated["n"],  # type: ignore[index]
                source=f"the model's training pairs, sha256 {stated['data_sha256'][:12]}",  # type: ignore[index]
            )
        except (KeyError, TypeError, SettingsError) as error:
            raise SettingsError(
                "a contract with a normaliser (mean, std, n, data_sha256)",
                "none" if stated is None else repr(stated),
                "Measure one: ZScore.measured(scorer, pairs, source=...).",
            ) from error

    def apply(self, values: Floats, batch: Batch) -> tuple[Floats, dict[str, int]]:
        """(value - mean) / sd."""
        return (values - self.mean) / self.sd, {}


class PromptZScore(Step):
    """(score - mean) / sd by the K reference answers to the same prompt: what is easy to answer well earns nothing by it."""

    name: Literal["prompt_z_score"] = "prompt_z_score"
    compares: ClassVar[bool] = True

    def apply(self, values: Floats, batch: Batch) -> tuple[Floats, dict[str, int]]:
        """The sd is that of a sample, over K - 1."""
        compared = batch.compared(self.key)
        flat = sum(ref.min() == ref.max() for ref in compared)
        if flat:
            raise DataError(
                f"reference answers whose scores differ, for the step `{self.key}`",
                f"{flat} of {len(compared)} samples of prompts where they are equal",
                "Draw more reference answers to these prompts, or leave them out.",
            )
        means, sds = (np.array([of(ref) for ref in compared]) for of in (np.mean, _sd))
        return (values - means) / sds, {}


class GroupZScore(Step):
    """(value - mean) / sd among the answers to one prompt in one call (GRPO; Shao et al. 2024, "DeepSeekMath", 4.1).

    Where all answers to a prompt have one value, nothing can be learned from it: they get 0, and the group is counted. Trainers of GRPO do this themselves, and
    a function that is asked for one answer at a time cannot.
    """

    name: Literal["group_z_score"] = "group_z_score"
    scale: bool = True
    """False only subtracts the mean (Liu et al. 2025, "Dr. GRPO"): a prompt whose answers hardly differ then moves the policy less."""

    @property
    def needs(self) -> frozenset[Need]:
        """Several answers to each prompt."""
        return frozenset({"groups"})

    def apply(self, values: Floats, batch: Batch) -> tuple[Floats, dict[str, int]]:
        """The sd is that of a sample, over the group's size - 1."""
        codes = cluster_codes([sample.group for sample in batch.samples])
        sizes = np.bincount(codes)
        if sizes.min() < 2:
            raise DataError(
                f"at least two answers to each prompt in a call, for the step `{self.key}`",
                f"{int((sizes < 2).sum())} of {len(sizes)} prompts with one",
                "Draw several answers a prompt, or normalise by z_score or prompt_z_score.",
            )
        found, equal = np.zeros_like(values), 0
        for code in range(len(sizes)):
            rows = codes == code
            group = values[rows]
            if group.min() == group.max():
                equal += 1
                continue
            found[rows] = (group - group.mean()) / (_sd(group) if self.scale else 1.0)
        return found, {"groups": len(sizes), "equal_groups": equal}


class Clip(Step):
    """Values below `low` become `low`, those above `high` become `high`."""

    name: Literal["clip"] = "clip"
    low: FiniteFloat
    """The least value."""
    high: FiniteFloat
    """The largest value."""

    @model_validator(mode="after")
    def _low_is_lower(self) -> Clip:
        if not self.low < self.high:
            raise ValueError(f"low lies below high; got {self.low:g} and {self.high:g}")
        return self

    def apply(self, values: Floats, batch: Batch) -> tuple[Floats, dict[str, int]]:
        """min(high, max(low, value)); how many changed is counted."""
        found = np.clip(values, self.low, self.high)
        return found, {"clipped": int((found != values).sum())}


class PreferenceAsReward(Step):
    """mean_j sigmoid(k (r - r_j)) over the K reference answers: how probably this one would be preferred, within (0, 1).

    Bounded, steep where the policy begins and flat above: Fu et al. 2025, "Reward shaping to mitigate reward hacking in RLHF" (PAR, arXiv 2502.18770).
    """

    name: Literal["par"] = "par"
    compares: ClassVar[bool] = True
    k: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    """How steep; 1 / the calibrated temperature makes it the probability that the reward model means."""

    def apply(self, values: Floats, batch: Batch) -> tuple[Floats, dict[str, int]]:
        """See the class."""
        compared = batch.compared(self.key)
        means = [expit(self.k * (value - ref)).mean() for value, ref in zip(values, compared, strict=True)]
        return np.array(means, np.float64), {}


class LogSigmoid(Step):
    """log sigmoid(r - q), q being a quantile of the reference answers' scores to the same prompt; at most 0.

    Z. Wang et al. 2024, "Transforming and combining rewards for aligning large language models" (arXiv 2402.00742), who take the 85 % quantile. It is that of the
    normal distribution with the K scores' mean and sd, as in PAR's repository: of few scores the empirical one would be noise.
    """

    name: Literal["log_sigmoid"] = "log_sigmoid"
    compares: ClassVar[bool] = True
    quantile: float = Field(default=0.85, gt=0, lt=1)
    """From where on better answers earn little more."""

    def apply(self, values: Floats, batch: Batch) -> tuple[Floats, dict[str, int]]:
        """See the class."""
        reach = float(norm.ppf(self.quantile))
        points = np.array([ref.mean() + reach * _sd(ref) for ref in batch.compared(self.key)])
        return np.asarray(log_expit(values - points), np.float64), {}


class LengthPenalty(Step):
    """value - cost * length (0.001 a character: Huang et al. 2024, "Post-hoc reward calibration", its baseline)."""

    name: Literal["length"] = "length"
    cost: float = Field(gt=0, allow_inf_nan=False)
    """Of one unit."""
    unit: LengthUnit = "tokens"
    """Tokens are those of the policy."""

    @property
    def needs(self) -> frozenset[Need]:
        """Token counts, unless characters are counted."""
        return _counted(self.unit)

    def apply(self, values: Floats, batch: Batch) -> tuple[Floats, dict[str, int]]:
        """See the class."""
        return values - self.cost * batch.lengths(self.unit, self.key), {}


class LengthBudget(Step):
    """Nothing up to a budget, `cost` for each unit beyond it, with a soft edge.

    value - cost * h(length - budget), with h(x) = x^2 / (2 edge) on the way from 0 to `edge` and x - edge / 2 beyond: without an edge it is max(0, x), the
    penalty in PAR's repository; with one, an answer a token over the budget is hardly worse than one within it.
    """

    name: Literal["length_budget"] = "length_budget"
    budget: float = Field(ge=0, allow_inf_nan=False)
    """Units that are free."""
    cost: float = Field(gt=0, allow_inf_nan=False)
    """Of one unit, well beyond the budget."""
    edge: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    """Units over which the cost sets in."""
    unit: LengthUnit = "tokens"
    """Tokens are those of the policy."""

    @property
    def needs(self) -> frozenset[Need]:
        """Token counts, unless characters are counted."""
        return _counted(self.unit)

    def apply(self, values: Floats, batch: Batch) -> tuple[Floats, dict[str, int]]:
        """How many answers went over is counted."""
        over = np.maximum(0.0, batch.lengths(self.unit, self.key) - self.budget)
        paid = over - self.edge / 2
        if self.edge > 0:
            paid = np.where(over < self.edge, over**2 / (2 * self.edge), paid)
        return values - self.cost * paid, {"over_budget": int((over > 0).sum())}


class Overlong(Step):
    """- factor * min(x, buffer) / buffer for answers of x > 0 tokens more than max_length - buffer.

    The soft overlong punishment of Yu et al. 2025, "DAPO", 3.4: answers about to be cut are warned, and a cut one loses `factor`.
    """

    name: Literal["overlong"] = "overlong"
    max_length: int = Field(ge=1)
    """Tokens at which the policy is cut."""
    buffer: int = Field(ge=1)
    """Tokens before that over which the punishment rises."""
    factor: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    """The whole of it."""

    @model_validator(mode="after")
    def _buffer_fits(self) -> Overlong:
        if self.buffer > self.max_length:
            raise ValueError(f"buffer is at most max_length; got {self.buffer} and {self.max_length}")
        return self

    @property
    def needs(self) -> frozenset[Need]:
        """Token counts."""
        return _counted("tokens")

    def apply(self, values: Floats, batch: Batch) -> tuple[Floats, dict[str, int]]:
        """How many answers it touched is counted."""
        over = batch.lengths("tokens", self.key) - (self.max_length - self.buffer)
        paid = self.factor * np.clip(over, 0, self.buffer) / self.buffer
        return values - paid, {"overlong": int((paid > 0).sum())}


class RepetitionPenalty(Step):
    """value - cost * share of repeated n-grams; see `repetition.repeated_share`."""

    name: Literal["repetition"] = "repetition"
    cost: float = Field(gt=0, allow_inf_nan=False)
    """Of an answer that says nothing but one thing."""
    n: int = Field(default=3, ge=1)
    """Units of an n-gram."""
    of: Unit = "words"
    """The units; characters for languages without spaces."""

    def apply(self, values: Floats, batch: Batch) -> tuple[Floats, dict[str, int]]:
        """See the class."""
        shares = [repeated_share(sample.answer, self.n, of=self.of) for sample in batch.samples]
        return values - self.cost * np.array(shares, np.float64), {}


class MissingEnd(Step):
    """value - penalty for an answer that the policy did not end itself (`missing_eos_penalty` of TRL)."""

    name: Literal["missing_end"] = "missing_end"
    penalty: float = Field(gt=0, allow_inf_nan=False)
    """What such an answer loses."""

    @property
    def needs(self) -> frozenset[Need]:
        """Whether answers were finished."""
        return frozenset({"is_finished"})

    def apply(self, values: Floats, batch: Batch) -> tuple[Floats, dict[str, int]]:
        """How many they are is counted."""
        mend = "Give the policy's end tokens (`tokenizer` or `end_token_ids`) to the reward function."
        finished = batch.known("is_finished", self.key, "whether the policy ended it itself,", mend)
        return values - self.penalty * (1 - finished), {"unfinished": int((finished == 0).sum())}


class KLPenalty(Step):
    """value - coefficient * KL, estimated from the answer's log-ratio; the coefficient is fixed, or kept near a target (see `use.kl`).

    Trainers that take KL into their loss or reward (`beta` of TRL) must not be given it a second time.
    """

    name: Literal["kl"] = "kl"
    coefficient: float = Field(gt=0, allow_inf_nan=False)
    """Reward lost for a nat; of an adaptive one, to begin with."""
    estimator: Estimator = "k1"
    """Of `use.kl.kl_estimate`, of the log-ratio summed over the answer: k2 and k3 grow with its square and its exponential."""
    target: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    """Nats an answer that an adaptive coefficient keeps near; None for a fixed one."""
    horizon: int = Field(default=10_000, ge=1)
    """Answers after which an adaptive coefficient has followed."""

    @property
    def needs(self) -> frozenset[Need]:
        """The log-ratio of every answer."""
        return frozenset({"kl"})

    def controller(self) -> FixedKL:
        """What holds the coefficient while it changes."""
        if self.target is None:
            return FixedKL(self.coefficient)
        return AdaptiveKL(self.coefficient, self.target, self.horizon)

    def estimates(self, batch: Batch) -> Floats:
        """Nats of each answer, (n,)."""
        mend = "Only what computes log-probabilities under policy and reference knows it; leave the step out elsewhere."
        log_ratios = batch.known("kl", self.key, "`kl`", mend)
        with np.errstate(over="ignore"):  # what overflows is refused as not finite
            return kl_estimate(log_ratios, self.estimator)

    def apply(self, values: Floats, batch: Batch) -> tuple[Floats, dict[str, int]]:
        """See the class."""
        return values - batch.coefficients[self.key] * self.estimates(batch), {}


STEPS: dict[str, type[Step]] = {
    step.model_fields["name"].default: step
    for step in (
        ZScore,
        PromptZScore,
        GroupZScore,
        Clip,
        PreferenceAsReward,
        LogSigmoid,
        LengthPenalty,
        LengthBudget,
        Overlong,
        RepetitionPenalty,
        MissingEnd,
        KLPenalty,
    )
}
"""Every step by its name."""


def _sd(values: Floats) -> np.float64:
    return np.float64(values.std(ddof=1))


def _counted(unit: LengthUnit) -> frozenset[Need]:
    return frozenset({"num_tokens"}) if unit == "tokens" else frozenset()
