"""Low-rank adapters (LoRA, DoRA) through peft: put into a network in place, merged into it, saved as a peft folder with the head, loaded again.

The head never carries an adapter: it is trained in full, in float32, and travels with the adapter under the name that peft gives to fully trained modules.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from rewardsmith.config import LoraSettings
from rewardsmith.errors import HeadError, MissingExtraError, ModelError, SettingsError
from rewardsmith.model.artefact import difference, golden_scores
from rewardsmith.model.layers import LayerStack, linear_layers
from rewardsmith.model.network import Network
from rewardsmith.model.render import Renderer
from rewardsmith.scores import Scores
from rewardsmith.storage import atomic_folder, write_json

ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
# What peft puts before the names of a wrapped model, and its name of the one adapter.
_WRAPPED, _ADAPTER = "base_model.model.", "default"
_MERGE_TOLERANCE = 1e-5


def _peft() -> Any:
    try:
        import peft
    except ImportError as error:
        raise MissingExtraError("LoRA adapters", "peft", "lora") from error
    return peft


def adapted_layers(
    network: Network, settings: LoraSettings, *, stack: LayerStack | None, frozen_layers: int
) -> list[str]:
    """Names of the linear layers that get an adapter: those asked for, above the frozen layers, never the head.

    Raises:
        SettingsError: if a name in `targets` fits no linear layer, or none is left.
    """
    names = [name for name, _ in linear_layers(network)]
    if settings.targets != "all-linear":
        unknown = [t for t in settings.targets if not any(f".{name}".endswith(f".{t}") for name in names)]
        if unknown:
            known = sorted({name.rpartition(".")[2] for name in names})
            raise SettingsError(
                "names of linear layers of the backbone in lora.targets",
                f"{', '.join(unknown)}",
                f'Take some of {", ".join(known)}, or "all-linear"; the head is always trained and cannot be adapted.',
            )
        names = [name for name in names if any(f".{name}".endswith(f".{t}") for t in settings.targets)]
    if stack is not None and frozen_layers:
        names = [name for name in names if stack.depth_of(name) > frozen_layers]
    if not names:
        raise SettingsError("a linear layer to adapt", "none above the frozen layers", "Freeze fewer layers.")
    return names


def add_adapters(network: Network, settings: LoraSettings, names: list[str]) -> None:
    """Put adapters on the named layers, in place. Their first factor is random, drawn from torch's generator; their product starts at 0.

    Everything but the adapters, the head and the other new modules is frozen.

    Raises:
        MissingExtraError: if peft is not installed.
    """
    peft = _peft()
    trained = {n for n, p in network.model.named_parameters() if p.requires_grad and _is_whole(network, n)}
    config = peft.LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        use_dora=settings.dora,
        target_modules=names,
        fan_in_fan_out=_is_transposed(network, names),
    )
    peft.inject_adapter_in_model(config, network.model)
    for name, parameter in network.model.named_parameters():
        parameter.requires_grad = name in trained or "lora_" in name
    check_head(network)


def _is_whole(network: Network, name: str) -> bool:
    """Whether a parameter is of the head or of another new module, which are trained in full beside adapters."""
    return any(name.startswith(f"{module}.") for module in (network.head_name, *network.new_modules))


def _is_transposed(network: Network, names: list[str]) -> bool:
    """Whether the adapted layers are GPT-2's, which store their weight the other way round."""
    return any(type(network.model.get_submodule(name)).__name__ == "Conv1D" for name in names)


def check_head(network: Network) -> None:
    """Refuse a head that is not one plain float32 layer that is trained (trap 18).

    Raises:
        HeadError: naming what is wrong with it.
    """
    weight, modules = network.head_module.weight, [name for name, _ in network.head_module.named_modules() if name]
    if modules or weight.dtype != torch.float32 or not weight.requires_grad:
        raise HeadError(
            "a head that is one float32 layer, trained in full and without an adapter",
            f"{weight.dtype}, trained: {weight.requires_grad}, parts: {modules or 'none'}",
            "This is a fault of rewardsmith; please report it with the model's name.",
        )


def has_adapters(network: Network) -> bool:
    """Whether a network carries adapters that are not merged."""
    return any("lora_" in name for name, _ in network.model.named_parameters())


def _adapted(network: Network) -> Iterator[tuple[str, nn.Module]]:
    for name, module in list(network.model.named_modules()):
        if hasattr(module, "lora_A") and hasattr(module, "get_base_layer"):
            yield name, module


def merge(network: Network, renderer: Renderer) -> float:
    """Add the adapters to the weights that they adapt and take them out; the scores are compared before and after.

    Returns:
        The largest |difference| / max(1, |s|) on the golden inputs.

    Raises:
        ModelError: if it is above 1e-5: then the network is broken, and nothing may be saved from it.
    """
    _, before = golden_scores(network, renderer, one_by_one=True)  # padding has no part in this
    for name, module in _adapted(network):
        module.merge(safe_merge=True)
        parent, _, child = name.rpartition(".")
        setattr(network.model.get_submodule(parent), child, module.get_base_layer())
    del network.model.peft_config
    _, after = golden_scores(network, renderer, one_by_one=True)
    return check_merge(before, after)


def check_merge(before: Scores, after: Scores) -> float:
    """The largest |difference| / max(1, |s|) between the scores with an adapter and those after it was merged.

    Raises:
        ModelError: if it is above 1e-5.
    """
    worst = difference(before, after)
    if not worst <= _MERGE_TOLERANCE:
        raise ModelError(
            f"merged scores within {_MERGE_TOLERANCE:g} x max(1, |s|) of those with the adapter",
            f"{worst:.2e}",
            "Is the adapter of another base? Otherwise this is a fault of peft or of the model class; please report it.",
        )
    return worst


def save_adapters(network: Network, renderer: Renderer, out: Path, *, base: str, contract: dict[str, Any]) -> None:
    """Write a peft folder: the adapters, the head and the other new modules in full, the tokenizer, and how texts are rendered.

    peft and `rewardsmith import` load it. `base` is where they look for the base model: a bundled name or a GGUF file only `import` can resolve, and with a path
    of one machine the base must be named on another.

    Args:
        network: with adapters; left as it is.
        renderer: its text side.
        out: the folder; one that stands there is replaced.
        base: the base model as the user named it.
        contract: goes into rewardsmith.json.
    """
    peft = _peft()
    whole = {n: p.detach() for n, p in network.model.named_parameters() if _is_whole(network, n)}
    tensors = {**peft.get_peft_model_state_dict(network.model), **whole}
    with atomic_folder(out) as folder:
        # On disk the config says what peft needs to build the same thing; in memory the head is not peft's to wrap.
        config = copy.deepcopy(network.model.peft_config[_ADAPTER])
        config.base_model_name_or_path, config.task_type, config.inference_mode = base, "SEQ_CLS", True
        config.modules_to_save = [network.head_name, *network.new_modules]
        config.save_pretrained(str(folder))
        save_file(
            {f"{_WRAPPED}{name}": tensor.cpu().contiguous() for name, tensor in tensors.items()},
            folder / ADAPTER_WEIGHTS,
            metadata={"format": "pt"},
        )
        renderer.tokenizer.save_pretrained(folder)
        write_json(folder / "rewardsmith.json", contract)


def load_adapters(network: Network, folder: Path) -> None:
    """Put the adapters and the head of a peft folder into a network of the base model; the scores are then those of the training.

    Raises:
        HeadError: if the folder holds no head of the network's kind; naming the file.
        ModelError: if anything else is missing or left over.
    """
    peft = _peft()
    config = peft.LoraConfig.from_pretrained(str(folder))
    weights = {name.removeprefix(_WRAPPED): tensor for name, tensor in load_file(folder / ADAPTER_WEIGHTS).items()}
    if f"{network.head_name}.weight" not in weights:
        raise HeadError(
            f"the reward head ({network.head_name}.weight) in {folder.name}/{ADAPTER_WEIGHTS}",
            "an adapter without it",
            "It cannot be recovered: train again with the head among modules_to_save.",
        )
    config.modules_to_save, config.task_type, config.inference_mode = None, None, False
    whole = {name: tensor for name, tensor in weights.items() if _is_whole(network, name)}
    adapters = {name: tensor for name, tensor in weights.items() if name not in whole}
    missing = [n for n, _ in network.model.named_parameters() if _is_whole(network, n) and n not in whole]
    try:
        peft.inject_adapter_in_model(config, network.model)
        left_over = network.model.load_state_dict(whole, strict=False).unexpected_keys
        result = peft.set_peft_model_state_dict(network.model, adapters)
    except (RuntimeError, ValueError) as error:  # no such layers, or layers of another size
        raise _of_another_base(str(error)[:200]) from error
    missing += [name for name in result.missing_keys if "lora_" in name]
    left_over = [*left_over, *result.unexpected_keys]
    if missing or left_over:
        raise _of_another_base(f"missing {missing[:3]}, left over {left_over[:3]}")


def _of_another_base(came: str) -> ModelError:
    return ModelError(
        f"exactly the weights that {ADAPTER_CONFIG} declares, for this model",
        came,
        "The folder is broken, or the adapter belongs to another base model.",
    )
