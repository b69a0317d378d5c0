"""What a policy said in a step, and how probable that was to itself and to its reference.

Legend: `N` answers, `T` tokens of prompt and answer, `P` of the longest prompt, `A` of the longest answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from rewardsmith.data.schema import Prompt, prompt_key
from rewardsmith.model.batching import scoring_plan
from rewardsmith.model.policy import Policy, draw_numbers
from rewardsmith.model.ppo.actor import Actor
from rewardsmith.use.samples import Sample


@dataclass(frozen=True, slots=True)
class Request:
    """An answer that is asked for: its prompt, and its number among the answers of the step to that prompt."""

    prompt: Prompt
    number: int


@dataclass(frozen=True)
class Drawn:
    """Answers as token ids.

    Args:
        requests: that they answer.
        prompts: ids of each.
        answers: ids of each, up to the end token, that included.
        num_cut: prompts that did not fit and were cut.
    """

    requests: list[Request]
    prompts: list[list[int]]
    answers: list[list[int]]
    num_cut: int

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens of prompt and answer (N,)."""
        return np.array([len(p) + len(a) for p, a in zip(self.prompts, self.answers, strict=True)], dtype=np.int64)


@dataclass(frozen=True)
class Batch:
    """Some prompts with their answers, as a model reads them; see `Actor.forward`.

    Args:
        input_ids: (n, P + A - 1).
        attention_mask: (n, P + A - 1).
        tokens: that were drawn (n, A).
        mask: True where one was drawn (n, A).
    """

    input_ids: Tensor
    attention_mask: Tensor
    tokens: Tensor
    mask: Tensor

    @property
    def num_places(self) -> int:
        """A."""
        return int(self.tokens.shape[1])

    @property
    def inputs(self) -> tuple[Tensor, Tensor, int]:
        """The arguments of `Actor.forward`."""
        return self.input_ids, self.attention_mask, self.num_places


def batch_of(drawn: Drawn, rows: Sequence[int], *, pad_id: int, device: Any) -> Batch:
    """Some answers side by side: prompts padded on the left, answers on the right, so that all answers begin at one place."""
    prompts, answers = [drawn.prompts[i] for i in rows], [drawn.answers[i] for i in rows]
    before, after = max(map(len, prompts)), max(map(len, answers))
    ids, mask, tokens = [], [], []
    for prompt, answer in zip(prompts, answers, strict=True):
        left, right = before - len(prompt), after - len(answer)
        tokens.append(answer + [pad_id] * right)
        ids.append([pad_id] * left + prompt + tokens[-1])
        mask.append([0] * left + [1] * (len(prompt) + len(answer)) + [0] * right)
    lengths = torch.tensor([len(answer) for answer in answers])
    return Batch(
        # Nothing is foretold from the last token.
        input_ids=torch.tensor(ids, device=device)[:, :-1],
        attention_mask=torch.tensor(mask, device=device)[:, :-1],
        tokens=torch.tensor(tokens, device=device),
        mask=(torch.arange(after)[None] < lengths[:, None]).to(device),
    )


@dataclass(frozen=True)
class Rollouts:
    """Answers with what was known of them before the policy learned from them. Tensors are (N, A) on the CPU, 0 outside of the mask.

    Args:
        drawn: the ids.
        samples: the texts; their `kl` is the log-ratio of the whole answer (k1).
        mask: True at the tokens that were drawn, the end token included.
        log_probs: of the tokens, by the policy that drew them.
        reference_log_probs: of the tokens, by the reference.
        values: foretold before each token.
        entropy: of the policy at each token, in nats.
        kl: of the policy from the reference at each token, over the whole vocabulary, in nats: it has the mean of the log-ratios and a part of their noise.
    """

    drawn: Drawn
    samples: list[Sample]
    mask: Tensor
    log_probs: Tensor
    reference_log_probs: Tensor
    values: Tensor
    entropy: Tensor
    kl: Tensor

    @property
    def log_ratio(self) -> Tensor:
        """Log policy - log reference of each token."""
        return self.log_probs - self.reference_log_probs

    @property
    def kl_of_answers(self) -> NDArray[np.float64]:
        """Nats of each answer (N,)."""
        return self.kl.double().sum(dim=1).numpy()


def draw(policy: Policy, requests: Sequence[Request], seeds: Sequence[int], *, batch_tokens: int) -> Drawn:
    """Answer prompts; each answer is a function of the seeds, its prompt and its number alone.

    Args:
        policy: draws in the number format and gradient mode of the caller.
        requests: at least one.
        seeds: of the run and the step.
        batch_tokens: of one batch, padding included.
    """
    table = policy.renderer.encode([(request.prompt, "") for request in requests])
    prompts = [table.row(i).tolist() for i in range(len(requests))]
    answers: list[list[int]] = [[] for _ in requests]
    for part in scoring_plan(table.lengths + policy.max_new_tokens, batch_tokens):
        numbers = [
            draw_numbers(seeds, prompt_key(requests[i].prompt), requests[i].number, policy.max_new_tokens) for i in part
        ]
        for i, ids in zip(part.tolist(), policy.continued([prompts[i] for i in part], numbers), strict=True):
            answers[i] = ids
    return Drawn(list(requests), prompts, answers, int((table.prompt_cut > 0).sum()))


def measure(policy: Policy, actor: Actor, reference: nn.Module | None, drawn: Drawn, *, batch_tokens: int) -> Rollouts:
    """Read answers once with the policy and once with its reference, in the number format of the caller; no gradient is kept."""
    size = (len(drawn.answers), max(map(len, drawn.answers)))
    found = {name: torch.zeros(size) for name in ("log_probs", "reference_log_probs", "values", "entropy", "kl")}
    whole_mask = torch.zeros(size, dtype=torch.bool)
    with torch.no_grad():
        for rows in scoring_plan(drawn.lengths, batch_tokens):
            batch = batch_of(drawn, rows.tolist(), pad_id=policy.pad_id, device=policy.device)
            logits, values = actor(*batch.inputs)
            own = logits.log_softmax(dim=-1)  # (n, A, V)
            other = actor.reference_logits(reference, *batch.inputs).log_softmax(dim=-1)
            chosen = batch.tokens[..., None]
            probabilities = own.exp()
            parts = {
                "log_probs": own.gather(-1, chosen)[..., 0],
                "reference_log_probs": other.gather(-1, chosen)[..., 0],
                "values": values,
                "entropy": -(probabilities * own).sum(dim=-1),
                "kl": (probabilities * (own - other)).sum(dim=-1),
            }
            at = torch.from_numpy(rows)
            for name, part in parts.items():
                found[name][at, : batch.num_places] = part.masked_fill(~batch.mask, 0.0).float().cpu()
            whole_mask[at, : batch.num_places] = batch.mask.cpu()
    log_ratios = (found["log_probs"] - found["reference_log_probs"]).double().sum(dim=1).tolist()
    samples = []
    for request, ids, log_ratio in zip(drawn.requests, drawn.answers, log_ratios, strict=True):
        text, is_finished = policy.read_answer(ids)
        samples.append(Sample(request.prompt, text, is_finished=is_finished, num_tokens=len(ids), kl=log_ratio))
    return Rollouts(drawn, samples, whole_mask, **found)
