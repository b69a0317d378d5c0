"""The protocol of Text Embeddings Inference: /predict, /rerank, /info. It squashes scores unless `raw_scores` is set, and so does this."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, NotRequired

from pydantic import Field
from typing_extensions import TypedDict

from rewardsmith.errors import DataError, LengthError
from rewardsmith.scores import Input, RawText, ScoreTable
from rewardsmith.serving.complaints import Complaint
from rewardsmith.serving.protocol import Body
from rewardsmith.serving.served import ServedModel, plain_sigmoid

OneOrTwo = Annotated[list[str], Field(min_length=1, max_length=2)]


class Prediction(TypedDict):
    """The score of one input."""

    score: float
    label: str


class Rank(TypedDict):
    """One text of /rerank."""

    index: int
    score: float
    text: NotRequired[str]


class _Tei(Body):
    protocol: ClassVar[Literal["rewardsmith", "vllm", "tei"]] = "tei"

    raw_scores: bool = False
    """False: 1 / (1 + exp(-score))."""
    truncate: bool | None = None
    """False: a text that does not fit is refused; else the model's own policy cuts it."""
    truncation_direction: Literal["left", "right", "Left", "Right"] = "right"

    def numbers(self, table: ScoreTable) -> list[float]:
        """Raw or squashed scores.

        Raises:
            LengthError: if an input was cut that must not be.
        """
        if self.truncate is False and table.truncated.any():
            longest = int(table.full_tokens.max())
            raise LengthError("inputs that fit", f"one of {longest} tokens", "Shorten it or set `truncate` to true.")
        return [float(number) for number in (table.score if self.raw_scores else plain_sigmoid(table.score))]

    @staticmethod
    def some(inputs: list[Input]) -> list[Input]:
        """The inputs, of which this protocol wants at least one.

        Raises:
            Complaint: 400 if there is none.
        """
        if not inputs:
            raise Complaint(400, "Empty", "needed at least one input")
        return inputs

    @property
    def left(self) -> bool:
        """Whether the beginning of a text is to be cut."""
        return self.truncation_direction.lower() == "left"


class Predict(_Tei):
    """The body of /predict: a text, a pair as a list of two, or a list of such lists."""

    inputs_: Annotated[str | OneOrTwo | list[OneOrTwo], Field(alias="inputs")]

    def inputs(self, model: ServedModel) -> list[Input]:
        """A text as it stands between the model's special tokens; a pair as prompt and answer."""
        return self.some([self._input(one) for one in self._given()])

    def answer(self, model: ServedModel, table: ScoreTable) -> list[Prediction] | list[list[Prediction]]:
        """One list for a single input, a list of lists for many."""
        found = [[Prediction(score=number, label="LABEL_0")] for number in self.numbers(table)]
        return found[0] if self._single else found

    @property
    def _single(self) -> bool:
        return isinstance(self.inputs_, str) or (bool(self.inputs_) and isinstance(self.inputs_[0], str))

    def _given(self) -> list[Any]:
        return [self.inputs_] if self._single else list(self.inputs_)

    def _input(self, one: str | list[str]) -> Input:
        if isinstance(one, str) or len(one) == 1:
            return RawText(one if isinstance(one, str) else one[0], keep="last" if self.left else "first")
        if self.left:
            raise DataError(
                "truncation on the right, or texts alone", "pairs to be cut on the left", "Leave the direction out."
            )
        return one[0], one[1]


class Rerank(_Tei):
    """The body of /rerank."""

    query: str
    texts: list[str]
    return_text: bool = False

    def inputs(self, model: ServedModel) -> list[Input]:
        """The query is the prompt, each text an answer."""
        if self.left:
            raise DataError("truncation on the right", "on the left", "Leave the direction out.")
        return self.some([(self.query, text) for text in self.texts])

    def answer(self, model: ServedModel, table: ScoreTable) -> list[Rank]:
        """The best first."""
        numbers = self.numbers(table)
        ranks = []
        for i in sorted(range(len(numbers)), key=lambda i: -table.score[i]):
            rank = Rank(index=i, score=numbers[i])
            if self.return_text:
                rank["text"] = self.texts[i]
            ranks.append(rank)
        return ranks


def info(model: ServedModel, *, max_requests: int, batch_tokens: int, max_texts: int, version: str) -> dict[str, Any]:
    """The document of /info, with what we publish of the model under a key of our own."""
    return {
        "model_id": model.name,
        "model_sha": None,
        "model_dtype": model.precision,
        "model_type": {"reranker": {"id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}}},
        "max_concurrent_requests": max_requests,
        "max_input_length": model.max_length,
        "max_batch_tokens": batch_tokens,
        "max_batch_requests": None,
        "max_client_batch_size": max_texts,
        "auto_truncate": True,
        "tokenization_workers": 1,
        "version": version,
        "sha": None,
        "docker_label": None,
        "rewardsmith": dict(model.contract),
    }
