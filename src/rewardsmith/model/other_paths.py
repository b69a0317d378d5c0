"""Other ways of getting a score out of a model folder, as their users go them: transformers' pipeline, CrossEncoder, an exported graph. Nothing is corrected on the way."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from transformers import AutoModelForSequenceClassification, pipeline

from rewardsmith.config import ExportSettings, ScoringSettings
from rewardsmith.data.schema import Pair
from rewardsmith.errors import HeadError, MissingExtraError, ModelError, SettingsError
from rewardsmith.model.export import export_model
from rewardsmith.model.modeling_rewardsmith import RewardsmithConfig, RewardsmithForSequenceClassification
from rewardsmith.model.network import load_tokenizer, quiet_loading, read_config, source_folder
from rewardsmith.model.render import Renderer
from rewardsmith.model.reward_model import RewardModel
from rewardsmith.scores import Scores, checked

_BATCH = 8


class OtherPath(Protocol):
    """A way to a score.

    Args:
        name: for people and documents.
        precision: that it computes in.
        reads_alike: whether it cuts long texts and reads strings of special tokens as the model itself does; else neither is asked of it.
    """

    name: str
    precision: str
    reads_alike: bool

    def score(self, pairs: Sequence[Pair]) -> Scores:
        """Its raw scores, float32 (n,).

        Raises:
            ScoreError: if one is not finite.
            RemoteError: if a server does not give them.
        """
        ...


class PipelinePath:
    """transformers' own pipeline over a folder, padded batches and all.

    Args:
        folder: of a sequence classifier.
        renderer: makes the texts; the folder's own tokenizer reads them.

    Raises:
        HeadError: if the folder has no head, which transformers would draw at random.
        ModelError: if it does not load.
    """

    precision, reads_alike = "float32", False

    def __init__(self, folder: str, renderer: Renderer) -> None:
        """Load the plain way; a class of ours is taken from this package, never from the folder."""
        self.name, self._renderer = "transformers", renderer
        own = read_config(folder).get("model_type") == RewardsmithConfig.model_type
        loader: Any = RewardsmithForSequenceClassification if own else AutoModelForSequenceClassification
        try:
            with quiet_loading():
                model, info = loader.from_pretrained(folder, output_loading_info=True, use_safetensors=True)
                tokenizer = load_tokenizer(folder)
        except (OSError, ValueError, RuntimeError) as error:
            raise ModelError(
                "a folder that transformers loads", str(error).splitlines()[0], "Export it again."
            ) from error
        if info["missing_keys"]:
            missing = ", ".join(sorted(info["missing_keys"]))
            raise HeadError(
                "all weights", f"none for {missing}, which transformers draws at random", "Export it again."
            )
        with quiet_loading():
            self._pipeline = pipeline("text-classification", model=model.eval(), tokenizer=tokenizer, device="cpu")

    def score(self, pairs: Sequence[Pair]) -> Scores:
        """See `OtherPath`."""
        texts = [self._renderer.texts(prompt, answer) for prompt, answer in pairs]
        inputs: list[Any] = [{"text": one[0], "text_pair": one[1]} if len(one) == 2 else one[0] for one in texts]
        # A chat template has written the special tokens already.
        special = self._renderer.spec.encoding != "chat"
        with torch.inference_mode():
            found = self._pipeline(inputs, batch_size=_BATCH, add_special_tokens=special)
        return checked([one["score"] for one in found], len(pairs))


class CrossEncoderPath:
    """sentence-transformers' CrossEncoder over a folder of two segments.

    Raises:
        SettingsError: if the model reads one text, or is of a class of ours.
        MissingExtraError: if the package is not installed.
    """

    precision, reads_alike = "float32", False

    def __init__(self, folder: str, renderer: Renderer) -> None:
        """Load the plain way."""
        self.name, self._renderer = "crossencoder", renderer
        if renderer.spec.encoding != "pair":
            raise SettingsError(
                'a model of encoding = "pair" for crossencoder, which reads a prompt and an answer as two segments',
                f"encoding = {renderer.spec.encoding!r}",
                "Compare with transformers.",
            )
        if read_config(folder).get("model_type") == RewardsmithConfig.model_type:
            raise SettingsError(
                "a class of transformers for crossencoder",
                "a class of rewardsmith, whose code in the folder is never run here",
                'Train with pooling = "pooler" or "native", or compare with transformers.',
            )
        try:
            from sentence_transformers import CrossEncoder
        except ImportError as error:
            raise MissingExtraError("CrossEncoder", "sentence-transformers", "bench") from error
        with quiet_loading():
            self._model = CrossEncoder(folder, device="cpu")

    def score(self, pairs: Sequence[Pair]) -> Scores:
        """See `OtherPath`."""
        texts = [tuple(self._renderer.texts(prompt, answer)) for prompt, answer in pairs]
        found = self._model.predict(texts, batch_size=_BATCH, show_progress_bar=False)
        return checked([float(score) for score in found], len(pairs))


class FolderPath:
    """Another folder of ours, an exported one most of all, through our own renderer."""

    reads_alike = True

    def __init__(self, name: str, folder: str) -> None:
        """Load it."""
        self.name = name
        self._model = RewardModel.load(folder, ScoringSettings(device="cpu"))
        self.precision = self._model.precision

    def score(self, pairs: Sequence[Pair]) -> Scores:
        """See `OtherPath`."""
        return self._model.score(pairs)


def exported_path(backend: str, source: str) -> FolderPath:
    """A fresh float32 export of a model folder, gone from the disk once it is loaded.

    Raises:
        ModelError: if the export is refused: then it does not score like the model.
        MissingExtraError: if the program is not installed.
    """
    with tempfile.TemporaryDirectory() as folder:
        out = str(Path(folder) / backend)
        done = export_model(ExportSettings(model=source, to=backend, out=out))  # type: ignore[arg-type]
        if not done.ok:
            failed = "; ".join(f"{check.name}: {check.detail}" for check in done.checks if not check.ok)
            raise ModelError(f"an export to {backend} that scores like the model", failed, "Report it.")
        return FolderPath(backend, out)


def plain_folder(source: str) -> str:
    """A folder that transformers can open.

    Raises:
        SettingsError: of an exported graph.
    """
    folder = source_folder(source)
    if Path(folder).is_dir() and not (Path(folder) / "config.json").is_file():
        raise SettingsError("a model folder", f"{Path(folder).name}, which holds a graph", "Name its source.")
    return folder
