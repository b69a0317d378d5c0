"""Settings: one frozen model a verb, unknown keys refused, each field documented by the text under it. No torch here."""

from __future__ import annotations

import difflib
import json
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, ValidationError, field_validator, model_validator

from rewardsmith.errors import SettingsError

DEFAULT_TEMPLATE = "### Prompt:\n{prompt}\n\n### Answer:\n{answer}"
SLOTS = ("{prompt}", "{answer}")

Truncation = Literal["keep_answer", "right", "drop", "error"]
Encoding = Literal["auto", "text", "chat", "pair"]
Pooling = Literal["auto", "pooler", "cls", "mean", "last", "native"]
Precision = Literal["auto", "float32", "bf16", "fp16"]
Device = Literal["auto", "cpu", "cuda", "mps"]
Batching = Literal["auto", "packed", "padded"]
SharePrompts = Literal["auto"] | bool


class _Settings(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, protected_namespaces=())


LossName = Literal[
    "bradley_terry",
    "rao_kupper",
    "davidson",
    "vote_share",
    "flip_noise",
    "plackett_luce",
    "regression",
    "ordinal",
    "attributes",
]


class LossSettings(_Settings):
    """What is minimised, and over which data (formulas and the data that each needs: `rewardsmith.model.losses`)."""

    name: LossName = "bradley_terry"
    """Pairs: bradley_terry, rao_kupper and davidson (with ties), vote_share, flip_noise; lists: plackett_luce; ratings: regression, ordinal, attributes."""
    label_smoothing: float = Field(default=0.0, ge=0.0, lt=0.5)
    """bradley_terry: e in (1 - e) softplus(-d) + e softplus(d); bounds the margins at ln((1 - e) / e)."""
    centring: float = Field(default=0.0, ge=0.0, allow_inf_nan=False)
    """Losses of pairs: c in c mean((s_chosen + s_rejected)^2); pins the level of the scores, 0.01 is usual."""
    margin: bool = True
    """bradley_terry: subtract the column `margin` from d where the data has one."""
    weight: bool = True
    """Weight examples by the column `weight` where the data has one."""
    votes: bool = True
    """bradley_terry: use vote shares of the column `votes` as soft labels where the data has one."""
    allow_negative_margin: bool = False
    """Accept margins below 0, which say that the *rejected* answer should score higher."""
    flip_rate: float = Field(default=0.1, gt=0.0, lt=0.5)
    """flip_noise: e in -log((1 - e) sigmoid(d) + e sigmoid(-d)), the share of labels that are the wrong way round."""
    rating: str = "rating"
    """regression, ordinal: the column of single answers that holds the rating; rated groups bring their own `ratings`."""
    attributes: dict[str, FiniteFloat] = Field(default_factory=dict)
    """attributes: {column: weight}; each column gets a head of its own, and the score is the weighted sum of the heads."""

    @model_validator(mode="after")
    def _attributes_are_declared(self) -> LossSettings:
        if (self.name == "attributes") != bool(self.attributes):
            raise ValueError('name = "attributes" and the table `attributes` = {column: weight} go together')
        if self.attributes and not any(self.attributes.values()):
            raise ValueError("at least one attribute has a weight other than 0")
        return self


class LoraSettings(_Settings):
    """Low-rank adapters on the linear layers of the backbone, through peft (extra `lora`); the head is always trained in full."""

    rank: int = Field(default=16, ge=1)
    """Rank of the two factors."""
    alpha: float = Field(default=32.0, gt=0, allow_inf_nan=False)
    """The update is scaled by alpha / rank."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Dropout before the first factor."""
    dora: bool = False
    """Learn the size of each row apart from its direction (DoRA)."""
    targets: Literal["all-linear"] | Annotated[tuple[str, ...], Field(min_length=1)] = "all-linear"
    """Names of the linear layers, e.g. ["q_proj", "v_proj"]; "all-linear" is every one of the backbone."""


class PromptSwapSettings(_Settings):
    """Extra pairs made from answers of other prompts, so that a score depends on the prompt (RRM, Liu et al. 2024)."""

    off_topic: float = Field(default=0.0, ge=0, le=10)
    """Extra pairs a training pair: its chosen answer over an answer to another prompt."""
    neutral: float = Field(default=0.0, ge=0, le=10)
    """Extra pairs a training pair: two answers to other prompts, labelled as a tie."""


class HeadSettings(_Settings):
    """How the head over a frozen encoder is found, and how sure it is (`freeze = "encoder"`; docs/frozen.md)."""

    solver: Literal["adamw", "lbfgs"] = "adamw"
    """`adamw` takes steps like any training; `lbfgs` finds the one head that minimises the loss with an L2 penalty (bradley_terry, vote_share)."""
    l2: Literal["cv"] | Annotated[float, Field(gt=0, allow_inf_nan=False)] = "cv"
    """lbfgs: the strength of the penalty, in units that do not depend on the size of the features; "cv" chooses it by cross-validation over prompts."""
    folds: int = Field(default=5, ge=2, le=50)
    """lbfgs: parts of whole prompts for the cross-validation."""
    resamples: int = Field(default=0, ge=0, le=10_000)
    """lbfgs: heads on data drawn again by prompt, whose spread is reported; 0 for none, 100 is enough."""

    @model_validator(mode="after")
    def _a_spread_needs_two(self) -> HeadSettings:
        if self.resamples == 1:
            raise ValueError("resamples is 0 or at least 2: one head has no spread")
        return self


class TrainSettings(_Settings):
    """Everything `rewardsmith train` can be told: the root keys of a recipe."""

    model: str
    """Folder, Hugging Face name, or `minilm` (the encoder of the extra `demo`)."""
    data: str
    """Preference pairs: .jsonl, .jsonl.gz, .parquet, .csv, a folder or glob of such files, a saved dataset folder or a Hugging Face name."""
    dev_data: str | None = None
    """Pairs that choose the checkpoint; without it a part of `data` is split off by prompt."""
    eval_data: str | None = None
    """Pairs that are scored once, at the end, and never looked at before."""
    out: str
    """The run folder."""
    max_length: int = Field(default=512, ge=8)
    """Tokens a text may have, special tokens included."""
    truncation: Truncation = "keep_answer"
    """What happens to a longer text."""
    encoding: Encoding = "auto"
    """`text` (the template), `chat` (the tokenizer's chat template), `pair` (two segments); `auto`: chat where there is a template, else text."""
    template: str = DEFAULT_TEMPLATE
    """The text template; holds {prompt} and {answer} once each, the answer last."""
    pooling: Pooling = "auto"
    """How token states become one vector."""
    loss: LossSettings = LossSettings()
    """A table, or only the loss's name."""
    freeze: Literal["none", "encoder"] | int = "none"
    """`encoder` trains the head alone; n freezes the embeddings and the first n layers, -k all but the last k."""
    head: HeadSettings = HeadSettings()
    """How the head is found where it alone is trained."""
    lora: LoraSettings | None = None
    """A table, or `true` for its defaults: train low-rank adapters in place of the weights of the layers that are not frozen."""
    head_learning_rate: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    """Peak learning rate of the head; `learning_rate` where unset."""
    layer_decay: float = Field(default=1.0, gt=0, le=1)
    """Each layer learns by this factor slower than the one above it, the embeddings slowest."""
    ema_decay: float = Field(default=0.0, ge=0, lt=1)
    """Keep an exponential moving average of the trained weights and judge and save that; 0 keeps none, 0.99 averages about 100 steps."""
    patience: int | None = Field(default=None, ge=1, strict=True)
    """Stop when so many checkpoints in a row have not lowered the loss on the dev part."""
    prompt_swap: PromptSwapSettings = PromptSwapSettings()
    """Extra training pairs from answers of other prompts."""
    dropout: bool = False
    """Train with the model's own dropout; off, because it is noise in a paired comparison."""
    precision: Precision = "auto"
    """Of the training steps; reported scores are float32 whatever stands here."""
    seed: int = Field(default=0, ge=0)
    """Of the head, the splits and the order of the pairs."""
    batch_size: int = Field(default=16, ge=1)
    """Pairs an optimiser step."""
    batch_tokens: int = Field(default=8192, ge=1)
    """Tokens of one forward and backward pass: a step of more tokens is taken in parts that are summed, which changes its memory and not its result."""
    batching: Batching = "auto"
    """`packed`: texts end to end without padding; `padded`: as every model of transformers takes them; `auto`: packed where that is exact and faster."""
    share_prompts: SharePrompts = "auto"
    """Decoders: answers to one prompt read it once; `auto`: where batches are packed."""
    learning_rate: float = Field(default=2e-5, gt=0, allow_inf_nan=False)
    """AdamW's peak learning rate."""
    weight_decay: float = Field(default=0.01, ge=0, allow_inf_nan=False)
    """AdamW's weight decay."""
    epochs: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    """Passes over the training pairs."""
    dev_share: float = Field(default=0.05, ge=0, lt=1)
    """Share of `data` split off by prompt to choose the checkpoint; 0 keeps the last checkpoint."""
    max_dropped_share: float = Field(default=0.05, ge=0, le=1)
    """Share of rows that may be dropped from training for faults of content before it is an error."""
    skip_bad: bool = False
    """Count malformed rows instead of stopping at the first."""
    stream: int = Field(default=0, ge=0)
    """Examples in memory at a time, of data that do not fit it (docs/streaming.md); 0 reads everything at once."""
    cache: bool = True
    """Keep token ids, what frozen parts make of the texts, and what the first pass over a stream found, on disk between runs."""
    frozen_cache_gb: float = Field(default=10.0, ge=0, allow_inf_nan=False)
    """The most that the states of frozen layers (`freeze = n`) may take in the cache folder, in GB; 0: these layers run at every step."""
    device: Device = "auto"
    """Where to train."""
    threads: int | None = Field(default=None, ge=1)
    """CPU threads; all cores when unset."""
    shard: bool = False
    """Several processes: deal weights, gradients and optimiser state out over them (FSDP2) instead of giving each the whole."""
    trainer: dict[str, Any] = Field(default_factory=dict)
    """Any other field of transformers.TrainingArguments, handed on untouched; wins over its twin above."""

    @field_validator("loss", mode="before")
    @classmethod
    def _loss_by_name(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value

    @field_validator("freeze", mode="before")
    @classmethod
    def _freeze_is_named_or_counted(cls, value: Any) -> Any:
        if value not in ("none", "encoder") and (isinstance(value, bool) or not isinstance(value, int)):
            raise ValueError('"none", "encoder", or a whole number of layers')
        return value

    @field_validator("lora", mode="before")
    @classmethod
    def _lora_by_flag(cls, value: Any) -> Any:
        return {True: {}, False: None}[value] if isinstance(value, bool) else value

    @field_validator("template")
    @classmethod
    def _template_slots(cls, value: str) -> str:
        check_template(value)
        return value

    @model_validator(mode="after")
    def _output_is_no_input(self) -> TrainSettings:
        out = Path(self.out).resolve()
        for name in ("model", "data", "dev_data", "eval_data"):
            source = getattr(self, name)
            if source and Path(source).exists() and Path(source).resolve().is_relative_to(out):
                raise ValueError(
                    f"out is or holds {name} ({source}), which --overwrite would delete; choose another out"
                )
        return self


def check_template(template: str) -> None:
    """Refuse a text template that does not hold each slot once, the answer after the prompt.

    Raises:
        ValueError: naming the slot.
    """
    for slot in SLOTS:
        if template.count(slot) != 1:
            raise ValueError(f"a template holds {slot} exactly once; found it {template.count(slot)} times")
    if template.index(SLOTS[0]) > template.index(SLOTS[1]):
        raise ValueError("a template holds {prompt} before {answer}")


class LintSettings(_Settings):
    """What `rewardsmith lint` can be told."""

    data: str
    """The source to examine."""
    eval_data: str | None = None
    """Pairs that the data must not share a prompt with."""
    benchmarks: tuple[tuple[str, str], ...] = ()
    """(name, file) of benchmarks that the data must not overlap."""
    format: str | None = None
    """Name of the rows' format; recognised row by row where None."""
    rules: tuple[str, ...] = ()
    """The rules that run; all where empty."""
    ignore: tuple[str, ...] = ()
    """Rules that do not."""
    near: bool = True
    """Look for near duplicates, which takes half of the time."""
    jobs: int | None = Field(default=None, ge=1)
    """Processes; as many as cores where None."""
    max_length: int = Field(default=512, ge=8)
    """The limit of the rule `truncated_equal`, where a tokenizer is given."""
    max_suspect_pairs: int = Field(default=20_000, ge=20)
    """Pairs that are judged for suspect labels: more are sampled down to this, whole prompts at a time."""
    seed: int = 0
    """Of folds and samples."""


class ScoringSettings(_Settings):
    """How a saved model is run by `score`, `evaluate` and `verify`."""

    device: Device = "auto"
    """Where to run."""
    precision: Literal["float32", "bf16"] = "float32"
    """bf16 is recorded with the result."""
    batch_tokens: int = Field(default=4096, ge=1)
    """Tokens of one forward pass, padding included."""
    batching: Batching = "auto"
    """`packed`: texts end to end without padding; `padded`: as every model of transformers takes them; `auto`: packed where that is exact and faster."""
    share_prompts: SharePrompts = "auto"
    """Decoders: texts that begin alike read their beginning once; `auto`: where batches are packed."""
    prompt_states_mib: int = Field(default=0, ge=0)
    """Decoders: memory for what beginnings of earlier calls left behind; 0: every call reads its texts whole, and equal calls are equal to the bit."""


class AuditSettings(_Settings):
    """What `rewardsmith audit` can be told; `--set name=value` reaches what has no flag."""

    probes: tuple[str, ...] | None = None
    """Probes, families or kinds to ask; all by default."""
    without: tuple[str, ...] = ()
    """Probes, families or kinds to leave out."""
    extend: tuple[str, ...] = ()
    """Python files with further probes."""
    prompts: int = Field(default=200, ge=2)
    """Prompts of the sample."""
    pairs_per_prompt: int = Field(default=1, ge=1)
    """Pairs of each prompt."""
    fail_over: tuple[str, ...] = ()
    """NAME=NUMBERsd: the largest effect of a probe or of each probe of a family; beyond it the exit code is 1."""
    baseline: str | None = None
    """The folder of an earlier audit on the same data, to compare with."""
    search: bool = False
    """Look for the words that raise scores most."""
    search_prompts: int = Field(default=128, ge=20)
    """Prompts of the search: half to look on, half to measure on."""
    search_texts: int = Field(default=20_000, ge=1)
    """Texts that the search may score."""
    search_words: int = Field(default=3, ge=1)
    """Words of the longest phrase that is looked for."""
    language_model: str | None = None
    """A causal language model that says how unusual the found words are."""
    pool: str | None = None
    """Groups of candidates, to measure what best-of-n does to the score and to a better judge."""
    policy: str | None = None
    """A causal language model that draws the candidates of the sample's prompts instead."""
    candidates: int = Field(default=8, ge=2)
    """Answers that a policy draws to each prompt."""
    max_new_tokens: int = Field(default=256, ge=1)
    """Of an answer that a policy draws."""
    gold: str | None = None
    """The better judge of candidates: a MODEL, or `labels` for those of the pool."""
    ensemble: tuple[str, ...] = ()
    """Further MODELs that are judged as an ensemble with the audited one."""
    copies: int = Field(default=2, ge=0)
    """Edited copies of each candidate that are put into the pool, drawn among the edits of the probes; 0 for none."""
    against: str | None = None
    """New prompts, with or without answers, to compare with the data."""
    by: str | None = None
    """A metadata column of the data, each value of which is foretold from the others."""
    encoder: str | None = None
    """What describes texts for `against`; the audited model where it is a folder."""
    store_domain: str | None = None
    """A folder for the detector of unusual texts, for `rewardsmith serve --set domain=FOLDER`."""

    @model_validator(mode="after")
    def _can_be_meant(self) -> AuditSettings:
        if self.pool is not None and self.policy is not None:
            raise ValueError("candidates come from `pool` or from `policy`: give one of the two")
        has_candidates = self.pool is not None or self.policy is not None
        if has_candidates != (self.gold is not None):
            raise ValueError("`gold` judges the candidates of `pool` or `policy`: give it with one of them")
        if self.ensemble and not has_candidates:
            raise ValueError("`ensemble` is for the candidates of `pool` or `policy`: give one of them")
        if self.gold == "labels" and self.pool is None:
            raise ValueError("answers that a policy draws have no labels: give a MODEL as `gold`")
        for name in ("by", "encoder", "store_domain"):
            if getattr(self, name) is not None and self.against is None:
                raise ValueError(f"`{name}` is for `against`: give new prompts")
        return self


class ServeSettings(_Settings):
    """What `rewardsmith serve` can be told; `--set name=value` reaches what has no flag."""

    host: str = "127.0.0.1"
    """The address to listen on; another than loopback needs keys."""
    port: int = Field(default=8000, ge=0, le=65535)
    """0 takes a free one, which is printed."""
    keys_file: str | None = None
    """Keys that let in, one a line; also from the environment variable REWARDSMITH_API_KEYS."""
    insecure: bool = False
    """Serve other machines without keys, where the network itself is closed."""
    allowed_hosts: tuple[str, ...] = ()
    """Names that a Host header may give; on loopback those of loopback, elsewhere any where none is given."""
    templated_texts: bool = False
    """Clients send /classify and /pooling texts that they rendered with the model's chat template (verl): the control tokens in them are meant."""
    batch_tokens: int = Field(default=4096, ge=1)
    """Tokens of one batch."""
    prompt_states_mib: int = Field(default=512, ge=0)
    """Decoders: memory for what the beginnings of earlier requests left behind, in MiB a model; 0: every batch reads its texts whole."""
    max_wait: float = Field(default=0.002, ge=0, le=1)
    """Seconds for which a batch that is not full waits for more, while several clients are active."""
    queue_texts: int = Field(default=8192, ge=1)
    """Texts that may be held at a time; more are answered 429."""
    deadline: float = Field(default=60.0, gt=0)
    """Seconds until a request that has no score yet is answered 504."""
    max_requests: int = Field(default=512, ge=1)
    """Requests that may be open at a time; more are answered 429."""
    max_texts: int = Field(default=1024, ge=1)
    """Texts of one request."""
    max_characters: int = Field(default=1_000_000, ge=1)
    """Characters of one text."""
    max_body_bytes: int = Field(default=16 * 2**20, ge=1)
    """Bytes of one body."""
    body_seconds: float = Field(default=30.0, gt=0)
    """For which a body may take to come."""
    header_seconds: float = Field(default=10.0, gt=0)
    """For which a connection may take to send the head of a request."""
    access_log: bool = False
    """A line a request, with its path and status and no text."""
    domain: str | None = None
    """A detector that `audit --against` has saved: results of /v1/score then say how far each text lies from its reference; the texts are described once more, which for a model's own features takes about as long as its score."""
    guardrail: float | str | None = None
    """POST /v1/guard: the share of good answers that may be stopped, of which `calibrate` has stored a threshold with every served model; or a file of `Guardrail.save`."""


class PPOSettings(_Settings):
    """Everything `rewardsmith ppo` can be told (formulas: `rewardsmith.model.ppo`)."""

    policy: str
    """The causal language model to train: a folder, a Hugging Face name, a GGUF file or `smollm2`. As it comes, it is also the reference."""
    reward_model: str | None = None
    """What scores: a model or run folder, the URL of a server, or FILE.py:FUNCTION. In Python a reward function is given instead."""
    prompts: str | None = None
    """Rows of any kind that have prompts. In Python prompts are given instead."""
    eval_prompts: str | None = None
    """Held-out prompts, answered before and after the run; none of them is trained on."""
    out: str
    """The run folder."""
    lora: LoraSettings | None = None
    """A table, or `true` for its defaults: train adapters; the reference is then the policy without them, else it is a frozen copy."""
    merge: bool = False
    """Save a policy with adapters as a whole checkpoint in place of an adapter folder."""
    shaping: tuple[dict[str, Any], ...] = ()
    """Tables `[[shaping]]`, each with the `name` of a step: what becomes of the scores. A KL step is refused, since PPO takes KL off itself."""
    watch: bool = False
    """Watch the run: alarms are printed and kept in watch.json."""
    watch_probes: int = Field(default=0, ge=0)
    """Of a watch: put the audit's probes to the reward model on the current answers, every so many steps; 0: never."""
    max_prompt_tokens: int = Field(default=256, ge=8)
    """Longer prompts are cut for the policy as by `keep_answer`, and counted; the reward model reads them whole."""
    max_new_tokens: int = Field(default=128, ge=1)
    """Where an answer is cut; it then counts as not finished."""
    temperature: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    """Of the softmax of policy and reference, in drawing and in log-probabilities alike."""
    steps: int = Field(default=100, ge=1)
    """Rounds of answering, rewarding and updating."""
    prompts_per_step: int = Field(default=16, ge=1)
    """Prompts answered in a step."""
    answers_per_prompt: int = Field(default=1, ge=1)
    """Answers to each of them."""
    epochs: int = Field(default=2, ge=1)
    """Passes over the answers of a step."""
    minibatches: int = Field(default=2, ge=1)
    """Optimiser steps a pass."""
    batch_tokens: int = Field(default=4096, ge=1)
    """Tokens of one forward pass, padding included; a minibatch of more is taken in parts that are summed."""
    learning_rate: float = Field(default=1e-5, gt=0, allow_inf_nan=False)
    """AdamW's rate of the policy; adapters take about ten times that."""
    value_learning_rate: float = Field(default=1e-3, gt=0, allow_inf_nan=False)
    """Of the value head, which starts at 0."""
    schedule: Literal["constant", "linear"] = "constant"
    """`linear`: both rates fall evenly to 0 after the last step."""
    weight_decay: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    """Of matrices."""
    max_gradient_norm: float = Field(default=1.0, gt=0)
    """Larger gradients are scaled down to it; `inf` leaves them."""
    clip: float = Field(default=0.2, gt=0, allow_inf_nan=False)
    """How far a ratio of new and old probability counts, around 1."""
    value_clip: float | None = Field(default=0.2, gt=0, allow_inf_nan=False)
    """How far a value counts from what it was when the answers were drawn, in units of the reward; None: unclipped."""
    value_coefficient: float = Field(default=0.1, ge=0, allow_inf_nan=False)
    """Weight of the value loss."""
    detach_value: bool = False
    """The value loss moves the value head alone, and not the policy that it stands on."""
    entropy_coefficient: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    """Weight of a bonus for entropy."""
    gamma: float = Field(default=1.0, gt=0, le=1)
    """Discount a token."""
    gae_lambda: float = Field(default=0.95, ge=0, le=1)
    """Of generalised advantage estimation; 1 trusts no value of a later token."""
    whiten_advantages: bool = True
    """Advantages of a step with mean 0 and standard deviation 1 over its tokens."""
    normalise_rewards: bool = False
    """Rewards minus their running mean, over their running standard deviation; the KL coefficient is then in that unit."""
    kl_coefficient: float = Field(default=0.05, ge=0, allow_inf_nan=False)
    """Reward lost for a nat between policy and reference, token by token; of an adaptive coefficient, to begin with."""
    kl_estimator: Literal["k1", "k2", "k3"] = "k1"
    """Of `rewardsmith.use.kl`; k1 alone makes reference x exp(reward / coefficient) the optimum."""
    kl_target: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    """Nats an answer that an adaptive coefficient keeps near; None: fixed."""
    kl_horizon: int = Field(default=10_000, ge=1)
    """Answers after which an adaptive coefficient has followed."""
    kl_budget: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    """The run ends once the policy is so many nats an answer from its reference; the last one within is kept."""
    update_kl: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    """A step's updates end once the policy is so many nats a token from the one that drew its answers."""
    eval_answers: int = Field(default=1, ge=1)
    """Answers to each held-out prompt."""
    max_eval_prompts: int = Field(default=200, ge=1)
    """Held-out prompts that are answered, the first ones."""
    samples_every: int = Field(default=10, ge=1)
    """Steps between those whose answers are kept in samples.jsonl."""
    save_every: int = Field(default=25, ge=1)
    """Steps between checkpoints."""
    skip_bad: bool = False
    """Count malformed rows instead of stopping at the first."""
    precision: Precision = "float32"
    """Of the policy; bf16 rounds log-probabilities, and with them the KL."""
    device: Device = "auto"
    """Where the policy and the reward model run."""
    threads: int | None = Field(default=None, ge=1)
    """CPU threads; all cores when unset."""
    seed: int = Field(default=0, ge=0)
    """Of adapters, answers and orders."""

    @field_validator("lora", mode="before")
    @classmethod
    def _lora_by_flag(cls, value: Any) -> Any:
        return {True: {}, False: None}[value] if isinstance(value, bool) else value

    @model_validator(mode="after")
    def _can_be_meant(self) -> PPOSettings:
        if self.lora is not None and self.lora.dropout:
            raise ValueError("lora.dropout is 0 in PPO: the policy that is updated must be the one that drew")
        if self.merge and self.lora is None:
            raise ValueError("`merge` is for adapters: give `lora`")
        if self.kl_target is not None and not self.kl_coefficient:
            raise ValueError("an adaptive kl_coefficient starts above 0: from 0 it cannot rise")
        if self.minibatches > self.prompts_per_step * self.answers_per_prompt:
            raise ValueError("`minibatches` of a step are at most its answers")
        out = Path(self.out).resolve()
        for name in ("policy", "reward_model", "prompts", "eval_prompts"):
            source = getattr(self, name)
            for place in (source, source.rpartition(":")[0]) if source else ():  # FILE.py:NAME too
                if place and Path(place).exists() and Path(place).resolve().is_relative_to(out):
                    raise ValueError(
                        f"out is or holds {name} ({source}), which --overwrite would delete; choose another out"
                    )
        return self


class ExportSettings(_Settings):
    """What `rewardsmith export` can be told."""

    model: str
    """A model folder or a run folder."""
    to: Literal["onnx", "openvino", "hf"]
    """The program that is to run it; `hf` is a plain checkpoint of transformers."""
    out: str
    """The folder to make."""
    precision: Literal["float32", "bf16", "int8"] = "float32"
    """Of the linear layers; the head is float32 in all."""
    data: str | None = None
    """Preference pairs on which order and accuracy are compared with the model's own."""
    min_agreement: float = Field(default=0.99, gt=0, le=1)
    """Share of pairs that the export must put in the order of the model's own scores, on the golden inputs and on `data`."""
    skip_bad: bool = False
    """Count malformed rows of `data` instead of stopping at the first."""

    @model_validator(mode="after")
    def _precision_brings_something(self) -> ExportSettings:
        if self.to == "onnx" and self.precision == "bf16":
            raise ValueError(
                "onnx has no bf16 here: ONNX Runtime computes it on no processor; take to = openvino, or float32 or int8"
            )
        if self.to == "hf" and self.precision != "float32":
            raise ValueError(
                "hf is float32: transformers loads a checkpoint in one format, and the head must not lose digits"
            )
        if self.to == "hf" and self.data is not None:
            raise ValueError(
                "data has nothing to show for hf: the same weights are run by the same program; leave it out"
            )
        return self


SettingsType = TypeVar("SettingsType", bound=BaseModel)


def build(kind: type[SettingsType], values: Mapping[str, Any]) -> SettingsType:
    """Validate settings.

    Raises:
        SettingsError: naming each key at fault; for an unknown key, the nearest known one.
    """
    try:
        return kind(**values)
    except ValidationError as error:
        raise settings_error(kind, error) from error


def settings_error(kind: type[BaseModel], error: ValidationError) -> SettingsError:
    """What pydantic found, in our words: each key with what is wrong with it, and the nearest known one."""
    problems, mends = [], []
    for detail in error.errors():
        key = ".".join(str(part) for part in detail["loc"]) or "settings"
        if detail["type"] == "extra_forbidden":
            problems.append(f"unknown key `{key}`")
            mends.append(near_miss(str(detail["loc"][-1]), _fields_at(kind, detail["loc"][:-1])))
        elif detail["type"] == "missing":
            problems.append(f"no `{key}`")
            mends.append(f"Give it: --{key.replace('_', '-')} or `{key} = ...` in the recipe.")
        else:
            # What is wrong with the settings as a whole says so itself; all of them are a page, and may hold a secret.
            came = f"`{key}` = {detail.get('input')!r}" if detail["loc"] else "settings"
            problems.append(f"{came}: {detail['msg'].removeprefix('Value error, ')}")
            mends.append(f"Change `{key}`.")
    return SettingsError("settings that can be meant", "; ".join(problems), " ".join(dict.fromkeys(mends)))


def _fields_at(kind: type[BaseModel], path: Sequence[int | str]) -> list[str]:
    for part in path:
        annotation = kind.model_fields[str(part)].annotation
        for inner in (annotation, *get_args(annotation)):  # a table may be optional
            if isinstance(inner, type) and issubclass(inner, BaseModel):
                kind = inner
    return list(kind.model_fields)


def near_miss(key: str, known: Sequence[str]) -> str:
    """A sentence that names the known key nearest to an unknown one."""
    close = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    if close:
        return f"Did you mean `{close[0]}`?"
    return f"Known keys: {', '.join(sorted(known))}."


def read_recipe(path: Path) -> dict[str, Any]:
    """The keys of a TOML or YAML recipe.

    Raises:
        SettingsError: if the file cannot be read as what its ending says.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise SettingsError(
            f"a recipe at {path}", error.strerror or str(error), "Check the path given to --config."
        ) from error
    try:
        if path.suffix in (".yaml", ".yml"):
            import yaml  # loaded here: TOML recipes do not need it

            try:
                document = yaml.safe_load(text)
            except yaml.YAMLError as error:
                raise ValueError(str(error)) from error
        else:
            document = tomllib.loads(text)
    except ValueError as error:
        raise SettingsError(f"a TOML or YAML recipe in {path.name}", str(error), "Mend the file.") from error
    if not isinstance(document, dict):
        raise SettingsError(f"a table of keys in {path.name}", type(document).__name__, "Write `key = value` lines.")
    return document


def parse_set(assignment: str) -> tuple[list[str], Any]:
    """`trainer.save_steps=50` as (["trainer", "save_steps"], 50); a value that is no TOML value is a string.

    Raises:
        SettingsError: if there is no `=`.
    """
    key, equals, text = assignment.partition("=")
    if not equals or not key.strip():
        raise SettingsError("--set key=value", f"--set {assignment}", "Write for example --set trainer.save_steps=50.")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text.strip()
    return [part.strip() for part in key.split(".")], value


def merge(recipe: Mapping[str, Any], flags: Mapping[str, Any], sets: Sequence[str]) -> dict[str, Any]:
    """One table of settings: the recipe, over it the flags that were given, over them each `--set`.

    Raises:
        SettingsError: if a `--set` reaches into a key that is no table.
    """
    merged: dict[str, Any] = json.loads(json.dumps(dict(recipe), default=str))
    merged |= {key: value for key, value in flags.items() if value is not None}
    for assignment in sets:
        path, value = parse_set(assignment)
        table = merged
        for part in path[:-1]:
            inner = table.setdefault(part, {})
            if isinstance(inner, str) and part == "loss":  # the short form, a name alone
                inner = table[part] = {"name": inner}
            if inner is True and part == "lora":  # the short form, its defaults
                inner = table[part] = {}
            if not isinstance(inner, dict):
                raise SettingsError(f"a table at `{part}`", repr(inner), f"Remove one of the two meanings of `{part}`.")
            table = inner
        table[path[-1]] = value
    return merged
