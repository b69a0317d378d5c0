"""A policy: a causal language model that answers prompts by chance, so that a reward model can be tried on what it would be asked to judge.

An answer is a function of the seed, its prompt and its number alone. Each token is drawn by a number of its own between 0 and 1, laid into the cumulated
probabilities of the vocabulary: which texts share a batch, and how they are padded, changes nothing but the rounding of those probabilities.

Legend: `N` sequences, `T` tokens, `V` vocabulary.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList, TopPLogitsWarper

from rewardsmith.config import ScoringSettings
from rewardsmith.data.schema import Message, Prompt, prompt_key
from rewardsmith.errors import ModelError, NonFiniteError, SettingsError
from rewardsmith.model.batching import scoring_plan
from rewardsmith.model.language_model import LanguageModel
from rewardsmith.model.precision import running
from rewardsmith.model.render import Renderer
from rewardsmith.scores import Drawn

MAX_LENGTH, MAX_NEW_TOKENS = 1024, 256
Numbers: TypeAlias = NDArray[np.float64]
"""Between 0 and 1, one a token."""


class _OpenRenderer(Renderer):
    """Renders prompts as the renderer that it is made of, but for the turn of the answer, which is opened as the chat template opens it and left open."""

    def _apply_chat_template(self, messages: list[Message]) -> str:
        try:
            text = self.tokenizer.apply_chat_template(messages[:-1], tokenize=False, add_generation_prompt=True)
        except Exception as error:  # a template raises jinja2's errors, with the author's own words
            roles = [message["role"] for message in messages[:-1]]
            raise ModelError(
                "a chat template that takes these roles", f"{error} for {roles}", "Leave these prompts out."
            ) from error
        assert isinstance(text, str)
        return text + messages[-1]["content"]


class _Draws(LogitsProcessor):
    """Leaves one token of each sequence possible: the one that its own number falls on."""

    def __init__(self, numbers: Tensor, *, num_read: int, num_tokens: int, temperature: float, top_p: float) -> None:
        """Keep the numbers.

        Args:
            numbers: between 0 and 1, one a sequence and step, float64 (N, steps).
            num_read: tokens before the first that is drawn, padding included.
            num_tokens: ids that the tokenizer knows; a model may have rows to spare.
            temperature: of the softmax.
            top_p: the least share of probability that is kept, the likeliest tokens first.
        """
        self.numbers, self.num_read, self.num_tokens = numbers, num_read, num_tokens
        self.temperature = temperature
        self.nucleus = TopPLogitsWarper(top_p) if top_p < 1 else None

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """From logits (N, V) to 0 for the token that is drawn and -inf for all others.

        Raises:
            NonFiniteError: if a logit is NaN, or all are infinite.
        """
        logits = scores.float() / self.temperature
        logits[:, self.num_tokens :] = -torch.inf
        if self.nucleus is not None:
            logits = self.nucleus(input_ids, logits)
        cumulated = logits.cpu().double().softmax(dim=-1).cumsum(dim=-1)
        if not bool(cumulated[:, -1].isfinite().all()):
            raise NonFiniteError(
                "finite probabilities of the next token",
                "logits of NaN or infinity",
                "Check the policy's weights; in training, lower learning_rate or set precision to float32.",
            )
        reached = self.numbers[:, input_ids.shape[1] - self.num_read, None] * cumulated[:, -1:]
        # The first token whose cumulated probability lies above the number: one of probability 0 is never that.
        drawn = torch.searchsorted(cumulated, reached, right=True).to(scores.device)
        return torch.full_like(scores, -torch.inf).scatter(1, drawn, 0.0)


class Policy:
    """Answers drawn from a causal language model by its chat template, else by the default text; a `Generator` of rewardsmith.scores.

    >>> policy = Policy("smollm2", max_new_tokens=64)  # doctest: +SKIP
    >>> [one.answer for one in policy.draw(["What is 2 + 2?"], 2, seed=0)[0]]  # doctest: +SKIP
    ['4.', '2 + 2 equals 4.']
    """

    def __init__(
        self,
        source: str | Path,
        *,
        temperature: float = 1.0,
        top_p: float = 1.0,
        max_new_tokens: int = MAX_NEW_TOKENS,
        max_length: int = MAX_LENGTH,
        settings: ScoringSettings | None = None,
        on_answers: Callable[[int, int], None] = lambda done, total: None,
    ) -> None:
        """Load the model.

        Args:
            source: a folder, a Hugging Face name, a GGUF file or `smollm2`.
            temperature: of the softmax; 1 is the policy itself, which the KL of best-of-n is measured from.
            top_p: the least share of probability that is kept at each token; 1 keeps all. What the checkpoint recommends is not taken.
            max_new_tokens: where an answer is cut.
            max_length: tokens of a prompt and its answer together; less where the model has fewer positions. Longer prompts are cut as by `keep_answer`.
            settings: device, number format and tokens of one forward pass.
            on_answers: called with the answers drawn and the number of all.

        Raises:
            SettingsError: at settings that no draw can have.
            ModelError: if there is no such model, or it lacks weights.
            LengthError: if the answer leaves no room for a prompt.
        """
        if not temperature > 0 or not 0 < top_p <= 1:
            came = f"temperature {temperature:g} and top_p {top_p:g}"
            mend = "Candidates differ by chance alone: draw at 1, or a little below."
            raise SettingsError("a temperature above 0 and a top_p above 0, at most 1", came, mend)
        if max_new_tokens < 1:
            raise SettingsError("answers of at least one token", f"{max_new_tokens}", "Raise max_new_tokens.")
        self.settings = settings or ScoringSettings()
        self.temperature, self.top_p, self.max_new_tokens = temperature, top_p, max_new_tokens
        self._on_answers = on_answers
        reader = LanguageModel(source, max_length=max_length, settings=self.settings)
        self.model, self.device = reader.model, reader.device
        spec = replace(reader.renderer.spec, max_length=max(1, reader.max_length - max_new_tokens))
        self.tokenizer = reader.renderer.tokenizer
        self.renderer = _OpenRenderer(self.tokenizer, spec)
        # What stands before an answer has no end yet.
        self.renderer.rule = replace(self.renderer.rule, suffix=())
        self.stop_ids = self._stops(reader.renderer)
        # A tokenizer may have been given a padding token for which the model has no row.
        rows = self.model.get_input_embeddings().weight.shape[0]
        known = (self.tokenizer.pad_token_id, *self.stop_ids)
        self.pad_id: int = next((i for i in known if i is not None and i < rows), 0)
        # Only what is asked for here shapes the draws: a checkpoint's own advice (top_k, a repetition penalty) is a different policy.
        self.advice: GenerationConfig = self.model.generation_config
        self.model.generation_config = GenerationConfig(
            do_sample=False, max_new_tokens=max_new_tokens, eos_token_id=self.stop_ids or None, pad_token_id=self.pad_id
        )

    def _stops(self, closed: Renderer) -> list[int]:
        """The ids that end an answer: those of the checkpoint, that of the tokenizer, and the control token with which the template closes a turn."""
        special = {i for i, token in self.tokenizer.added_tokens_decoder.items() if token.special}
        closing = next(([i] for i in closed.end_tokens if i in special), [])
        known = [self.model.generation_config.eos_token_id, self.tokenizer.eos_token_id, closing]
        found = [i for ids in known if ids is not None for i in (ids if isinstance(ids, list) else [ids])]
        return list(dict.fromkeys(found))

    def draw(self, prompts: Sequence[Prompt], num_answers: int, *, seed: int) -> list[list[Drawn]]:
        """See `Generator`: sampled at the policy's temperature, text without special tokens."""
        table = self.renderer.encode([(prompt, "") for prompt in prompts])
        rows = [(i, j) for i in range(len(prompts)) for j in range(num_answers)]
        lengths = np.array([table.lengths[i] for i, _ in rows], dtype=np.int64)
        answers: list[list[Drawn]] = [[Drawn("", True)] * num_answers for _ in prompts]
        done = 0
        for part in scoring_plan(lengths + self.max_new_tokens, self.settings.batch_tokens):
            batch = [rows[k] for k in part]
            texts = [table.row(i).tolist() for i, _ in batch]
            keys = [(prompt_key(prompts[i]), j) for i, j in batch]
            numbers = [draw_numbers((seed,), key, j, self.max_new_tokens) for key, j in keys]
            with running(self.settings.precision, self.device):
                found = self.continued(texts, numbers)
            for (i, j), ids in zip(batch, found, strict=True):
                text, is_finished = self.read_answer(ids)
                answers[i][j] = Drawn(text, not is_finished, int(table.prompt_cut[i]))
            done += len(batch)
            self._on_answers(done, len(rows))
        return answers

    def continued(self, texts: Sequence[Sequence[int]], numbers: Sequence[Numbers]) -> list[list[int]]:
        """Draw on from each text, in the number format and gradient mode of the caller.

        Args:
            texts: token ids of opened prompts, of any lengths.
            numbers: that the tokens of each answer are drawn by; see `draw_numbers`.

        Returns:
            The ids of each answer up to its end token, that included; without one, `max_new_tokens` of them.
        """
        longest = max(map(len, texts))
        ids = torch.tensor([[self.pad_id] * (longest - len(text)) + list(text) for text in texts], device=self.device)
        mask = torch.tensor([[0] * (longest - len(text)) + [1] * len(text) for text in texts], device=self.device)
        draws = _Draws(
            torch.from_numpy(np.stack(numbers)),
            num_read=longest,
            num_tokens=self.num_tokens,
            temperature=self.temperature,
            top_p=self.top_p,
        )
        # Greedy search among the one token that `draws` leaves.
        found = self.model.generate(input_ids=ids, attention_mask=mask, logits_processor=LogitsProcessorList([draws]))
        return [self._until_end(row.tolist()) for row in found[:, longest:].cpu()]

    def _until_end(self, ids: list[int]) -> list[int]:
        end = next((k for k, token in enumerate(ids) if token in self.stop_ids), None)
        return ids if end is None else ids[: end + 1]

    def read_answer(self, ids: Sequence[int]) -> tuple[str, bool]:
        """The text of what `continued` gave, without special tokens, and whether the policy ended it itself."""
        is_finished = bool(ids) and ids[-1] in self.stop_ids
        kept = list(ids[:-1] if is_finished else ids)
        text = self.tokenizer.decode(kept, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return text, is_finished

    @property
    def num_tokens(self) -> int:
        """Ids that can be drawn: those of the tokenizer; a model may have rows to spare."""
        return len(self.tokenizer)


def draw_numbers(seeds: Sequence[int], key: str, number: int, count: int) -> Numbers:
    """The numbers between 0 and 1 that an answer's tokens are drawn by.

    Args:
        seeds: of the run, and of the step where there are steps.
        key: of the prompt; see `prompt_key`.
        number: of the answer among those to its prompt.
        count: of the tokens.
    """
    return np.random.default_rng([*seeds, zlib.crc32(key.encode("utf-8", "surrogatepass")), number]).random(count)
