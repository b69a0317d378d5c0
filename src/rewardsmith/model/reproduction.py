"""The torch side of repeating a run: its settings as they were resolved, the files it started from, its weights beside those of the repetition."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from rewardsmith.config import Device, TrainSettings, build
from rewardsmith.errors import SettingsError
from rewardsmith.model.artefact import WEIGHTS
from rewardsmith.model.bundled import BUNDLED
from rewardsmith.model.network import source_folder
from rewardsmith.model.precision import choose_device, choose_precision
from rewardsmith.model.provenance import base_files
from rewardsmith.storage import file_sha256

# Of the [trainer] table: what speaks to other programs.
_NOT_AGAIN = ("report_to", "push_to_hub", "hub_token", "hub_model_id", "hub_strategy", "hub_private_repo", "run_name")


@dataclass(frozen=True)
class WeightDifference:
    """How two checkpoints differ.

    Args:
        bit_equal: whether every tensor is the same, bit for bit.
        tensors: in both.
        differing: of these.
        largest: |difference| of two weights; None where one is not a finite number.
        where: the tensor of the largest one.
        only: tensors that only one of the two holds, or that have another shape or type.
    """

    bit_equal: bool
    tensors: int
    differing: int
    largest: float | None
    where: str | None
    only: list[str]

    def as_dict(self) -> dict[str, Any]:
        """For documents."""
        return asdict(self)


def repeated_settings(
    recorded: Mapping[str, Any],
    manifest: Mapping[str, Any],
    places: Mapping[str, Any],
    *,
    device: Device | None,
    threads: int | None,
) -> tuple[TrainSettings, list[str]]:
    """The settings of a run with its sources in their places, and what was `auto` or left open as it was resolved then; what is changed is said.

    A setting that resolves here as it did then stays as it was set.

    Args:
        recorded: the settings in the manifest.
        manifest: of the run.
        places: values of model, data, dev_data, eval_data and out.
        device: to run on instead; None for that of the run.
        threads: of the CPU instead; None for those of the run.

    Raises:
        SettingsError: if this version does not know a setting.
    """
    trainer = {key: value for key, value in recorded.get("trainer", {}).items() if key not in _NOT_AGAIN}
    then = manifest.get("device", {})
    values: dict[str, Any] = {**recorded, **places, "trainer": trainer}
    notes: list[str] = []
    if device is not None:
        values["device"] = device
    elif then.get("type") and _type(values["device"]) != then["type"]:
        values["device"] = then["type"] if _type(then["type"]) else "auto"
        notes.append(f"device: {_type(values['device'])} (the run: {then['type']})")
    wanted = threads or values.get("threads") or then.get("threads")
    if threads or (wanted and wanted != torch.get_num_threads()):
        values["threads"] = wanted
        notes.append(f"threads: {wanted}")
    precision = (manifest.get("precision") or {}).get("name")
    here = choose_device(values["device"])
    if values["precision"] == "auto" and choose_precision("auto", here, "").name != precision:
        if precision != "fp16" or here.type == "cuda":
            values["precision"] = precision
            notes.append(f"precision: {precision}, which was chosen then")
        else:
            notes.append("precision: fp16 was chosen then, and needs a GPU")
    return build(TrainSettings, values), notes


def _type(device: Device) -> str | None:
    """The type of the device that a setting leads to here; None where there is none."""
    try:
        return choose_device(device).type
    except SettingsError:
        return None


def is_bundled(model: str) -> bool:
    """Whether a name stands for a model that an extra brings."""
    return model in BUNDLED


def base_changes(model: str, manifest: Mapping[str, Any]) -> list[str]:
    """Which files of a base model are not those that the run started from, one line each.

    Args:
        model: a MODEL argument.
        manifest: of the run.
    """
    source = source_folder(model)
    then = (manifest.get("base") or {}).get("files")
    if not then:  # a manifest without hashes of files, or a base model of which no file was at hand
        weights, path = manifest["identity"]["model"], Path(source) / WEIGHTS
        found = file_sha256(path) if path.is_file() else path.parent.name
        return [] if found == weights else [f"{WEIGHTS}: another one ({found[:12]}, the run: {weights[:12]})"]
    now_files = base_files(source)
    lines = []
    for name in dict.fromkeys([*then, *now_files]):
        before, now = then.get(name), now_files.get(name)
        if before != now:
            what = "missing" if now is None else "added" if before is None else "another one"
            lines.append(f"{name}: {what} ({(now or 'none')[:12]}, the run: {(before or 'none')[:12]})")
    return lines


def compare_weights(before: Path, after: Path) -> WeightDifference:
    """Compare two safetensors files tensor by tensor; never are both whole in memory."""
    with safe_open(before, framework="pt") as old, safe_open(after, framework="pt") as new:
        keys = set(old.keys()) & set(new.keys())
        only = sorted(set(old.keys()) ^ set(new.keys()))
        differing, largest, where = 0, 0.0, None
        for key in sorted(keys):
            one, other = old.get_tensor(key), new.get_tensor(key)
            if one.shape != other.shape or one.dtype != other.dtype:
                only.append(key)
            elif not _same_bits(one, other):
                differing += 1
                distance = float((one.double() - other.double()).abs().max())
                # A distance to NaN is NaN, which is neither more nor less than another.
                distance = math.inf if math.isnan(distance) else distance
                if where is None or distance > largest:
                    largest, where = distance, key
    found = largest if math.isfinite(largest) else None
    return WeightDifference(not differing and not only, len(keys), differing, found, where, only)


def _same_bits(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether two tensors hold the same bytes: 0 and -0 differ, and a NaN is itself."""
    return torch.equal(one.reshape(-1).view(torch.uint8), other.reshape(-1).view(torch.uint8))
