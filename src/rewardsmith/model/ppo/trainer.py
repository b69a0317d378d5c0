"""Steps of PPO: answer prompts, have them rewarded, learn from it.

Everything random is a function of the seed and the step, so that a run can be resumed, and of the prompt and the number of the answer, so that batches change nothing.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import gather_object
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from rewardsmith.config import PPOSettings
from rewardsmith.data.schema import Prompt, prompt_key
from rewardsmith.errors import NonFiniteError, SettingsError
from rewardsmith.model.batching import scoring_plan
from rewardsmith.model.policy import Policy
from rewardsmith.model.ppo.actor import Actor, reference_of
from rewardsmith.model.ppo.arithmetic import (
    RewardScale,
    advantages_of,
    checked_rewards,
    explained_variance,
    policy_losses,
    token_rewards,
    value_losses,
    whitened,
)
from rewardsmith.model.ppo.rollouts import Request, Rollouts, batch_of, draw, measure
from rewardsmith.model.precision import Format
from rewardsmith.stats import Floats
from rewardsmith.use.kl import AdaptiveKL, FixedKL, kl_estimate
from rewardsmith.use.samples import RewardFunction, Rewards, Sample

Item = TypeVar("Item")
Row = dict[str, Any]


@dataclass(frozen=True)
class Answered:
    """Rewarded answers, of all processes.

    Args:
        samples: the answers.
        rewards: theirs.
        kl: nats of each from the reference, over the whole vocabulary at each token (n,).
    """

    samples: list[Sample]
    rewards: Rewards
    kl: Floats


@dataclass
class _Sums:
    """What the updates of a step did, added up over tokens."""

    tokens: float = 0.0
    policy_loss: float = 0.0
    value_loss: float = 0.0
    clipped: float = 0.0
    moved: float = 0.0
    norms: list[float] = field(default_factory=list)
    first_error: float | None = None
    stopped: bool = False


def accelerator_for(settings: PPOSettings, precision: Format) -> Accelerator:
    """Device, number format and processes of a run."""
    # What an earlier run of this process has set would be kept, its number format with it.
    AcceleratorState._reset_state()
    formats = {"float32": "no", "bf16": "bf16", "fp16": "fp16"}
    return Accelerator(cpu=settings.device == "cpu", mixed_precision=formats[precision])


class PPOTrainer:
    """One policy in training.

    Args:
        settings: of the run.
        policy: to train; its model carries its adapters, if it has some.
        reward: gives answers their rewards; in several processes, each asks for its own share.
        prompts: to answer, at least one.
        accelerator: see `accelerator_for`.

    Raises:
        SettingsError: if the prompts of a step cannot be shared out evenly among the processes, or a process has fewer answers than minibatches.
    """

    def __init__(
        self,
        settings: PPOSettings,
        policy: Policy,
        reward: RewardFunction,
        prompts: Sequence[Prompt],
        *,
        accelerator: Accelerator,
    ) -> None:
        """Nothing is drawn yet."""
        ranks = accelerator.num_processes
        if settings.prompts_per_step % ranks:
            raise SettingsError(
                f"prompts_per_step that divides by the {ranks} processes", f"{settings.prompts_per_step}", "Change it."
            )
        share = settings.prompts_per_step // ranks * settings.answers_per_prompt
        if settings.minibatches > share:
            raise SettingsError(
                "`minibatches` of at most the answers of a process",
                f"{settings.minibatches} for {share} answers in each of {ranks} processes",
                "Lower minibatches, or raise prompts_per_step.",
            )
        self.settings, self.policy, self.reward, self.prompts = settings, policy, reward, list(prompts)
        self.accelerator = accelerator
        policy.device = accelerator.device
        self.actor = Actor(policy, detach_value=settings.detach_value).to(accelerator.device)
        self.reference = reference_of(self.actor, has_adapters=settings.lora is not None)
        self.parameters = {name: p for name, p in self.actor.named_parameters() if p.requires_grad}
        optimiser = torch.optim.AdamW(self._groups())
        self.model, self.optimiser = accelerator.prepare(self.actor, optimiser)
        target = settings.kl_target
        coefficient = settings.kl_coefficient
        self.controller = (
            FixedKL(coefficient) if target is None else AdaptiveKL(coefficient, target, settings.kl_horizon)
        )
        self.scale = RewardScale()

    def _groups(self) -> list[dict[str, Any]]:
        """The policy's matrices, its vectors, and the value head, which has a rate of its own."""
        head = [p for name, p in self.parameters.items() if name.startswith("value_head.")]
        policy = [p for name, p in self.parameters.items() if not name.startswith("value_head.")]
        rate, decay = self.settings.learning_rate, self.settings.weight_decay
        groups = [
            {"params": [p for p in policy if p.ndim > 1], "lr": rate, "weight_decay": decay},
            {"params": [p for p in policy if p.ndim <= 1], "lr": rate, "weight_decay": 0.0},
            {"params": head, "lr": self.settings.value_learning_rate, "weight_decay": 0.0},
        ]
        return [group | {"peak": group["lr"]} for group in groups if group["params"]]

    # ---- answers

    def requests_of(self, step: int) -> list[Request]:
        """What is answered in a step: the next prompts of an endless order in which each comes once before any comes again."""
        settings = self.settings
        start = (step - 1) * settings.prompts_per_step
        orders: dict[int, NDArray[np.int64]] = {}
        seen: dict[str, int] = {}
        found = []
        for position in range(start, start + settings.prompts_per_step):
            turn, place = divmod(position, len(self.prompts))
            if turn not in orders:
                orders[turn] = np.random.default_rng([settings.seed, turn]).permutation(len(self.prompts))
            prompt = self.prompts[orders[turn][place]]
            key = prompt_key(prompt)
            first = seen.get(key, 0)  # a prompt that comes again within a step gets answers of its own
            seen[key] = first + settings.answers_per_prompt
            found += [Request(prompt, first + k) for k in range(settings.answers_per_prompt)]
        return found

    def roll_out(self, requests: Sequence[Request], step: int) -> Rollouts:
        """Draw answers and measure how probable they were."""
        budget = self.settings.batch_tokens
        with torch.no_grad(), self.accelerator.autocast():
            drawn = draw(self.policy, requests, (self.settings.seed, step), batch_tokens=budget)
            return measure(self.policy, self.actor, self.reference, drawn, batch_tokens=budget)

    def mine(self, items: Sequence[Item], unit: int = 1) -> list[Item]:
        """The share of this process: equal runs of `unit` items that stay together."""
        ranks, rank = self.accelerator.num_processes, self.accelerator.process_index
        return [item for i, item in enumerate(items) if i // unit % ranks == rank]

    def everyones(self, samples: list[Sample], rewards: Rewards, kl: Floats) -> Answered:
        """The answers of all processes."""
        if self.accelerator.num_processes == 1:
            return Answered(samples, rewards, kl)
        parts: list[tuple[list[Sample], Rewards, Floats]] = gather_object([(samples, rewards, kl)])
        joined = Rewards(
            value=np.concatenate([one.value for _, one, _ in parts]),
            score=np.concatenate([one.score for _, one, _ in parts]),
            terms={name: np.concatenate([one.terms[name] for _, one, _ in parts]) for name in rewards.terms},
            counts={name: sum(one.counts.get(name, 0) for _, one, _ in parts) for name in rewards.counts},
        )
        return Answered([s for some, _, _ in parts for s in some], joined, np.concatenate([kl for *_, kl in parts]))

    def answer(self, prompts: Sequence[Prompt], num_answers: int, *, step: int = 0) -> Answered:
        """Answer prompts and have the answers rewarded; nothing is learned. Step 0 is that of evaluations."""
        asked = [Request(prompt, k) for prompt in prompts for k in range(num_answers)]
        rollouts = self.roll_out(self.mine(asked, num_answers), step)
        return self.everyones(rollouts.samples, self.rewards_of(rollouts.samples), rollouts.kl_of_answers)

    def rewards_of(self, samples: Sequence[Sample]) -> Rewards:
        """What the reward function gives.

        Raises:
            ScoreError: if that is not a finite reward and a finite score for each.
            RewardsmithError: of the reward function.
        """
        rewards = self.reward.rewards(samples)
        for values in (rewards.value, rewards.score):
            checked_rewards(np.asarray(values, np.float64), len(samples))
        return rewards

    def kl_at(self, step: int) -> float:
        """Nats an answer between the policy and its reference, on the prompts of a step; nothing is learned."""
        requests = self.mine(self.requests_of(step), self.settings.answers_per_prompt)
        return self._mean(self.roll_out(requests, step).kl_of_answers)

    # ---- learning

    def step(self, step: int, within: Callable[[float], bool]) -> tuple[Row, Answered, bool]:
        """One step.

        Args:
            step: from 1.
            within: told the nats an answer before anything is learned; says whether to learn.

        Returns:
            The row of the log, the answers, and whether the policy has learned from them.

        Raises:
            NonFiniteError: at a loss that is NaN or infinite.
            RewardsmithError: of the reward function.
        """
        times = [time.perf_counter()]
        requests = self.mine(self.requests_of(step), self.settings.answers_per_prompt)
        rollouts = self.roll_out(requests, step)
        times.append(time.perf_counter())
        rewards = self.rewards_of(rollouts.samples)
        everyone = self.everyones(rollouts.samples, rewards, rollouts.kl_of_answers)
        times.append(time.perf_counter())
        row = {"step": step, **self._described(everyone, rollouts)}
        learns = within(row["kl"])
        if learns:
            row |= self._learn(rollouts, rewards, everyone, step)
        times.append(time.perf_counter())
        spent = dict(zip(("drawing", "rewarding", "learning"), np.diff(times).tolist(), strict=True))
        total = times[-1] - times[0]
        row |= {"seconds": total, **{f"seconds/{name}": value for name, value in spent.items()}}
        row["tokens_per_second"] = sum(sample.num_tokens or 0 for sample in everyone.samples) / total
        return row, everyone, learns

    def _described(self, everyone: Answered, rollouts: Rollouts) -> Row:
        """What the answers of a step are like."""
        samples, rewards = everyone.samples, everyone.rewards
        means = rewards.means
        return {
            "reward": means.pop("reward"),
            "score": means.pop("score"),
            **{f"terms/{name}": value for name, value in means.items()},
            "kl": float(everyone.kl.mean()),
            "kl_sampled": float(np.mean([sample.kl or 0.0 for sample in samples])),
            "kl_coefficient": self.controller.coefficient,
            "tokens": float(np.mean([sample.num_tokens or 0 for sample in samples])),
            "characters": float(np.mean([len(sample.answer) for sample in samples])),
            "finished": float(np.mean([bool(sample.is_finished) for sample in samples])),
            "entropy": self._mean(rollouts.entropy[rollouts.mask].numpy()),
            "prompts_cut": int(self._total(torch.tensor(rollouts.drawn.num_cut))),
            "counts": dict(rewards.counts),
        }

    def _learn(self, rollouts: Rollouts, rewards: Rewards, everyone: Answered, step: int) -> Row:
        settings = self.settings
        values = np.asarray(rewards.value, np.float64)
        if settings.normalise_rewards:
            self.scale.update(np.asarray(everyone.rewards.value, np.float64))
            values = self.scale.apply(values)
        earned = token_rewards(
            torch.from_numpy(values).float(),
            rollouts.log_ratio,
            rollouts.mask,
            coefficient=self.controller.coefficient,
            estimator=settings.kl_estimator,
        )
        advantages, returns = advantages_of(
            earned, rollouts.values, rollouts.mask, gamma=settings.gamma, gae_lambda=settings.gae_lambda
        )
        row = {
            "advantage_sd": float(advantages[rollouts.mask].std(correction=0)),
            "value": self._mean(rollouts.values[rollouts.mask].numpy()),
            "explained_variance": explained_variance(rollouts.values, returns, rollouts.mask, self._total),
        }
        if settings.whiten_advantages:
            advantages = whitened(advantages, rollouts.mask, self._total)
        rate = 1.0 if settings.schedule == "constant" else 1 - (step - 1) / settings.steps
        for group in self.optimiser.param_groups:
            group["lr"] = group["peak"] * rate
        sums = self._update(rollouts, advantages, returns, step)
        self.controller.update(float(everyone.kl.mean()), len(everyone.samples))
        tokens = max(1.0, sums.tokens)
        return row | {
            "policy_loss": sums.policy_loss / tokens,
            "value_loss": sums.value_loss / tokens,
            "clip_fraction": sums.clipped / tokens,
            "update_kl": sums.moved / tokens,
            "first_ratio_error": sums.first_error,
            "gradient_norm": float(np.mean(sums.norms)) if sums.norms else None,
            "updates": len(sums.norms),
            "stopped_early": sums.stopped,
            "learning_rate": settings.learning_rate * rate,
        }

    def _update(self, rollouts: Rollouts, advantages: Tensor, returns: Tensor, step: int) -> _Sums:
        """The passes over the answers of a step."""
        settings, sums = self.settings, _Sums()
        size = len(rollouts.samples)
        for epoch in range(settings.epochs):
            seeds = [settings.seed, step, epoch, self.accelerator.process_index]
            order = np.random.default_rng(seeds).permutation(size)
            for rows in np.array_split(order, settings.minibatches):
                if not self._minibatch(rollouts, rows, advantages, returns, step, sums):
                    sums.stopped = True
                    return sums
        return sums

    def _minibatch(
        self,
        rollouts: Rollouts,
        rows: NDArray[np.int64],
        advantages: Tensor,
        returns: Tensor,
        step: int,
        sums: _Sums,
    ) -> bool:
        """One optimiser step; False if the policy had moved too far for one."""
        settings, accelerator = self.settings, self.accelerator
        ranks = accelerator.num_processes
        num_tokens = float(self._total(rollouts.mask[torch.from_numpy(rows)].sum()))
        parts = [rows[part] for part in scoring_plan(rollouts.drawn.lengths[rows], settings.batch_tokens)]
        local = torch.zeros(4, dtype=torch.float64)
        error = 0.0
        self.optimiser.zero_grad()
        for part in parts:
            # Processes exchange gradients once, when the minibatch is complete.
            waits = contextlib.nullcontext() if part is parts[-1] else accelerator.no_sync(self.model)
            with waits:
                added, largest = self._part(rollouts, part, advantages, returns, step, scale=ranks / num_tokens)
            local += added
            error = max(error, largest)
        policy_loss, value_loss, clipped, moved = self._total(local).tolist()
        if sums.first_error is None:
            sums.first_error = error
        sums.tokens += num_tokens
        sums.policy_loss += policy_loss
        sums.value_loss += value_loss
        sums.clipped += clipped
        sums.moved += moved
        if settings.update_kl is not None and moved / num_tokens > settings.update_kl:
            self.optimiser.zero_grad()
            return False
        norm = accelerator.clip_grad_norm_(list(self.parameters.values()), settings.max_gradient_norm)
        if accelerator.scaler is None and not bool(torch.isfinite(norm)):  # a scaler of fp16 leaves such a step out
            raise NonFiniteError(
                "finite gradients", f"{float(norm):g} at step {step}", "Lower learning_rate, or set precision."
            )
        self.optimiser.step()
        sums.norms.append(float(norm))
        return True

    def _part(
        self,
        rollouts: Rollouts,
        rows: NDArray[np.int64],
        advantages: Tensor,
        returns: Tensor,
        step: int,
        *,
        scale: float,
    ) -> tuple[Tensor, float]:
        """Forward and backward of a part of a minibatch.

        Returns:
            Sums over its tokens (4,): policy loss, value loss, those that the clip holds, nats from the policy that drew them; and the largest |ratio - 1|.
        """
        settings, device = self.settings, self.accelerator.device
        batch = batch_of(rollouts.drawn, rows.tolist(), pad_id=self.policy.pad_id, device=device)
        at, mask = torch.from_numpy(rows), batch.mask

        def old(tensor: Tensor) -> Tensor:
            return tensor[at, : batch.num_places].to(device)

        logits, values = self.model(*batch.inputs)
        log_probs = -functional.cross_entropy(logits.transpose(1, 2), batch.tokens, reduction="none")  # (n, A)
        log_probs = log_probs.masked_fill(~mask, 0.0)
        old_log_probs = old(rollouts.log_probs)
        per_token, clipped = policy_losses(log_probs, old_log_probs, old(advantages), settings.clip)
        per_value = value_losses(values, old(rollouts.values), old(returns), settings.value_clip)
        policy_loss, value_loss = per_token[mask].sum(), per_value[mask].sum()
        loss = policy_loss + settings.value_coefficient * value_loss
        if settings.entropy_coefficient:
            all_log_probs = logits.log_softmax(dim=-1)
            loss = loss + settings.entropy_coefficient * (all_log_probs.exp() * all_log_probs).sum(dim=-1)[mask].sum()
        if not bool(torch.isfinite(loss)):
            raise NonFiniteError(
                "a finite loss",
                f"{float(loss.detach()):g} at step {step}",
                'Lower learning_rate or set precision = "float32"; the last good checkpoint is kept.',
            )
        self.accelerator.backward(loss * scale)
        change = (log_probs - old_log_probs)[mask].detach().cpu().double()  # not every device has float64
        moved = kl_estimate(-change, "k3", exp=torch.exp).sum()
        sums = torch.stack([policy_loss.detach(), value_loss.detach(), clipped[mask].sum().float()]).cpu().double()
        return torch.cat([sums, moved[None]]), float((change.exp() - 1).abs().max())

    # ---- processes

    def _total(self, value: Tensor) -> Tensor:
        """A tensor added up over the processes."""
        if self.accelerator.num_processes == 1:
            return value
        return self.accelerator.reduce(value.to(self.accelerator.device), reduction="sum").cpu()

    def _mean(self, values: NDArray[Any]) -> float:
        """The mean over the processes."""
        total, count = self._total(torch.tensor([float(values.sum()), float(len(values))], dtype=torch.float64))
        return float(total / count)

    # ---- state

    def trained(self) -> dict[str, Tensor]:
        """Copies of all that is trained, by name."""
        return {name: p.detach().cpu().clone() for name, p in self.parameters.items()}

    def put(self, weights: Mapping[str, Tensor]) -> None:
        """Put trained parameters back, of `trained`."""
        with torch.no_grad():
            for name, tensor in weights.items():
                self.parameters[name].copy_(tensor)

    def state(self) -> dict[str, Any]:
        """What changes beside weights and optimiser, as JSON."""
        return {"kl": self.controller.state(), "scale": self.scale.state()}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from a checkpoint's `state`."""
        self.controller.restore(state["kl"])
        self.scale.restore(state["scale"])
