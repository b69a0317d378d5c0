"""Where and in which number format a model runs; every automatic choice returns its reason."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch

from rewardsmith.config import Device, Precision
from rewardsmith.errors import SettingsError

# Families whose fp16 forward overflows (microsoft/DeBERTa issue 77).
FP16_UNSAFE = frozenset({"deberta", "deberta-v2"})
Format = Literal["float32", "bf16", "fp16"]


@dataclass(frozen=True)
class PrecisionChoice:
    """A number format and why it was taken."""

    name: Format
    reason: str


def prepare_process(*, threads: int | None, seed: int) -> None:
    """Set what is global in torch: CPU threads, if asked for, and the seed."""
    if threads is not None:
        torch.set_num_threads(threads)
    torch.manual_seed(seed)


def choose_device(wanted: Device) -> torch.device:
    """The device to run on.

    Raises:
        SettingsError: if the device asked for is not there.
    """
    there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if wanted == "auto":
        return torch.device(next(name for name in ("cuda", "mps", "cpu") if there[name]))
    if not there[wanted]:
        raise SettingsError(f"a {wanted} device", "a machine without one", "Leave --device at auto.")
    return torch.device(wanted)


def _cpu_has_bf16() -> str | None:
    """The instruction set that multiplies bf16 on this CPU, or None."""
    if torch.cpu._is_amx_tile_supported():
        return "AMX"
    if torch.cpu._is_avx512_bf16_supported():
        return "AVX512-BF16"
    return None


def choose_precision(wanted: Precision, device: torch.device, model_type: str) -> PrecisionChoice:
    """The number format of the training steps.

    Raises:
        SettingsError: if the format would break on this model or device.
    """
    if wanted == "auto":
        if device.type == "cuda":
            if torch.cuda.is_bf16_supported():
                return PrecisionChoice("bf16", "auto: this GPU has bf16")
            return PrecisionChoice("float32", "auto: this GPU has no bf16")
        if device.type == "cpu":
            unit = _cpu_has_bf16()
            if unit:
                return PrecisionChoice("bf16", f"auto: this processor has {unit}")
            return PrecisionChoice("float32", "auto: this processor has no bf16 arithmetic")
        return PrecisionChoice("float32", f"auto: the default on {device.type}")
    if wanted == "fp16":
        if model_type in FP16_UNSAFE:
            raise SettingsError(
                f"a precision that {model_type} survives",
                "fp16, in which its attention overflows to NaN",
                'Set precision = "bf16" or "float32".',
            )
        if device.type != "cuda":
            raise SettingsError("a CUDA GPU for fp16", device.type, 'Set precision = "bf16" or "float32".')
    return PrecisionChoice(wanted, "as set")


@contextlib.contextmanager
def running(precision: Format, device: torch.device) -> Iterator[None]:
    """Run without gradients and with dropout's generator untouched, in a number format."""
    dtype = {"float32": None, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    with torch.inference_mode(), torch.autocast(device.type, dtype=dtype, enabled=dtype is not None):
        yield
