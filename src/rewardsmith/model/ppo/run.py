"""A whole run of PPO, from settings to a trained policy with its evidence in the run folder. Settings are judged before prompts, prompts before the model."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils import broadcast_object_list
from rich.console import Console

from rewardsmith.config import PPOSettings, ScoringSettings
from rewardsmith.data import io
from rewardsmith.data.schema import Prompt, prompt_key
from rewardsmith.errors import DataError, MissingExtraError, SettingsError
from rewardsmith.manifest import FILE_NAME, Manifest, plain_command, without_paths
from rewardsmith.model.artefact import WEIGHTS
from rewardsmith.model.network import quiet_loading, source_folder
from rewardsmith.model.policy import Policy
from rewardsmith.model.ppo.actor import add_adapters, check_peft, save_policy, store_frozen
from rewardsmith.model.ppo.checkpoints import last_readable, load_checkpoint, save_checkpoint
from rewardsmith.model.ppo.trainer import Answered, PPOTrainer, Row, accelerator_for
from rewardsmith.model.precision import choose_device, choose_precision, prepare_process
from rewardsmith.model.run_folder import check_out, run_folder
from rewardsmith.remote import is_url, without_credentials
from rewardsmith.storage import atomic_folder, file_sha256, text_sha256, write_json
from rewardsmith.use.policy_change import policy_change
from rewardsmith.use.ppo_plots import ppo_curves
from rewardsmith.use.rewards import check_needs
from rewardsmith.use.samples import RewardFunction, Rewards, Sample
from rewardsmith.use.shaping import Shaping

LOG, SAMPLES, CURVES, REPORT, POLICY = "log.jsonl", "samples.jsonl", "curves.png", "report.json", "policy"
BEFORE, AFTER = "eval_before.jsonl", "eval_after.jsonl"
# Settings that say where and how fast, not what.
_NOT_IDENTITY = {
    "out", "device", "threads", "policy", "reward_model", "prompts", "eval_prompts", "watch", "save_every", "samples_every",
}  # fmt: skip

OnStep = Callable[[int, Sequence[Sample], Rewards], object]
Say = Callable[[str], None]


@dataclass
class PPORun:
    """A run that has ended.

    Args:
        policy_folder: the policy that is kept.
        rows: of the log, one a step.
        reason: why it ended.
        before: answers to the held-out prompts before the run; None without such prompts.
        after: and after it.
        report: the document that is written when the run is closed.
    """

    policy_folder: Path
    rows: list[Row]
    reason: str
    before: Answered | None
    after: Answered | None
    report: dict[str, Any]


def check_settings(
    settings: PPOSettings, shaping: Shaping | None = None, *, evaluates: bool = False, overwrite: bool = False
) -> None:
    """Everything that can be judged without prompts or weights.

    Args:
        settings: of the run.
        shaping: of the rewards, where it is known.
        evaluates: whether there are held-out prompts.
        overwrite: whether a run in `out` may be replaced.

    Raises:
        SettingsError: at the first thing that cannot be meant.
        MissingExtraError: if adapters are asked for without peft.
        OutputError: if `out` holds something that is not a run of ours, or a finished one.
    """
    choose_precision(settings.precision, choose_device(settings.device), "")
    if settings.lora is not None:
        check_peft()
    if shaping is not None:
        step = next((one for one in shaping.terms if "kl" in one.needs), None)
        if step is not None:
            raise SettingsError(
                "a shaping without a KL step: PPO takes KL off token by token, and it would count twice",
                f"the step `{step.key}`",
                "Remove it, and set kl_coefficient and kl_target.",
            )
        if settings.answers_per_prompt == 1:
            check_needs(shaping, {"groups": "Set answers_per_prompt to 2 or more, or leave the step out."})
        if evaluates and settings.eval_answers == 1:
            check_needs(shaping, {"groups": "Set eval_answers to 2 or more too, or leave the step out."})
    check_out(Path(settings.out), overwrite)


def train_ppo(
    settings: PPOSettings,
    reward: RewardFunction,
    prompts: Sequence[Prompt],
    *,
    eval_prompts: Sequence[Prompt] = (),
    on_step: OnStep | None = None,
    overwrite: bool = False,
    console: Console | None = None,
) -> PPORun:
    """Train a policy and save it; see `ppo_run`.

    Args:
        settings: of the run; its `reward_model`, `shaping`, `prompts` and `eval_prompts` are not read.
        reward: gives answers their rewards.
        prompts: to train on.
        eval_prompts: to answer before and after; left out of `prompts`.
        on_step: is told of each step's answers, e.g. `Watch.observe`.
        overwrite: delete a run that stands in `out`.
        console: where progress goes; standard error by default.

    Raises:
        RewardsmithError: of the kind that says what was wrong; the last good checkpoint is kept.
    """
    with ppo_run(
        settings,
        reward,
        prompts,
        eval_prompts=eval_prompts,
        on_step=on_step,
        overwrite=overwrite,
        console=console or Console(stderr=True),
    ) as run:
        return run


@contextlib.contextmanager
def ppo_run(
    settings: PPOSettings,
    reward: RewardFunction,
    prompts: Sequence[Prompt],
    *,
    console: Console,
    eval_prompts: Sequence[Prompt] = (),
    on_step: OnStep | None = None,
    on_resume: Callable[[int], object] | None = None,
    reward_identity: Mapping[str, Any] | None = None,
    facts: Mapping[str, Any] | None = None,
    overwrite: bool = False,
    command: Sequence[str] = (),
) -> Iterator[PPORun]:
    """Train a policy; the block may add to the report while the run folder is still held, and the run is closed after it.

    Args:
        settings: see `train_ppo`.
        reward: see `train_ppo`.
        prompts: see `train_ppo`.
        console: where progress goes.
        eval_prompts: see `train_ppo`.
        on_step: see `train_ppo`.
        on_resume: is told the last step of the checkpoint that the run goes on from.
        reward_identity: what tells reward functions apart, as JSON: a run goes on only with the one that it began with.
        facts: for the manifest.
        overwrite: delete a run that stands in `out`.
        command: the words of the command line.

    Raises:
        RewardsmithError: of the kind that says what was wrong; the last good checkpoint is kept.
    """

    def say(text: str) -> None:
        console.print(text, highlight=False, markup=False, soft_wrap=True)

    shaping = getattr(reward, "shaping", None)
    shaping = shaping if isinstance(shaping, Shaping) else None
    check_settings(settings, shaping, evaluates=bool(eval_prompts), overwrite=overwrite)
    held = list(eval_prompts)[: settings.max_eval_prompts]
    train = _apart(prompts, eval_prompts, say)
    prepare_process(threads=settings.threads, seed=settings.seed)
    out, source = Path(settings.out), source_folder(settings.policy)
    identity = {
        "settings": without_paths(
            {k: v for k, v in settings.model_dump(mode="json").items() if k not in _NOT_IDENTITY}
        ),
        "data": {"prompts": _fingerprint(train), "eval_prompts": _fingerprint(held)},
        "policy": file_sha256(Path(source) / WEIGHTS) if (Path(source) / WEIGHTS).is_file() else Path(source).name,
        "reward": dict(reward_identity or {}) | _identity_of(shaping),
    }
    precision = choose_precision(settings.precision, choose_device(settings.device), "")
    accelerator = accelerator_for(settings, precision.name)
    policy = Policy(
        settings.policy,
        temperature=settings.temperature,
        max_new_tokens=settings.max_new_tokens,
        max_length=settings.max_prompt_tokens + settings.max_new_tokens,
        settings=ScoringSettings(device=settings.device, batch_tokens=settings.batch_tokens),
    )
    if settings.lora is not None:
        torch.manual_seed(settings.seed)  # whatever was drawn until here
        add_adapters(policy.model, settings.lora)
        if precision.name != "float32":
            store_frozen(policy.model, {"bf16": torch.bfloat16, "fp16": torch.float16}[precision.name])
    trainer = PPOTrainer(settings, policy, reward, train, accelerator=accelerator)
    say(
        f"policy: {sum(p.numel() for p in trainer.parameters.values()):,} parameters trained, value head included; "
        f"{precision.name} on {accelerator.device.type}; {len(train):,} prompts, {len(held):,} held out"
    )
    if not accelerator.is_main_process:  # the others work along; files are the main process's
        yield _fit(trainer, out, held, _told(accelerator, None), _Files(None), on_step=None, say=lambda text: None)
        return
    with run_folder(out, identity, overwrite=overwrite, say=say) as found:
        resume_from = None if found is None else last_readable(out / "checkpoints", say)
        for half in (out / "checkpoints").glob(".checkpoint-*"):  # of a killed run
            shutil.rmtree(half, ignore_errors=True)
        manifest = Manifest.open(
            out / FILE_NAME,
            verb="ppo",
            settings={key: _without_secrets(value) for key, value in settings.model_dump(mode="json").items()},
            command=plain_command(command),
            identity=identity,
            precision={"name": precision.name, "reason": precision.reason},
            device={"type": accelerator.device.type, "threads": torch.get_num_threads()},
            resumed_from=None if resume_from is None else resume_from.name,
            **dict(facts or {}),
        )
        with manifest.until_closed():
            _told(accelerator, resume_from)
            run = _fit(trainer, out, held, resume_from, _Files(out), on_step=on_step, on_resume=on_resume, say=say)
            yield run
            write_json(out / REPORT, run.report)
            manifest.close("finished", reason=run.reason, kept=run.report["kept"])


def _identity_of(shaping: Shaping | None) -> dict[str, str]:
    """What tells shapings apart; nothing where there is no step."""
    if shaping is None or not shaping.terms:
        return {}
    return {"shaping": text_sha256(json.dumps(shaping.as_dict(), sort_keys=True))}


def _without_secrets(value: Any) -> Any:
    """The address of a server without its user and password, also where a flag stands before it; anything else as it is."""
    if not isinstance(value, str):
        return value
    flag, equals, address = value.partition("=") if value.startswith("-") or "=http" in value else ("", "", value)
    return f"{flag}{equals}{without_credentials(address)}" if is_url(address) else value


def _told(accelerator: Any, resume_from: Path | None) -> Path | None:
    """What the main process says to all: the checkpoint that the run goes on from."""
    if accelerator.num_processes == 1:
        return resume_from
    told: list[Path | None] = broadcast_object_list([resume_from])
    return told[0]


def _apart(prompts: Sequence[Prompt], held: Sequence[Prompt], say: Say) -> list[Prompt]:
    """The prompts to train on: none of the held-out ones.

    Raises:
        DataError: if there is none.
    """
    keys = {prompt_key(prompt) for prompt in held}
    train = [prompt for prompt in prompts if prompt_key(prompt) not in keys]
    if len(train) < len(prompts):
        say(f"prompts left out because they are held out: {len(prompts) - len(train):,}")
    if not train:
        raise DataError("at least one prompt to train on", f"{len(prompts)}, all held out", "Give other prompts.")
    return train


def _fingerprint(prompts: Sequence[Prompt]) -> str:
    return text_sha256(json.dumps([prompt_key(prompt) for prompt in prompts]))


class _Files:
    """log.jsonl and samples.jsonl, a row at a time; nothing at all where `out` is None."""

    def __init__(self, out: Path | None) -> None:
        self.out = out

    def start(self, step: int) -> list[Row]:
        """Cut both files back to a step; returns the rows of the log until there."""
        kept: list[Row] = []
        for name in (LOG, SAMPLES) if self.out else ():
            path = self.out / name  # type: ignore[operator]
            kept_rows = [row for row in _rows(path) if row["step"] <= step]
            io.write_rows(path, kept_rows)
            kept = kept_rows if name == LOG else kept
        return kept

    def add(self, name: str, rows: Sequence[Row]) -> None:
        """Append rows."""
        if self.out is not None:
            with open(self.out / name, "a", encoding="utf-8") as file:
                file.writelines(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows)


def _rows(path: Path) -> list[Row]:
    """The whole rows of a file; one that was being written when its run was killed is left out."""
    found = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
        with contextlib.suppress(ValueError):
            found.append(json.loads(line))
    return found


def sample_rows(answered: Answered, **more: Any) -> list[Row]:
    """Rewarded answers as rows of JSON, beginning with `more`."""
    rows = []
    for i, sample in enumerate(answered.samples):
        rows.append(
            {
                **more,
                "prompt": sample.prompt,
                "answer": sample.answer,
                "reward": float(answered.rewards.value[i]),
                "score": float(answered.rewards.score[i]),
                "terms": {name: float(values[i]) for name, values in answered.rewards.terms.items()},
                "kl": float(answered.kl[i]),
                "kl_sampled": sample.kl,
                "tokens": sample.num_tokens,
                "finished": sample.is_finished,
            }
        )
    return rows


def _answered(rows: Sequence[Row]) -> Answered:
    """What `sample_rows` wrote."""
    samples = [
        Sample(
            row["prompt"],
            row["answer"],
            is_finished=row["finished"],
            num_tokens=row["tokens"],
            kl=row["kl_sampled"],
        )
        for row in rows
    ]
    rewards = Rewards(
        np.array([row["reward"] for row in rows], np.float64),
        np.array([row["score"] for row in rows], np.float32),
        {name: np.array([row["terms"][name] for row in rows], np.float64) for name in rows[0]["terms"]},
    )
    return Answered(samples, rewards, np.array([row["kl"] for row in rows], np.float64))


@dataclass
class _Kept:
    """The last policy that is known to be within the KL budget; without a budget, none is kept."""

    budget: float | None
    weights: dict[str, torch.Tensor] | None = None
    updates: int = 0
    kl: float | None = None

    def look(self, trainer: PPOTrainer, kl: float, step: int) -> bool:
        """Whether the policy that answers in a step, after `step - 1` updates, is within; if so it is the one to keep."""
        if self.budget is None:
            return True
        if not kl <= self.budget:
            return False
        self.weights, self.updates, self.kl = trainer.trained(), step - 1, kl
        return True


def _fit(
    trainer: PPOTrainer,
    out: Path,
    held: Sequence[Prompt],
    resume_from: Path | None,
    files: _Files,
    *,
    say: Say,
    on_step: OnStep | None,
    on_resume: Callable[[int], object] | None = None,
) -> PPORun:
    """The steps of a run, and what is measured before and after them."""
    settings = trainer.settings
    done, kept = 0, _Kept(settings.kl_budget)
    if resume_from is not None:
        done, kept.weights, facts = load_checkpoint(trainer, resume_from)
        kept.updates, kept.kl = facts["updates"], facts["kl"]
    rows = files.start(done)
    if done and on_resume is not None:
        on_resume(done)
    before = _before(trainer, out, held, files, is_fresh=done == 0)
    reason = f"all {settings.steps} steps were taken"
    every = max(1, settings.steps // 20)
    for step in range(done + 1, settings.steps + 1):
        row, answered, learned = trainer.step(step, lambda kl, step=step: kept.look(trainer, kl, step))  # type: ignore[misc]
        rows.append(row)
        files.add(LOG, [row])
        if step == 1 or step % settings.samples_every == 0 or step == settings.steps or not learned:
            files.add(SAMPLES, sample_rows(answered, step=step))
        if on_step is not None:
            on_step(step, answered.samples, answered.rewards)
        if step == 1 or step % every == 0 or not learned:
            say(_line(row, settings.steps))
        if not learned:
            reason = f"the KL budget of {settings.kl_budget:g} nats an answer was spent: {row['kl']:.3g} at step {step}"
            break
        if step % settings.save_every == 0 and step < settings.steps and files.out is not None:
            facts = {"updates": kept.updates, "kl": kept.kl}
            save_checkpoint(trainer, out / "checkpoints", step=step, within=kept.weights, facts=facts)
    else:
        if settings.kl_budget is not None:  # the last update has been seen by nobody
            kl = trainer.kl_at(settings.steps + 1)
            if not kept.look(trainer, kl, settings.steps + 1):
                reason = (
                    f"the KL budget of {settings.kl_budget:g} nats an answer was spent: {kl:.3g} after the last step"
                )
    if kept.weights is not None:
        trainer.put(kept.weights)
    updates = kept.updates if kept.weights is not None else settings.steps
    say(f"ended: {reason}; the policy after {updates} updates is kept")
    after = None
    if held:
        after = trainer.answer(held, settings.eval_answers)
        if files.out is not None:
            io.write_rows(out / AFTER, sample_rows(after))
    report: dict[str, Any] = {
        "verb": "ppo",
        "reason": reason,
        "steps": rows[-1]["step"],
        "kept": {"updates": updates, "kl": kept.kl},
        "kl_budget": settings.kl_budget,
        "first": _short(rows[0]),
        "last": _short(rows[-1]),
        "prompts_cut": sum(row["prompts_cut"] for row in rows),
        "seconds": sum(row["seconds"] for row in rows),
        "eval": None,
    }
    if before is not None and after is not None:
        report["eval"] = policy_change(
            (before.samples, before.rewards), (after.samples, after.rewards), after.kl, seed=settings.seed
        )
    if files.out is not None:
        with atomic_folder(out / POLICY) as folder, quiet_loading():
            save_policy(trainer.policy, folder, source=settings.policy, merge=settings.merge)
        report["curves"] = _draw(rows, out / CURVES, settings.kl_budget, say)
    return PPORun(out / POLICY, rows, reason, before, after, report)


def _before(
    trainer: PPOTrainer, out: Path, held: Sequence[Prompt], files: _Files, *, is_fresh: bool
) -> Answered | None:
    """Answers to the held-out prompts by the policy as it came: those of the interrupted run, where one goes on."""
    if not held:
        return None
    if not is_fresh:  # written before the first step
        rows = _rows(out / BEFORE)
        if len(rows) != len(held) * trainer.settings.eval_answers:
            raise DataError(
                f"{len(held) * trainer.settings.eval_answers} answers in {BEFORE}, of before the interrupted run",
                f"{len(rows)}",
                "Run again with --overwrite.",
            )
        return _answered(rows)
    answered = trainer.answer(held, trainer.settings.eval_answers)
    if files.out is not None:
        io.write_rows(out / BEFORE, sample_rows(answered))
    return answered


def _short(row: Row) -> Row:
    names = ("step", "reward", "score", "kl", "tokens", "finished", "entropy")
    return {name: row[name] for name in names}


def _line(row: Row, steps: int) -> str:
    """A step for people."""
    return (
        f"step {row['step']:>4}/{steps}  reward {row['reward']:+.3f}  score {row['score']:+.3f}  KL {row['kl']:.3f}  "
        f"tokens {row['tokens']:.0f}  ended {row['finished']:.0%}  {row['seconds']:.1f} s"
    )


def _draw(rows: Sequence[Row], path: Path, kl_budget: float | None, say: Say) -> str | None:
    """Draw curves.png; without matplotlib say so, for a missing plot is no reason to lose a run."""
    try:
        ppo_curves(rows, path, kl_budget=kl_budget)
    except MissingExtraError as error:
        say(f"no {path.name}: {error}")
        return None
    return path.name
