"""The protocol of vLLM's pooling routes, and SGLang's `/classify` with `text`.

A folder of ours tells vLLM not to squash its score, so neither do these routes unless `use_activation` asks for it. `input` is read as plain text between the
model's own special tokens, as vLLM's tokenizer puts them; `messages` go through the model's own template, and only through that.
"""

from __future__ import annotations

import time
import uuid
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator
from typing_extensions import TypedDict

from rewardsmith.errors import DataError
from rewardsmith.scores import Input, RawIds, RawText, ScoreTable
from rewardsmith.serving.protocol import Body, Message, last_answer
from rewardsmith.serving.served import ServedModel, plain_sigmoid
from rewardsmith.stats import Floats

Ids = list[int]


class Usage(TypedDict):
    """Tokens that were read."""

    prompt_tokens: int
    total_tokens: int
    completion_tokens: int
    prompt_tokens_details: None


class RerankUsage(TypedDict):
    """Tokens that were read."""

    prompt_tokens: int
    total_tokens: int


class Classified(TypedDict):
    """One text of /classify."""

    index: int
    label: str
    probs: list[float]
    num_classes: int


class Pooled(TypedDict):
    """One text of /pooling."""

    index: int
    object: str
    data: list[float]


class Scored(TypedDict):
    """One pair of /score."""

    index: int
    object: str
    score: float


class _List(TypedDict):
    id: str
    object: str
    created: int
    model: str
    usage: Usage


class ClassifyAnswer(_List):
    """The response of /classify."""

    data: list[Classified]


class PoolingAnswer(_List):
    """The response of /pooling."""

    data: list[Pooled]


class ScoreAnswer(_List):
    """The response of /score."""

    data: list[Scored]


class Document(TypedDict):
    """What was ranked."""

    text: str
    multi_modal: None


class Reranked(TypedDict):
    """One document of /rerank."""

    index: int
    document: Document
    relevance_score: float


class RerankAnswer(TypedDict):
    """The response of /rerank, the best first."""

    id: str
    model: str
    usage: RerankUsage
    results: list[Reranked]


class Embedded(TypedDict):
    """One text of SGLang's /classify."""

    embedding: list[float]


class _Vllm(Body):
    protocol: ClassVar[Literal["rewardsmith", "vllm", "tei"]] = "vllm"

    use_activation: bool | None = None
    """True: 1 / (1 + exp(-score)) instead of the raw score."""

    def numbers(self, table: ScoreTable) -> list[float]:
        """Raw scores, or squashed ones where that is asked for."""
        found: Floats | Any = plain_sigmoid(table.score) if self.use_activation else table.score
        return [float(number) for number in found]


class _Texts(_Vllm):
    """Texts, token ids or a conversation."""

    input: str | list[str] | Ids | list[Ids] | None = None
    messages: Annotated[list[Message], Field(min_length=1)] | None = None
    add_special_tokens: bool | None = None
    """Of `input`: true unless set."""
    truncate_prompt_tokens: Annotated[int, Field(ge=-1)] | None = None
    """Of `input`: tokens that are kept; -1 or null: as many as the model reads."""
    truncation_side: Literal["left", "right"] = "right"
    add_generation_prompt: Literal[False] = False
    chat_template: None = None
    """The model's own template is the only one: a score under another is another score."""

    @model_validator(mode="after")
    def _one_of_two(self) -> _Texts:
        if (self.input is None) is (self.messages is None):
            raise ValueError("needed either `input` or `messages`")
        return self

    def inputs(self, model: ServedModel) -> list[Input]:
        """Texts and ids as they stand; a conversation through the model's template."""
        if self.messages is not None:
            return [last_answer(self.messages)]
        limit = self.truncate_prompt_tokens
        limits: dict[str, Any] = {
            "max_tokens": None if limit in (None, -1) else max(1, limit or 0),
            "keep": "last" if self.truncation_side == "left" else "first",
        }
        special = self.add_special_tokens is not False
        given: list[Any] = self.input if isinstance(self.input, list) else [self.input]
        if given and isinstance(given[0], int):
            given = [given]
        return [
            RawText(one, control=model.templated_texts, special=special, **limits)
            if isinstance(one, str)
            else RawIds(tuple(one), **limits)
            for one in given
        ]


class Classify(_Texts):
    """The body of /classify."""

    def answer(self, model: ServedModel, table: ScoreTable) -> ClassifyAnswer:
        """`probs` holds the one score."""
        data = [
            Classified(index=i, label="LABEL_0", probs=[number], num_classes=1)
            for i, number in enumerate(self.numbers(table))
        ]
        return {**_frame("classify", model, table), "data": data}


class Pooling(_Texts):
    """The body of /pooling."""

    task: Literal["classify"] | None = None
    encoding_format: Literal["float"] = "float"

    def answer(self, model: ServedModel, table: ScoreTable) -> PoolingAnswer:
        """`data` holds the one score."""
        data = [Pooled(index=i, object="pooling", data=[number]) for i, number in enumerate(self.numbers(table))]
        return {**_frame("pool", model, table), "data": data}


class PairScore(_Vllm):
    """The body of /score: one text against many, or as many against each other."""

    text_1: str | list[str] | None = None
    text_2: str | list[str] | None = None
    data_1: str | list[str] | None = None
    data_2: str | list[str] | None = None
    queries: str | list[str] | None = None
    documents: str | list[str] | None = None
    items: str | list[str] | None = None

    def inputs(self, model: ServedModel) -> list[Input]:
        """The first text is the prompt, the second the answer."""
        named = [
            (self.queries, self.documents if self.documents is not None else self.items),
            (self.data_1, self.data_2),
            (self.text_1, self.text_2),
        ]
        given = [(first, second) for first, second in named if first is not None and second is not None]
        if len(given) != 1:
            raise DataError(
                "one of queries + documents, queries + items, data_1 + data_2, text_1 + text_2",
                f"{len(given)} of them",
                "Send exactly one.",
            )
        first, second = ([side] if isinstance(side, str) else side for side in given[0])
        if len(first) == 1:
            first = first * len(second)
        if len(first) != len(second):
            raise DataError("one text against many, or as many", f"{len(first)} and {len(second)}", "Mend the lists.")
        return list(zip(first, second, strict=True))

    def answer(self, model: ServedModel, table: ScoreTable) -> ScoreAnswer:
        """One score a pair."""
        data = [Scored(index=i, object="score", score=number) for i, number in enumerate(self.numbers(table))]
        return {**_frame("score", model, table), "data": data}


class Rerank(_Vllm):
    """The body of /rerank."""

    query: str
    documents: list[str]
    top_n: Annotated[int, Field(ge=0)] = 0

    def inputs(self, model: ServedModel) -> list[Input]:
        """The query is the prompt, each document an answer."""
        return [(self.query, document) for document in self.documents]

    def answer(self, model: ServedModel, table: ScoreTable) -> RerankAnswer:
        """The best first."""
        numbers = self.numbers(table)
        order = sorted(range(len(numbers)), key=lambda i: -table.score[i])[: self.top_n or None]
        tokens = int(table.tokens.sum())
        return RerankAnswer(
            id=f"rerank-{uuid.uuid4().hex}",
            model=model.name,
            usage=RerankUsage(prompt_tokens=tokens, total_tokens=tokens),
            results=[
                Reranked(
                    index=i,
                    document=Document(text=self.documents[i], multi_modal=None),
                    relevance_score=numbers[i],
                )
                for i in order
            ],
        )


class SglangClassify(Body):
    """The body of SGLang's /classify."""

    protocol: ClassVar[Literal["rewardsmith", "vllm", "tei"]] = "vllm"

    text: str | list[str]

    def inputs(self, model: ServedModel) -> list[Input]:
        """Texts as they stand between the model's special tokens."""
        return [
            RawText(text, control=model.templated_texts)
            for text in ([self.text] if isinstance(self.text, str) else self.text)
        ]

    def answer(self, model: ServedModel, table: ScoreTable) -> list[Embedded]:
        """Raw scores."""
        return [Embedded(embedding=[float(score)]) for score in table.score]


def _frame(kind: str, model: ServedModel, table: ScoreTable) -> _List:
    """What all lists of vLLM have."""
    tokens = int(table.tokens.sum())
    return _List(
        id=f"{kind}-{uuid.uuid4().hex}",
        object="list",
        created=int(time.time()),
        model=model.name,
        usage=Usage(prompt_tokens=tokens, total_tokens=tokens, completion_tokens=0, prompt_tokens_details=None),
    )
