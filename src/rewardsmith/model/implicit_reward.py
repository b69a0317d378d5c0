"""The reward that a policy trained by DPO has learned, beta * (log pi(answer | prompt) - log reference(answer | prompt)), as a scorer.

It is the reward of which DPO's policy is the optimum under a KL penalty, up to a constant of each prompt, which no comparison of answers to one prompt sees (Rafailov,
Sharma, Mitchell, Ermon, Manning and Finn 2023, "Direct Preference Optimization", equation 5).

Legend: `N` sequences, `T` tokens, `V` vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from rewardsmith.config import ScoringSettings
from rewardsmith.data.schema import Pair
from rewardsmith.errors import ModelError, SettingsError
from rewardsmith.model.batching import Batch, collate, scoring_plan
from rewardsmith.model.language_model import MAX_LENGTH, LanguageModel
from rewardsmith.model.precision import running
from rewardsmith.model.render import TokenTable, with_end_token
from rewardsmith.model.token_places import ANSWER, PlacedRenderer
from rewardsmith.scores import Scores, ScoreTable, checked

BETA = 0.1
"""Of TRL's DPOConfig."""
# The output layer has a number for each token of the vocabulary at each place, as in `language_model`.
_SHARE_OF_TOKENS = 4


class ImplicitReward:
    """A policy and its reference as a `TableScorer` of rewardsmith.scores.

    The sum goes over the tokens of the answer *and what closes it*: the end token, and what a chat template writes after it. TRL's DPOTrainer sums over the same; without a
    chat template it appends the end token itself, and so does this. An answer that was cut to `max_length` has no end, and its closing tokens are left out.

    Both read the ids that the policy's tokenizer and template give, as in training.

    >>> scorer = ImplicitReward("runs/dpo", "smollm2")  # doctest: +SKIP
    >>> scorer.score([("What is 2 + 2?", "4."), ("What is 2 + 2?", "5.")])  # doctest: +SKIP
    array([ 0.31, -0.12], dtype=float32)
    """

    def __init__(
        self,
        policy: str | Path,
        reference: str | Path,
        *,
        beta: float = BETA,
        count_end: bool = True,
        max_length: int = MAX_LENGTH,
        settings: ScoringSettings | None = None,
    ) -> None:
        """Load both models.

        Args:
            policy: a folder, a Hugging Face name, a GGUF file or `smollm2`.
            reference: what the policy was trained from.
            beta: of its training. It scales all rewards and moves no win.
            count_end: sum over the closing tokens, too.
            max_length: tokens of a prompt and its answer; less where a model has fewer positions. Longer texts are cut as by `keep_answer`.
            settings: device, number format and tokens of one forward pass, of which a quarter is taken.

        Raises:
            SettingsError: if beta is not above 0, or both are one model.
            ModelError: if a model is not there or lacks weights, or their tokenizers differ.
        """
        if not 0 < beta < math.inf:
            raise SettingsError("beta above 0", f"{beta:g}", "Give the beta of the DPO training.")
        if str(policy) == str(reference):
            raise SettingsError(
                "a policy and what it was trained from",
                f"{policy} twice",
                "Every reward would be 0; give the reference.",
            )
        self.settings, self.beta, self.count_end = settings or ScoringSettings(), beta, count_end
        self.policy = LanguageModel(policy, max_length=max_length, settings=self.settings)
        self.reference = LanguageModel(reference, max_length=max_length, settings=self.settings)
        _check_vocabularies(self.policy, self.reference)
        tokenizer, spec = self.policy.renderer.tokenizer, self.policy.renderer.spec
        if spec.encoding == "text":
            spec = replace(spec, template=with_end_token(spec.template, tokenizer))
        self.max_length = min(self.policy.max_length, self.reference.max_length)
        self._placed = PlacedRenderer(tokenizer, replace(spec, max_length=self.max_length))

    def score(self, pairs: Sequence[Pair]) -> Scores:
        """Rewards of (prompt, answer) pairs, float32 (n,): only differences between answers to one prompt have a meaning."""
        return self.table(pairs).score

    def table(self, pairs: Sequence[Pair]) -> ScoreTable:
        """Rewards with what was read and cut of each text; see `ScoreTable`."""
        tokens = self._placed.encode(pairs)
        cut = tokens.prompt_cut.astype(np.int64), tokens.answer_cut.astype(np.int64)
        return ScoreTable(
            score=checked(self.beta * self._log_ratios(pairs, tokens), len(pairs)),
            tokens=tokens.lengths,
            full_tokens=tokens.lengths + cut[0] + cut[1],
            truncated=tokens.truncated,
            prompt_cut=cut[0],
            answer_cut=cut[1],
            special_strings=tokens.special_strings.astype(np.int64),
            digest=tokens.digests(),
        )

    def log_ratios(self, pairs: Sequence[Pair]) -> NDArray[np.float64]:
        """The log-ratio of policy and reference, log pi - log reference, of each answer in nats, float64 (n,)."""
        return self._log_ratios(pairs, self._placed.encode(pairs))

    def _log_ratios(self, pairs: Sequence[Pair], tokens: TokenTable) -> NDArray[np.float64]:
        places = [self._counted(pair, bool(cut)) for pair, cut in zip(pairs, tokens.answer_cut, strict=True)]
        found = np.zeros(len(pairs))
        budget = max(1, self.settings.batch_tokens // _SHARE_OF_TOKENS)
        pad_id = self._placed.tokenizer.pad_token_id or 0
        with running(self.settings.precision, self.policy.device):
            for rows in scoring_plan(tokens.lengths, budget) if len(pairs) else ():
                batch = collate(tokens, rows, pad_id=pad_id, with_types=False).to(self.policy.device)
                at = [places[row] for row in rows]
                found[rows] = _log_probabilities(self.policy, batch, at) - _log_probabilities(self.reference, batch, at)
        return found

    def _counted(self, pair: Pair, is_cut: bool) -> list[int]:
        """The places whose tokens are summed over: from the first token of the answer on. Its closing tokens are all that an empty answer has."""
        placed = self._placed.placed(pair)
        num = len(placed.ids)
        own = [i for i, place in enumerate(placed.places) if place is not None and place.slot == ANSWER]
        first = own[0] if own else num - len(self._placed.end_tokens)
        end = num if self.count_end and not is_cut else (own[-1] + 1 if own else first)
        return list(range(max(1, first), end))


def _log_probabilities(model: LanguageModel, batch: Batch, places: Sequence[Sequence[int]]) -> NDArray[np.float64]:
    """Log-probability of the tokens at some places of each text given all before them, summed in float64, (N,)."""
    rows = model.model.get_input_embeddings().num_embeddings
    if int(batch.input_ids.max()) >= rows:
        raise ModelError(
            f"token ids below {rows}, the rows of the embedding of both models",
            f"the id {int(batch.input_ids.max())}",
            "Give the reference that the policy was trained from, with the tokens that were added for it.",
        )
    logits = model.model(
        input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False
    ).logits  # (N, T, V)
    found = np.zeros(len(places))
    for k, counted in enumerate(places):
        at = torch.tensor(counted, dtype=torch.long, device=logits.device)
        if len(at):
            # The token at a place is foretold by the place before it.
            losses = functional.cross_entropy(logits[k, at - 1].float(), batch.input_ids[k, at], reduction="none")
            found[k] = -float(losses.double().sum())
    return found


def _check_vocabularies(policy: LanguageModel, reference: LanguageModel) -> None:
    """Both must read ids alike; tokens that were added for the policy alone are told by their ids, where one occurs.

    Raises:
        ModelError: if a token has another id in the other vocabulary, or is none there.
    """
    sides = [one.renderer.tokenizer for one in (policy, reference)]
    plain, others = (
        {token: i for token, i in one.get_vocab().items() if i not in one.added_tokens_decoder} for one in sides
    )
    added, others_added = (one.get_added_vocab() for one in sides)
    differing = {token for token in plain.keys() | others.keys() if plain.get(token) != others.get(token)}
    differing |= {token for token in added.keys() & others_added.keys() if added[token] != others_added[token]}
    # A token of the one's vocabulary may be an added token of the other, of the same id.
    both = added | plain, others_added | others
    differing = {token for token in differing if both[0].get(token) != both[1].get(token)}
    if differing:
        example = min(differing)
        raise ModelError(
            "a policy and a reference with one vocabulary",
            f"{len(differing):,} tokens that differ, for example {example!r}",
            "Give the reference that the policy was trained from; log-probabilities of other tokens cannot be subtracted.",
        )
