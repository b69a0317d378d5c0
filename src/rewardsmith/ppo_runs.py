"""`rewardsmith ppo`: a reward model with its shaping, prompts and a watch joined with the trainer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from rewardsmith.config import PPOSettings, ScoringSettings
from rewardsmith.data.schema import Prompt, prompt_key
from rewardsmith.data.sources import source_name
from rewardsmith.data.texts import read_prompts
from rewardsmith.errors import SettingsError
from rewardsmith.loading import described, load_source, papers
from rewardsmith.scores import Scorer
from rewardsmith.storage import text_sha256
from rewardsmith.use.policy_change import change_table
from rewardsmith.use.rewards import Reward
from rewardsmith.use.samples import Rewards, Sample
from rewardsmith.use.shaping import shaping_from
from rewardsmith.use.watch import LOG, Watch, read_rows
from rewardsmith.use.watch_probes import SampleProbes


def run(
    settings: PPOSettings, *, overwrite: bool, command: Sequence[str], quiet: bool, console: Console
) -> dict[str, Any]:
    """Train a policy against a MODEL argument, and return the report that also lies in the run folder.

    Args:
        settings: with `reward_model` and `prompts`.
        overwrite: delete a run that stands in `out`.
        command: the words of the command line, for the manifest.
        quiet: print no table.
        console: for people.

    Raises:
        RewardsmithError: of the kind that says what was wrong; the last good checkpoint is kept.
    """
    if settings.watch_probes and not settings.watch:
        raise SettingsError("`watch` for `watch_probes`", "probes of a run that is not watched", "Give --watch.")
    for name in ("reward_model", "prompts"):
        if getattr(settings, name) is None:
            raise SettingsError(f"`{name}`", "none", f"Give --{name.replace('_', '-')}.")
    assert settings.reward_model is not None and settings.prompts is not None
    shaping = shaping_from(settings.shaping)
    from rewardsmith.model.ppo.run import check_settings, ppo_run  # loaded here: it imports torch

    check_settings(settings, shaping, evaluates=settings.eval_prompts is not None, overwrite=overwrite)
    prompts, facts = _prompts(settings.prompts, skip_bad=settings.skip_bad, console=console)
    data = {"prompts": facts}
    held: list[Prompt] = []
    if settings.eval_prompts is not None:
        held, data["eval_prompts"] = _prompts(settings.eval_prompts, skip_bad=settings.skip_bad, console=console)
    source = load_source(
        settings.reward_model,
        ScoringSettings(device=settings.device),
        threads=settings.threads,
        seed=settings.seed,
    )
    watching = _Watching(settings, source.scorer, console) if settings.watch else None
    with ppo_run(
        settings,
        Reward(source.scorer, shaping),
        prompts,
        console=console,
        eval_prompts=held,
        on_step=None if watching is None else watching.on_step,
        on_resume=None if watching is None else watching.on_resume,
        reward_identity=source.files,
        facts={"data": data, "reward_model": described(source)},
        overwrite=overwrite,
        command=command,
    ) as done:
        report = done.report
        report |= {"reward_model": described(source), "papers": papers(data, settings.seed)}
        if watching is not None:
            report["watch"] = watching.close()
    if report["eval"] is not None and not quiet:
        console.print(change_table(report["eval"]))
    return report


class _Watching:
    """A watch over a run: its rows are on disk after each step, so that a run which is resumed was watched from its beginning."""

    def __init__(self, settings: PPOSettings, scorer: Scorer, console: Console) -> None:
        self.out = Path(settings.out)
        every = settings.watch_probes
        self.watch = Watch(
            settings.steps,
            probes=SampleProbes(scorer, every=every, seed=settings.seed) if every else None,
            on_alarm=lambda alarm: console.print(f"alarm: {alarm}", highlight=False, markup=False, soft_wrap=True),
        )
        console.print(self.watch.promise, highlight=False, markup=False, soft_wrap=True)

    def on_resume(self, step: int) -> None:
        path = self.out / LOG
        if path.is_file():
            self.watch.restore(read_rows(path, up_to_step=step))

    def on_step(self, step: int, samples: Sequence[Sample], rewards: Rewards) -> None:
        self.watch.observe(step, samples, rewards)
        self.watch.write_rows(self.out / LOG)

    def close(self) -> dict[str, Any]:
        self.watch.write(self.out)
        return {"promise": self.watch.promise, "alarms": [alarm.as_dict() for alarm in self.watch.alarms]}


def _prompts(source: str, *, skip_bad: bool, console: Console) -> tuple[list[Prompt], dict[str, Any]]:
    """The prompts of a source, and what documents say of them."""
    skipped: Counter[str] = Counter()
    found = read_prompts(source, skip_bad=skip_bad, skipped=skipped)
    if skipped:
        told = f"malformed prompts left out of {source_name(source)}, by field: {dict(skipped)}"
        console.print(told, highlight=False, markup=False, soft_wrap=True)
    digest = text_sha256("\n".join(prompt_key(prompt) for prompt in found))
    facts = {"source": source_name(source), "sha256": digest, "prompts": len(found), "skipped_bad": dict(skipped)}
    return found, facts
