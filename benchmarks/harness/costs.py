"""What a reward model costs, by arithmetic alone: parameters, FLOPs, bytes, messages between devices, seconds. No torch, nothing measured.

`plan.py` makes rows and tables of it. Every assumption is a field of `Device`, `Assumptions` or `Way`; the formulas are the functions below, each with its source.

Legend: `L` layers, `H` hidden, `Q` numbers of all heads of the queries of a token, `C` of those of the keys, `F` inner width of the feed-forward network, `T` tokens of a text, `P` tokens of a
prompt, `R` of an answer, `K` answers to a prompt, `n` devices. A multiplication and an addition are 2 FLOPs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

Precision = Literal["bf16", "float32"]
How = Literal["full", "lora", "frozen"]
Sharding = Literal["one", "ddp", "fsdp"]
ADAMW_PASS = 28
"""Bytes that AdamW moves a trained weight: reads weight, gradient and two moments, writes weight and moments, 7 x 4."""
CLEARING_PASS = 8
"""Bytes a trained weight: its gradient is read for the norm and cleared."""
CAST_PASS = 6
"""Bytes a weight and pass through the model: read in float32, written in bf16."""
BUCKET = 25 * 2**20
"""Bytes of gradients that DDP sends at once (torch's default)."""


@dataclass(frozen=True)
class Shape:
    """The sizes of a network, as in its config.json.

    Args:
        name: for people.
        decoder: a Llama or Qwen3, read at its last token; else a BERT, read by its pooler.
        hidden: H.
        inner: F.
        layers: L.
        heads: of the queries.
        key_heads: of keys and values.
        head_size: numbers a head.
        vocabulary: rows of the embedding.
        positions: rows of learned positions (BERT).
        types: rows of segment embeddings (BERT).
        head_norms: norms of queries and keys, head by head (Qwen3).
    """

    name: str
    decoder: bool
    hidden: int
    inner: int
    layers: int
    heads: int
    key_heads: int
    head_size: int
    vocabulary: int
    positions: int = 0
    types: int = 0
    head_norms: bool = False

    @property
    def query(self) -> int:
        """Q."""
        return self.heads * self.head_size

    @property
    def keys(self) -> int:
        """C."""
        return self.key_heads * self.head_size

    @property
    def products(self) -> int:
        """Weights of a layer's matrices: queries, keys, values, output; two of the feed-forward network, or three where one is a gate."""
        return 2 * self.hidden * (self.query + self.keys) + (3 if self.decoder else 2) * self.hidden * self.inner

    @property
    def layer(self) -> int:
        """All parameters of a layer: matrices, norms and, of a BERT, biases."""
        if self.decoder:
            return self.products + 2 * self.hidden + (2 * self.head_size if self.head_norms else 0)
        return self.products + self.query + 2 * self.keys + self.inner + 6 * self.hidden

    @property
    def outside(self) -> int:
        """Parameters outside the layers: embeddings, last or first norm, pooler, and the head of one number. There is no output layer over the vocabulary."""
        if self.decoder:
            return self.vocabulary * self.hidden + self.hidden + self.hidden
        rows = self.vocabulary + self.positions + self.types
        return rows * self.hidden + 2 * self.hidden + self.hidden * (self.hidden + 1) + self.hidden + 1

    @property
    def parameters(self) -> int:
        """All of them."""
        return self.outside + self.layers * self.layer

    def adapters(self, rank: int) -> int:
        """Parameters of LoRA of that rank at every matrix of every layer (rank x (in + out) each), and of the head."""
        attention = 2 * (self.hidden + self.query) + 2 * (self.hidden + self.keys)
        forward = (3 if self.decoder else 2) * (self.hidden + self.inner)
        return self.layers * rank * (attention + forward) + self.hidden + (0 if self.decoder else 1)


@dataclass(frozen=True)
class Reading:
    """What is read.

    Args:
        texts: how many, scored each.
        tokens: that pass through the layers.
        seen: how many (token, token that it sees) there are.
    """

    texts: float
    tokens: float
    seen: float

    @classmethod
    def of_groups(
        cls, groups: float, prompt: float, answer: float, *, answers: int = 2, shared: bool, decoder: bool
    ) -> Reading:
        """Groups of K answers to a prompt; `shared`: P + K R tokens instead of K (P + R), of a decoder alone.

        Raises:
            ValueError: if the prompt of an encoder is to be shared: it reads one differently beside every answer.
        """
        if shared and not decoder:
            raise ValueError("an encoder cannot share prompts")
        length = prompt + answer
        if shared:
            seen = prompt**2 / 2 + answers * (answer * prompt + answer**2 / 2)
            return cls(groups * answers, groups * (prompt + answers * answer), groups * seen)
        alone = answers * length**2 / (2 if decoder else 1)
        return cls(groups * answers, groups * answers * length, groups * alone)

    @classmethod
    def of_texts(cls, texts: float, tokens: float, *, spread: float, decoder: bool, ceiling: float = 1.0) -> Reading:
        """Texts of which the sum of tokens is known.

        Args:
            texts: how many.
            tokens: of all together.
            spread: mean of T^2 over the square of the mean of T; 1 where all are equal.
            decoder: each token sees those before it: half of them.
            ceiling: tokens over those that are left when what texts begin with is read once.
        """
        seen = tokens * (tokens / texts) * spread / (2 if decoder else 1)
        return cls(texts, tokens / ceiling, seen / ceiling)

    def times(self, factor: float) -> Reading:
        """So many times the same."""
        return Reading(self.texts * factor, self.tokens * factor, self.seen * factor)


@dataclass(frozen=True)
class Flops:
    """Of one reading: those of weights, and those of tokens with tokens."""

    linear: float
    attention: float

    @property
    def total(self) -> float:
        """Both."""
        return self.linear + self.attention


def forward(shape: Shape, reading: Reading, *, first_token: bool = False) -> Flops:
    """FLOPs of one pass without gradients: 2 a weight of the layers' matrices and token, and 4 Q a layer for each token that a token sees (once for the scores, once for the sums).

    Forward and backward together this is the 6 N + 12 L Q T a token of PaLM (Chowdhery et al. 2022, arXiv 2204.02311, appendix B), except that a decoder's tokens see T/2 others on average, and that
    embeddings, which are looked up, are no part of N.

    Args:
        shape: of the network.
        reading: what is read.
        first_token: the last layer of an encoder computes the first token's state alone (docs/speed.md); keys and values it needs of all.
    """
    linear = 2.0 * shape.products * shape.layers * reading.tokens
    attention = 4.0 * shape.query * shape.layers * reading.seen
    if first_token:
        rest = shape.products - 2 * shape.hidden * shape.keys
        linear -= 2.0 * rest * (reading.tokens - reading.texts)
        attention -= 4.0 * shape.query * (reading.seen - reading.tokens)
    heads = shape.hidden + (0 if shape.decoder else shape.hidden**2)
    return Flops(linear + 2.0 * heads * reading.texts, attention)


def training(shape: Shape, reading: Reading, *, how: How, recompute: bool, first_token: bool = False) -> Flops:
    """FLOPs of forward and backward.

    The backward costs twice the forward: once for the gradients of the inputs, once for those of the weights. Under LoRA the second falls away for the frozen matrices (the adapters' own is below a hundredth); attention
    has no weights, so its backward stays. A frozen network is only read. Recomputation is one forward more: 4/3 of the whole.
    """
    once = forward(shape, reading, first_token=first_token)
    if how == "frozen":
        return once
    again = 1 if recompute else 0
    linear = once.linear * ((3 if how == "full" else 2) + again)
    return Flops(linear, once.attention * (3 + again))


def layer_bytes(shape: Shape, precision: Precision) -> int:
    """Bytes a token that one layer keeps for its backward, as transformers' classes do under torch's autocast with fused attention and without dropout.

    Counted tensor by tensor; tests/test_plan.py compares it with what autograd really keeps. Numbers in 4 bytes: inputs of the two norms and of their factors (a decoder keeps both, a BERT the input), in bf16 as well,
    for the residual stream stays in float32. Numbers in the precision's size `s`: the input of each matrix; queries, keys, values and the mix; what the feed-forward network's function and product need. Under autocast
    queries, keys and values have a cast of their input each, and so have gate and up.
    """
    s = 2 if precision == "bf16" else 4
    h, q, c, f = shape.hidden, shape.query, shape.keys, shape.inner
    attention = s * (q + 2 * c) + s * q + 4 * shape.heads
    if not shape.decoder:
        inputs = 2 * 4 * h
        casts = s * 4 * h if precision == "bf16" else s * 2 * h
        return inputs + casts + attention + s * 2 * f + 2 * 2 * 4
    norms = 4 * 4 * h + 2 * 4
    casts = s * 5 * h if precision == "bf16" else s * 2 * h
    if shape.head_norms:
        norms += (4 + s) * (q + c) + 4 * (shape.heads + shape.key_heads)
    return norms + casts + attention + s * 4 * f


@dataclass(frozen=True)
class Device:
    """A kind of device. Rates are peaks, of the source; what is reached of them stands in `Assumptions`.

    Args:
        name: for people.
        bf16: FLOP/s of dense products.
        float32: the same in float32.
        bandwidth: bytes a second from and to its memory.
        memory: bytes.
        in_node: devices that share a fast link.
        link: bytes a second that a device sends to another of its node.
        network: bytes a second that a device sends to another node.
        source: where the figures are from.
    """

    name: str
    bf16: float
    float32: float
    bandwidth: float
    memory: float
    in_node: int = 1
    link: float = math.inf
    network: float = math.inf
    source: str = ""


@dataclass(frozen=True)
class Assumptions:
    """What no datasheet says. Each is a flag of plan.py.

    Args:
        linear: share of the peak that products with weights reach.
        attention: the same of products of tokens with tokens.
        rest: share of a step's computing that is neither (norms, functions, copies).
        bandwidth: share of the memory's rate that the optimiser reaches.
        link: share of the links' rate that a collective reaches.
        hidden: share of the computing time behind which messages may hide.
        usable: share of a device's memory that may be planned with; allocators, the libraries and passing tensors take the others.
        launch: seconds a layer that a forward and backward take at the least, however few tokens: kernels are launched by Python.
        hop: seconds that a message takes from device to device, however short.
        frozen_bytes: bytes a weight that is not trained; this project loads float32.
        part: tokens that go through the network at once in training (`batch_tokens`); plans try an eighth of it to eight times as many.
        rank: of LoRA.
    """

    linear: float = 0.40
    attention: float = 0.40
    rest: float = 0.0
    bandwidth: float = 0.70
    link: float = 0.70
    hidden: float = 0.50
    usable: float = 0.85
    launch: float = 0.005
    hop: float = 3e-6
    frozen_bytes: int = 4
    part: int = 8192
    rank: int = 16


@dataclass(frozen=True)
class Way:
    """How a model is trained.

    Args:
        how: all weights, adapters of LoRA, or the head on a frozen network.
        sharding: one device; copies on all (DDP); slices of weights, gradients and moments on all (FSDP, ZeRO-3).
        devices: how many.
        recompute: activations of a layer are computed again in the backward (gradient checkpointing).
        part: tokens that a device takes at once.
        precision: of the products; master weights, gradients and moments are float32.
    """

    how: How
    sharding: Sharding
    devices: int
    recompute: bool
    part: float
    precision: Precision = "bf16"


@dataclass(frozen=True)
class Memory:
    """Bytes on one device."""

    masters: float
    copies: float
    gradients: float
    moments: float
    buckets: float
    activations: float

    @property
    def total(self) -> float:
        """All of them."""
        return self.masters + self.copies + self.gradients + self.moments + self.buckets + self.activations


def memory(shape: Shape, way: Way, assumed: Assumptions) -> Memory:
    """What a device holds at the fullest moment of a step, by the count.

    AdamW in mixed precision takes 16 bytes a trained weight: master 4, gradient 4, moments 8 (Rajbhandari et al. 2020, ZeRO, section 3.1, who keep the gradient in 2 and a copy in 2); and 2 for the copy that autocast makes.
    FSDP divides all by n and holds in bf16, whole, what stands outside the layers and two layers: the one at work and the next.
    """
    trained = _trained(shape, way.how, assumed.rank)
    frozen = 0 if way.how == "full" else shape.parameters
    n = way.devices if way.sharding == "fsdp" else 1
    masters = (4 * trained + assumed.frozen_bytes * frozen) / n
    half = way.precision == "bf16"
    if way.sharding == "fsdp":
        whole = shape.outside + 2 * shape.layer
        sent = shape.outside + shape.layer if way.how == "full" else 0
        copies = (2 if half else 4) * (whole + sent)
    else:
        copies = 2.0 * trained if half else 0.0
        if half and way.how != "full" and assumed.frozen_bytes == 4:
            copies += 2.0 * shape.layer  # cast as they are needed, and dropped
    buckets = 4.0 * trained if way.sharding == "ddp" else 0.0
    return Memory(
        masters,
        copies,
        4.0 * trained / n,
        8.0 * trained / n,
        buckets,
        activations(shape, way) * way.part,
    )


def activations(shape: Shape, way: Way) -> float:
    """Bytes a token at the fullest moment: all layers' or, recomputed, each layer's input in float32 and one layer's all; one layer's, of a network that is only read."""
    one = layer_bytes(shape, way.precision)
    if way.how == "frozen":
        return one
    if way.recompute:
        return 4 * shape.hidden * shape.layers + one
    return shape.layers * one


def _trained(shape: Shape, how: How, rank: int) -> int:
    if how == "full":
        return shape.parameters
    return shape.adapters(rank) if how == "lora" else shape.hidden + (0 if shape.decoder else 1)


def bus(device: Device, devices: int) -> float:
    """Bytes a second and device at which a ring sends: of a node's link; over several nodes, as many rings cross as there are network cards, each with its share of the data."""
    return device.link if devices <= device.in_node else min(device.link, device.in_node * device.network)


@dataclass(frozen=True)
class Messages:
    """Of one step: bytes that each device sends, and the seconds they take."""

    bytes: float
    seconds: float


def messages(shape: Shape, way: Way, device: Device, assumed: Assumptions, *, parts: int) -> Messages:
    """What a step sends.

    An all-reduce sends 2 (n - 1) / n of the bytes, an all-gather or a reduce-scatter (n - 1) / n (Patarasuk and Yuan 2009). DDP reduces float32 gradients once a step, in buckets, by trees: 2 log2 n hops. FSDP gathers each
    layer twice and scatters its gradients once, in bf16, for every part of a step, by rings of n - 1 hops.
    """
    n = way.devices
    if n == 1:
        return Messages(0.0, 0.0)
    trained = _trained(shape, way.how, assumed.rank)
    if way.sharding == "ddp":
        sent = 2 * (n - 1) / n * 4.0 * trained
        hops = math.ceil(4 * trained / BUCKET) * 2 * math.log2(n)
    else:
        each = 2 if way.precision == "bf16" else 4
        gathers = 1 if way.how == "frozen" else 2
        sent = parts * (n - 1) / n * each * (gathers * shape.parameters + trained)
        hops = parts * (shape.layers + 1) * (gathers + 1) * (n - 1)
    return Messages(sent, sent / (bus(device, n) * assumed.link) + hops * assumed.hop)


@dataclass(frozen=True)
class Step:
    """Seconds of one step.

    Args:
        products: of the arithmetic.
        launches: the least that launching takes.
        optimiser: passes over weights, gradients and moments.
        messages: sent between devices.
        exposed: those of them that computing does not hide.
    """

    products: float
    launches: float
    optimiser: float
    messages: float
    exposed: float

    @property
    def busy(self) -> float:
        """Computing: arithmetic, or launches where they take longer."""
        return max(self.products, self.launches)

    @property
    def seconds(self) -> float:
        """The step."""
        return self.busy + self.exposed + self.optimiser

    @property
    def least(self) -> float:
        """All messages hidden that can be."""
        return max(self.busy, self.messages) + self.optimiser

    @property
    def most(self) -> float:
        """None hidden."""
        return self.busy + self.messages + self.optimiser


def computing(flops: Flops, device: Device, assumed: Assumptions, precision: Precision) -> float:
    """Seconds of products, and of what stands between them."""
    peak = device.bf16 if precision == "bf16" else device.float32
    products = flops.linear / (peak * assumed.linear) + flops.attention / (peak * assumed.attention)
    return products / (1 - assumed.rest)


def step(
    shape: Shape, reading: Reading, way: Way, device: Device, assumed: Assumptions, *, first_token: bool = False
) -> Step:
    """One step of a device that reads so much of it."""
    parts = max(1, math.ceil(reading.tokens / way.part))
    flops = training(shape, reading, how=way.how, recompute=way.recompute, first_token=first_token)
    passes = {"full": 3, "lora": 3, "frozen": 1}[way.how] + (1 if way.recompute and way.how != "frozen" else 0)
    trained = _trained(shape, way.how, assumed.rank) / (way.devices if way.sharding == "fsdp" else 1)
    moved = (ADAMW_PASS + CLEARING_PASS) * trained
    if way.precision == "bf16":
        moved += CAST_PASS * parts * (trained if way.sharding == "fsdp" else shape.parameters)
    busy = computing(flops, device, assumed, way.precision)
    launches = shape.layers * parts * assumed.launch * passes / 3
    sent = messages(shape, way, device, assumed, parts=parts).seconds
    hidden = assumed.hidden * max(busy, launches)
    return Step(busy, launches, moved / (device.bandwidth * assumed.bandwidth), sent, max(0.0, sent - hidden))


def scoring_seconds(
    shape: Shape,
    reading: Reading,
    device: Device,
    assumed: Assumptions,
    *,
    precision: Precision,
    part: float = 4096,
    first_token: bool = False,
) -> float:
    """Seconds of one device that scores: forward passes alone, of batches of so many tokens, each with a third of the launches of a training step."""
    busy = computing(forward(shape, reading, first_token=first_token), device, assumed, precision)
    return max(busy, shape.layers * math.ceil(reading.tokens / part) * assumed.launch / 3)


def sharing_ceiling(prompt: float, answer: float, answers: int) -> float:
    """Tokens of K answers to a prompt, each read with it, over those with the prompt read once: K (P + R) / (P + K R).

    >>> sharing_ceiling(256, 64, 16)
    4.0
    """
    return answers * (prompt + answer) / (prompt + answers * answer)
