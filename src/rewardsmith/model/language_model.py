"""How unlikely an answer is to a causal language model: perplexity, which tells text that people write from strings that a search has made.

Legend: `N` sequences, `T` tokens, `V` vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional
from transformers import AutoModelForCausalLM

from rewardsmith.config import ScoringSettings
from rewardsmith.data.schema import Pair
from rewardsmith.errors import ModelError
from rewardsmith.model.batching import collate, scoring_plan
from rewardsmith.model.clock import pinned_date
from rewardsmith.model.network import load_tokenizer, position_capacity, quiet_loading, source_folder
from rewardsmith.model.precision import choose_device, running
from rewardsmith.model.render import Renderer, RenderSpec, resolve_encoding
from rewardsmith.model.token_places import ANSWER, PlacedRenderer

MAX_LENGTH = 1024
# The output layer has a number for each token of the vocabulary at each place: 4 bytes x 50,000 x 1,024 are 200 MB.
_SHARE_OF_TOKENS = 4


class LanguageModel:
    """A causal language model that reads answers after their prompts; a `Perplexity` of rewardsmith.scores.

    The prompt is rendered as for a reward model over the same checkpoint: by its chat template, else by the default text.

    >>> model = LanguageModel("smollm2")  # doctest: +SKIP
    >>> model.perplexities([("What is 2 + 2?", "2 + 2 is 4."), ("What is 2 + 2?", "zq ##ing 2 + 2 is 4.")]).round()  # doctest: +SKIP
    array([ 3., 62.])
    """

    def __init__(
        self, source: str | Path, *, max_length: int = MAX_LENGTH, settings: ScoringSettings | None = None
    ) -> None:
        """Load the model.

        Args:
            source: a folder, a Hugging Face name, a GGUF file or `smollm2`.
            max_length: tokens of one text; less where the model has fewer positions. What is cut (`keep_answer`) is not counted.
            settings: device, number format and tokens of one forward pass, of which a quarter is taken.

        Raises:
            ModelError: if there is none, or it lacks weights.
            LengthError: if max_length leaves no room beside the template.
        """
        self.settings = settings or ScoringSettings()
        self.device = choose_device(self.settings.device)
        folder = source_folder(str(source))
        try:
            with quiet_loading():
                model, info = AutoModelForCausalLM.from_pretrained(
                    folder, dtype=torch.float32, output_loading_info=True, trust_remote_code=False, weights_only=True
                )
        except (OSError, ValueError, KeyError, RuntimeError) as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise ModelError(
                f"a causal language model in {source}", reason[:200], "Check the path or the name."
            ) from error
        if missing := sorted(info["missing_keys"]):
            # They would be random: a perplexity of noise.
            came = f"one without {', '.join(missing[:3])}"
            raise ModelError(
                f"all weights of a causal language model in {source}",
                came,
                "Give a checkpoint that has its output layer.",
            )
        self.model = model.to(self.device).eval()
        tokenizer = load_tokenizer(folder)
        encoding, _ = resolve_encoding("auto", tokenizer)
        day = pinned_date(tokenizer, date.today()) if encoding == "chat" else None
        positions = position_capacity(model) or getattr(model.config, "max_position_embeddings", None) or max_length
        self.max_length = min(max_length, positions)
        self.renderer = Renderer(tokenizer, RenderSpec(encoding=encoding, max_length=self.max_length, date=day))
        self._placed = PlacedRenderer(self.renderer.tokenizer, self.renderer.spec)

    def perplexities(self, pairs: Sequence[Pair]) -> NDArray[np.float64]:
        """See `Perplexity`: over the tokens of the answer alone, given all before them."""
        table = self.renderer.encode(pairs)
        counted = [self._of_answer(pair) for pair in pairs]
        found = np.full(len(pairs), np.nan)
        readable = np.array([i for i, places in enumerate(counted) if places], dtype=np.int64)
        if not len(readable):
            return found
        budget = max(1, self.settings.batch_tokens // _SHARE_OF_TOKENS)
        with running(self.settings.precision, self.device):
            for part in scoring_plan(table.lengths[readable], budget):
                rows = readable[part]
                batch = collate(table, rows, pad_id=self.renderer.tokenizer.pad_token_id or 0, with_types=False)
                batch = batch.to(self.device)
                logits = self.model(
                    input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False
                ).logits.float()  # (N, T, V)
                for k, row in enumerate(rows.tolist()):
                    at = torch.tensor(counted[row], device=self.device)
                    # The token at a place is foretold by the place before it.
                    loss = functional.cross_entropy(logits[k, at - 1], batch.input_ids[k, at])
                    found[row] = float(np.exp(min(float(loss), 700.0)))  # exp(709) is the largest float64
        return found

    def _of_answer(self, pair: Pair) -> list[int]:
        """The places of the answer's tokens that have something before them."""
        places = self._placed.placed(pair).places
        return [i for i, place in enumerate(places) if i > 0 and place is not None and place.slot == ANSWER]
