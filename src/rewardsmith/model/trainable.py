"""A finished run whose recipe can be followed again on a part of its training pairs: `Trainable` of rewardsmith.scores.

A run folder holds no data and no path. Whoever asks gives the data again, and what is given is compared by content with what the manifest says.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from rewardsmith.config import ScoringSettings, TrainSettings, build
from rewardsmith.data import io
from rewardsmith.data.examples import Example
from rewardsmith.data.schema import Preference, as_row
from rewardsmith.errors import DataError, ModelError, SettingsError
from rewardsmith.manifest import FILE_NAME, Manifest
from rewardsmith.model.losses import LOSSES
from rewardsmith.model.network import source_folder
from rewardsmith.model.reward_model import RewardModel
from rewardsmith.model.run_folder import run_identity
from rewardsmith.model.trainer_arguments import with_twins
from rewardsmith.model.training import training_run
from rewardsmith.model.training_data import is_made, read_data
from rewardsmith.scores import Retrained, Scorer
from rewardsmith.storage import write_text

# Of the [trainer] table, what would speak to other programs, or take the seed out of our hands.
_NOT_AGAIN = ("report_to", "push_to_hub", "seed")


class TrainableRun:
    """The recipe of a finished run, with the data that it was followed on.

    >>> run = TrainableRun.open("runs/demo", data="train.jsonl")  # doctest: +SKIP
    >>> half = run.training_pairs()[:500]  # doctest: +SKIP
    >>> run.train_on(half, seed=0).scorer.score([("What is 2 + 2?", "4.")])  # doctest: +SKIP
    array([0.71], dtype=float32)
    """

    def __init__(
        self,
        settings: TrainSettings,
        train: Sequence[Preference],
        dev: Sequence[Example],
        *,
        scoring: ScoringSettings,
        manifest: Mapping[str, Any],
    ) -> None:
        """Keep the parts; use `open` for a run folder.

        Args:
            settings: of the run, with its data in their places.
            train: the training pairs.
            dev: what chooses the checkpoint.
            scoring: how the models are run that come of it.
            manifest: of the run.
        """
        self.settings, self.scoring = settings, scoring
        self._train, self._dev, self._manifest = list(train), list(dev), manifest

    @classmethod
    def open(
        cls,
        run: str | Path,
        *,
        data: str,
        dev_data: str | None = None,
        model: str | None = None,
        scoring: ScoringSettings | None = None,
    ) -> TrainableRun:
        """The recipe of a run folder.

        Args:
            run: the folder of a finished `train`, or its model folder.
            data: the training data that it was given, in any file of the same rows.
            dev_data: the dev data, where it was given any.
            model: what it started from, where the manifest's name for that leads nowhere from here.
            scoring: how the models are run; its device is also the one to train on.

        Raises:
            ModelError: if there is no finished run, or the model is not the one that it started from.
            SettingsError: if its recipe is for lists or ratings.
            DataError: if the data are missing, or others than those of the run.
        """
        document = _finished_run(Path(run))
        recorded, scoring = document["settings"], scoring or ScoringSettings()
        identity = document["identity"]
        if (dev_data is None) != ("dev_data" not in identity["data"]):
            came = "none" if dev_data is None else "dev data for a run that split its dev part off its training data"
            mend = "Give --dev-data." if dev_data is None else "Leave --dev-data out."
            raise DataError(f"the dev data of the run ({recorded['dev_data'] or 'none'})", came, mend)
        settings = build(
            TrainSettings,
            recorded
            | {"data": data, "dev_data": dev_data, "eval_data": None, "model": model or recorded["model"]}
            # No folder of that name is made: every training gets one of its own.
            | {"out": str(Path(tempfile.gettempdir()) / "rewardsmith-learning-curve"), "device": scoring.device},
        )
        if (kind := LOSSES[settings.loss.name].data) != "pairs":
            raise SettingsError(
                "a run whose loss reads pairs, for training on a part of them",
                f"one that reads {kind} ({settings.loss.name})",
                "Train with a loss of pairs to see a learning curve.",
            )
        if settings.stream:
            raise SettingsError(
                "a run whose training pairs were in memory, for training on a part of them",
                f"stream = {settings.stream}",
                "Train without stream, on a sample if need be, to see a learning curve.",
            )
        _check_model(settings, identity, recorded)
        found = read_data(settings)
        for name, flag in (("data", "--train-data"), ("dev_data", "--dev-data")):
            if name in identity["data"]:
                _check_data(found.facts[name], identity["data"][name], document["data"][name], flag)
        train = [one for one in found.train if isinstance(one, Preference) and not is_made(one)]
        return cls(settings, train, found.dev, scoring=scoring, manifest=document)

    def training_pairs(self) -> list[Preference]:
        """What the run trained on: without its dev part, without faults of content, and without what prompt_swap makes."""
        return list(self._train)

    def whole(self, scorer: Scorer) -> Retrained:
        """The model of the run itself, with the number of pairs that it was trained on: what `train_on` need not make again.

        Args:
            scorer: of the run folder.
        """
        made = self._manifest["data"].get("prompt_swap", {})
        kept = made.get("extra_pairs", 0) - made.get("dropped", 0)
        return Retrained(scorer, self._manifest["counts"]["train_pairs"] - kept)

    def train_on(self, pairs: Sequence[Preference], *, seed: int) -> Retrained:
        """Follow the recipe on some of the training pairs, in a run folder that is deleted before this returns, whatever happens.

        The dev part is that of the run, and so are all settings; only pairs that a template or a length makes equal are dropped without a limit, for the run
        itself was within it. With all training pairs and the seed of the run, the scores are those of the run.

        Args:
            pairs: of `training_pairs`, in their order.
            seed: of the head and of the order of the pairs.

        Raises:
            RewardsmithError: of the kind that says what was wrong.
        """
        with tempfile.TemporaryDirectory(prefix="rewardsmith-learning-curve-") as folder:
            settings = self._settings(Path(folder), pairs, seed)
            self._keep_date(settings)
            with training_run(settings, overwrite=False, command=(), console=Console(quiet=True)) as trained:
                assert trained is not None  # one process
                if trained.data.facts["data"]["sha256"] != io.fingerprint(pairs):
                    raise DataError(
                        "pairs that a file gives back as they are",
                        "others",
                        "Please report this with the rows' columns.",
                    )
                num_pairs = sum(not is_made(example) for example in trained.data.train)
                scorer = RewardModel.load(trained.model_folder, self.scoring)
                trained.manifest.close("finished")
        return Retrained(scorer, num_pairs)

    def _settings(self, folder: Path, pairs: Sequence[Preference], seed: int) -> TrainSettings:
        """The settings of one training, whose data are written into its folder."""
        changed: dict[str, Any] = {
            "data": str(_written(folder / "train.jsonl", pairs)),
            "out": str(folder / "run"),
            "seed": seed,
            "max_dropped_share": 1.0,
            "trainer": {name: value for name, value in self.settings.trainer.items() if name not in _NOT_AGAIN},
        }
        if self._dev and self.settings.dev_data is None:
            whole = TrainSettings.model_fields["dev_share"].default
            changed |= {"dev_data": str(_written(folder / "dev.jsonl", self._dev)), "dev_share": whole}
        return build(TrainSettings, self.settings.model_dump() | changed)

    def _keep_date(self, settings: TrainSettings) -> None:
        """Where the chat template writes the date, begin as a run that goes on: it reads the day of the first start, and not today."""
        day = self._manifest.get("render", {}).get("date")
        if not day:
            return
        settings = with_twins(settings)
        data = read_data(settings)
        hashes = {name: facts["sha256"] for name, facts in data.facts.items() if "sha256" in facts}
        out = Path(settings.out)
        out.mkdir()
        Manifest.open(
            out / FILE_NAME,
            verb="train",
            settings=settings.model_dump(),
            identity=run_identity(settings, hashes, source_folder(settings.model)),
            render={"date": day},
        )


def _finished_run(folder: Path) -> dict[str, Any]:
    found = Manifest.read(folder / FILE_NAME)
    document = {} if found is None else found.document
    if document.get("verb") != "train" or document.get("outcome") != "finished" or "identity" not in document:
        came = "none" if found is None else f"{document.get('verb')}, {document.get('outcome')}"
        raise ModelError(
            f"the manifest of a finished `rewardsmith train` in {folder}",
            came,
            "Give the run folder; a model of another origin has no recipe that could be followed again.",
        )
    return document


def _check_model(settings: TrainSettings, identity: Mapping[str, Any], recorded: Mapping[str, Any]) -> None:
    found = run_identity(settings, {}, source_folder(settings.model))["model"]
    if found != identity["model"]:
        raise ModelError(
            f"the model that the run started from ({recorded['model']}, {_short(identity['model'])})",
            f"{settings.model} ({_short(found)})",
            "Name it by --base-model.",
        )


def _short(name: str) -> str:
    """A SHA-256 by its beginning; a name as it is."""
    return f"SHA-256 {name[:12]}..." if len(name) == 64 and "/" not in name else name


def _check_data(found: Mapping[str, Any], wanted: str, recorded: Mapping[str, Any], flag: str) -> None:
    if found["sha256"] != wanted:
        raise DataError(
            f"the data of the run: {recorded['source']}, {recorded['rows']:,} rows, content {_short(wanted)}",
            f"{found['source']}, {found['rows']:,} rows, content {_short(found['sha256'])}",
            f"Give the very rows, in their order, that the run was given: {flag}.",
        )


def _written(path: Path, examples: Sequence[Example]) -> Path:
    """The examples as a file of native rows."""
    write_text(path, "".join(json.dumps(as_row(one), ensure_ascii=False) + "\n" for one in examples))
    return path
