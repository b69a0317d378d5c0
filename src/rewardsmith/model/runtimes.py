"""Programs that run an exported graph on a processor: ONNX Runtime and OpenVINO, each behind the extra of its name."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from rewardsmith.errors import MissingExtraError, ModelError, SettingsError

GRAPHS = {"onnx": "model.onnx", "openvino": "model.xml"}
"""The file that each program opens."""
PACKAGES = {"onnx": ("onnx", "onnxruntime"), "openvino": ("openvino",)}
"""What each extra installs."""
Ids = NDArray[np.int64]


class Runtime(Protocol):
    """A graph that is open."""

    def run(self, inputs: Sequence[Ids]) -> NDArray[np.float32]:
        """Ids, mask and, where the graph takes them, token types, each (N, T) -> scores (N,)."""
        ...


def package(name: str, extra: str) -> Any:
    """A package of an extra.

    Raises:
        MissingExtraError: with the line that installs it.
    """
    try:
        return import_module(name)
    except ImportError as error:
        raise MissingExtraError(f"models in {extra}", name.partition(".")[0], extra) from error


def open_graph(backend: str, folder: Path, precision: str) -> Runtime:
    """The graph of an exported folder, ready to run on as many threads as torch was told to use.

    Raises:
        MissingExtraError: if the program is not installed.
        SettingsError: if this processor cannot do what the precision needs.
        ModelError: if the program cannot read the graph, or is none that is known here.
    """
    if backend == "onnx":
        return _OnnxRuntime(folder / GRAPHS[backend])
    if backend == "openvino":
        return _OpenVino(folder / GRAPHS[backend], precision)
    raise ModelError(f"a model for {' or '.join(GRAPHS)}", f"one for {backend!r}", "Install a newer rewardsmith.")


def unreadable(path: Path, error: Exception) -> ModelError:
    """The typed error for a graph that its program refuses."""
    reason = (str(error).splitlines() or [type(error).__name__])[0]
    return ModelError(f"a readable {path.name}", reason[:300], "Export the model again, with the versions of today.")


class _OnnxRuntime:
    def __init__(self, path: Path) -> None:
        runtime = package("onnxruntime", "onnx")
        options = runtime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 3
        try:
            self._session = runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # the package's errors share no base of their own
            raise unreadable(path, error) from error
        self._names = [one.name for one in self._session.get_inputs()]

    def run(self, inputs: Sequence[Ids]) -> NDArray[np.float32]:
        (scores,) = self._session.run(None, dict(zip(self._names, inputs, strict=True)))
        return np.asarray(scores, dtype=np.float32)


class _OpenVino:
    def __init__(self, path: Path, precision: str) -> None:
        core = package("openvino", "openvino").Core()
        if precision == "bf16":
            require_bf16(core)
        settings = {
            # Never left to the program, which takes bf16 by itself where the processor has it.
            "INFERENCE_PRECISION_HINT": "bf16" if precision == "bf16" else "f32",
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
            # Compiled graphs stay in memory: no cache folder beside the user's model.
            "CACHE_DIR": "",
        }
        try:
            self._compiled = core.compile_model(str(path), "CPU", settings)
        except RuntimeError as error:
            raise unreadable(path, error) from error

    def run(self, inputs: Sequence[Ids]) -> NDArray[np.float32]:
        return np.array(self._compiled(list(inputs))[0], dtype=np.float32)


def require_bf16(core: Any) -> None:
    """Refuse bf16 on a processor that would compute it as something else.

    Raises:
        SettingsError: naming what is there.
    """
    there = core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    if "BF16" not in there:
        raise SettingsError(
            "a processor with bf16 arithmetic", f"one with {', '.join(there)}", "Export with --precision float32."
        )
