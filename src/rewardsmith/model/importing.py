"""Reward models of other tools, made into model folders: recognised by their files, put together strictly, saved with a contract.

Known are sequence classifiers with one label (TRL and plain transformers), OpenRLHF, LLaMA-Factory (whole and LoRA) and LoRA folders of peft. What is read is
config, names, shapes and safetensors; no code of a folder is run. A tensor that has no place in the result is an error, except the output layer of the
language model, which is left out and listed. Every kind is scored at the last real token, because that is where its tool reads:

- OpenRLHF takes its head's value at the last position of the attention mask.
- LLaMA-Factory takes the value at `attention_mask.sum() - 1` of right-padded texts, in training, PPO and its scoring server alike.
- DeepSpeed-Chat trains the value of *every* token after the two answers part, so the last one alone is another model: refused.
"""

from __future__ import annotations

import json
import pickle
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from datetime import date
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers import (
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from rewardsmith.config import DEFAULT_TEMPLATE
from rewardsmith.data.golden import INPUTS
from rewardsmith.errors import ContractError, HeadError, MissingExtraError, ModelError, OutputError, SettingsError
from rewardsmith.manifest import package_versions, without_paths
from rewardsmith.model.adapters import ADAPTER_CONFIG, ADAPTER_WEIGHTS, check_merge, load_adapters, merge
from rewardsmith.model.artefact import CONTRACT, WEIGHTS, Contract, golden_scores, save
from rewardsmith.model.clock import pinned_date
from rewardsmith.model.modeling_rewardsmith import RewardsmithConfig, RewardsmithForSequenceClassification, ScoreHead
from rewardsmith.model.network import (
    Network,
    _from_pretrained,
    _require_all_keys,
    build_network,
    check_vocabulary,
    load_network,
    load_tokenizer,
    position_capacity,
    read_config,
    require_reward_model,
    source_folder,
)
from rewardsmith.model.padding import give_pad_token
from rewardsmith.model.pooling import choose_pooling, is_decoder
from rewardsmith.model.render import Renderer, RenderSpec, resolve_encoding
from rewardsmith.storage import refuse_inside

Kind = Literal["sequence_classifier", "openrlhf", "llama_factory", "llama_factory_lora", "lora"]

_INDEX, _PICKLED = "model.safetensors.index.json", "pytorch_model.bin"
_VALUE_HEAD, _PICKLED_VALUE_HEAD = "value_head.safetensors", "value_head.bin"
_VALUE_WEIGHT, _VALUE_BIAS = "v_head.summary.weight", "v_head.summary.bias"
# What peft puts before the names of a wrapped model, and inside the names of fully trained modules.
_WRAPPED, _SAVED = "base_model.model.", ".modules_to_save.default"
# Where the language models of transformers keep their output layer; a score never reads it.
_OUTPUT_LAYERS = ("lm_head", "embed_out", "output_layer")
# What OpenRLHF writes into config.json, and code that a folder brings: neither belongs to the model that comes out.
_FOREIGN_KEYS = ("value_head_prefix", "mean", "std", "normalize_reward", "auto_map")
_DOWNLOADED = ["*.json", "*.safetensors", "*.jinja", "*.model", "*.txt"]
_DEFAULT_MAX_LENGTH = 512

Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class Recognised:
    """What a folder is.

    Args:
        kind: which reading fits it.
        reason: by what it was recognised.
        found: what was found: the declared class, the head's tensor and its file, an adapter's base.
    """

    kind: Kind
    reason: str
    found: dict[str, str]


@dataclass(frozen=True)
class Imported:
    """What became of a source.

    Args:
        contract: of the folder that was written.
        recognised: what the source was.
        notes: choices and cautions, as sentences.
        left_out: tensors of the source that no score reads.
        head_bias: the constant that the source's head adds to every score; None where its head has none, or 0.
        bias_left_out: whether that constant was left out: then every score is lower by it, and every margin as it was.
        source_normaliser: mean and std that the source's config.json states; they are not applied, for scores stay raw.
        merge_difference: the largest |difference| / max(1, |s|) between the scores with the adapter and merged, where there was one.
    """

    contract: Contract
    recognised: Recognised
    notes: tuple[str, ...]
    left_out: tuple[str, ...]
    head_bias: float | None
    bias_left_out: bool
    source_normaliser: dict[str, float] | None
    merge_difference: float | None

    def as_dict(self) -> dict[str, Any]:
        """The document of `import --json`, less its verb."""
        return {**asdict(self), "contract": self.contract.as_dict()}


@dataclass(frozen=True)
class _Head:
    """A head as a file holds it, in float32: weight (1, H), bias (1,) or None."""

    weight: Tensor
    bias: Tensor | None

    @property
    def constant(self) -> float | None:
        return None if self.bias is None or not self.bias.item() else float(self.bias.item())


@dataclass
class _Built:
    """A network with what has to be said of it; `spec` where the source states how it renders texts."""

    network: Network
    tokenizer_from: Path
    notes: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    head_bias: float | None = None
    bias_left_out: bool = False
    merge_difference: float | None = None
    spec: RenderSpec | None = None


def import_folder(
    source: str,
    out: Path,
    *,
    base: str | None = None,
    max_length: int | None = None,
    drop_bias: bool = False,
    overwrite: bool = False,
) -> Imported:
    """Make a model folder, with contract and golden scores, of another tool's reward model; its scores are the source's.

    Args:
        source: a folder or a Hugging Face name.
        out: the folder to make.
        base: base model of an adapter, where its own config names none that can be reached.
        max_length: tokens of one input; 512 by default, less where positions are absolute and fewer.
        drop_bias: leave out the constant of a head for which transformers' own class has no place, so that the folder loads there.
        overwrite: replace an earlier model folder.

    Raises:
        HeadError: if the source has no head with one score, or more than one.
        ModelError: if anything else is missing, left over or not known.
        MissingExtraError: if an adapter is to be merged without peft.
        SettingsError: if `max_length` or `base` do not fit the source.
        OutputError: if `out` exists and may not be replaced.
    """
    refuse_inside(out, source, *([base] if base else []))
    if out.exists() and not (overwrite and (out / CONTRACT).is_file()):
        raise OutputError("a new folder for --out", f"{out}, which exists", "Choose another --out.")
    folder = _local(source)
    recognised = recognise(folder)
    if base is not None and recognised.kind not in ("lora", "llama_factory_lora"):
        raise SettingsError("an adapter, for --base", f"a whole model ({recognised.reason})", "Leave --base out.")
    normaliser = _source_normaliser(folder)
    built = _BUILDERS[recognised.kind](folder, recognised, base, drop_bias)
    renderer, notes = _text_side(built, recognised.kind, max_length)
    notes += built.notes
    if normaliser:
        notes.append(
            f"config.json states mean {normaliser['mean']:g} and std {normaliser['std']:g} of its scores, but not on how many or which: "
            "not kept as a normaliser, and not applied"
        )
    facts: dict[str, Any] = {
        "notes": tuple(notes),
        "left_out": tuple(built.left_out),
        "head_bias": built.head_bias,
        "bias_left_out": built.bias_left_out,
        "source_normaliser": normaliser,
        "merge_difference": built.merge_difference,
    }
    manifest = {"verb": "import", "source": Path(source).name, "versions": package_versions()}
    manifest |= without_paths({"recognised": asdict(recognised), **facts})
    built.network.model.eval()
    contract = save(built.network, renderer, out, training_dtype="unknown", manifest=manifest)
    return Imported(contract=contract, recognised=recognised, **facts)


def recognise(folder: Path) -> Recognised:
    """Tell what a folder is from its config and the names and shapes of its tensors; nothing is built.

    Raises:
        HeadError: if it has no head with one score, more than one, or one that reads other tokens than the last.
        ContractError: if it is a model folder already.
        ModelError: if its weights cannot be read.
    """
    if (folder / ADAPTER_CONFIG).is_file():
        return _recognise_adapter(folder)
    if (folder / CONTRACT).is_file():
        raise ContractError(
            "a reward model of another tool", f"{folder.name!r}, which has a {CONTRACT}", "Use it as it is."
        )
    config = read_config(str(folder))
    architecture = (config.get("architectures") or ["no class"])[0]
    shapes = _shapes(folder, architecture)
    _refuse_token_scores(shapes, architecture, folder)
    head_file, names = _weights_file(folder), _head_names(shapes, folder)
    if _has_value_head(folder):
        _require_one_head([*names, _VALUE_WEIGHT], architecture, folder)
        return Recognised(
            "llama_factory",
            f"LLaMA-Factory: a {_VALUE_HEAD} beside {architecture}",
            {"architecture": architecture, "head": _VALUE_WEIGHT, "file": _VALUE_HEAD},
        )
    if architecture.endswith("ForSequenceClassification"):
        require_reward_model(config, folder.name)
        return Recognised(
            "sequence_classifier",
            f"a sequence classifier with one label: {architecture}",
            {"architecture": architecture, "file": head_file},
        )
    prefix = config.get("value_head_prefix")
    if prefix is not None and f"{prefix}.weight" not in names:
        raise _missing_head(head_file, f"{prefix}.weight")
    if not names:
        require_reward_model(config, folder.name)
    _require_one_head(names, architecture, folder)
    named = "which config.json names" if prefix is not None else "the only one of one row outside the backbone"
    return Recognised(
        "openrlhf",
        f"OpenRLHF's layout: a backbone and the head {names[0]!r}, {named}",
        {"architecture": architecture, "head": names[0], "file": head_file},
    )


def _recognise_adapter(folder: Path) -> Recognised:
    config = _read_json(folder / ADAPTER_CONFIG)
    kind = str(config.get("peft_type"))
    if kind != "LORA":
        raise ModelError("a LoRA adapter", f"one of the type {kind}", "Merge it with peft, and import the result.")
    if not (folder / ADAPTER_WEIGHTS).is_file():
        raise ModelError(f"{ADAPTER_WEIGHTS} in {folder.name!r}", "none", "Save the adapter again, as safetensors.")
    shapes = _read_shapes(folder / ADAPTER_WEIGHTS)
    _require_whole(shapes, folder)
    names = [name for name, shape in shapes.items() if _is_head(name, shape)]
    base = Path(str(config.get("base_model_name_or_path"))).name
    if _has_value_head(folder):
        _require_one_head([*names, _VALUE_WEIGHT], "a LoRA adapter", folder)
        return Recognised(
            "llama_factory_lora",
            f"LLaMA-Factory: a LoRA adapter with a {_VALUE_HEAD}",
            {"base": base, "head": _VALUE_WEIGHT, "file": _VALUE_HEAD},
        )
    # peft trains the head of every sequence classifier in full: without its tensor it is lost, whatever the base holds.
    saved = {str(name).rpartition(".")[2] for name in config.get("modules_to_save") or []}
    if not names and (config.get("task_type") == "SEQ_CLS" or saved & {"score", "classifier"}):
        raise _missing_head(ADAPTER_WEIGHTS, "score.weight")
    if names:
        _require_one_head(names, "a LoRA adapter", folder)
    where = f"the head {_plain(names[0])!r}" if names else "the head of its base"
    found = {"base": base, "file": ADAPTER_WEIGHTS} | ({"head": names[0]} if names else {})
    return Recognised("lora", f"a LoRA adapter of peft with {where}", found)


def _missing_head(file: str, name: str) -> HeadError:
    return HeadError(
        f"{name!r}, of the reward head, in {file}",
        "weights without it",
        f"Reward head missing in {file}; it cannot be recovered: save the model again from the run that trained it.",
    )


def _require_one_head(names: list[str], architecture: str, folder: Path) -> None:
    if len(names) != 1:
        raise HeadError(
            "one tensor that can be the reward head",
            f"{len(names)} in {folder.name!r} ({architecture}): {', '.join(names)}",
            "Save the model with the head that gives the score, and no other.",
        )


def _refuse_token_scores(shapes: Shapes, architecture: str, folder: Path) -> None:
    """Checkpoints of the same look whose head was trained at other tokens than the last."""
    if any(name.startswith("rwtransformer.") for name in shapes):
        raise HeadError(
            "a head that was trained at the last token",
            f"a reward model of DeepSpeed-Chat in {folder.name!r} (rwtransformer.*)",
            "Its head scores every token after the two answers part, so that its score at the last one is not what was trained. "
            "Train a head on its backbone: rewardsmith train.",
        )
    if architecture == "CriticModel" or architecture.endswith("ForTokenClassification"):
        raise HeadError(
            "a head that scores whole answers",
            f"{architecture} in {folder.name!r}, which scores every token",
            "Import the reward model that belongs to it.",
        )


def _is_head(name: str, shape: tuple[int, ...]) -> bool:
    """Whether a tensor can be the weight of a head: (1, H), and no factor of an adapter of rank 1."""
    return len(shape) == 2 and shape[0] == 1 and name.endswith(".weight") and "lora_" not in name


def _head_names(shapes: Shapes, folder: Path) -> list[str]:
    """Tensors outside the backbone that can be the weight of a head."""
    inner = f"{_backbone_class(_config(folder)).base_model_prefix}."
    return sorted(name for name, shape in shapes.items() if _is_head(name, shape) and not name.startswith(inner))


def _has_value_head(folder: Path) -> bool:
    """Whether LLaMA-Factory's head lies in a folder, in a file that is read.

    Raises:
        HeadError: if the file holds something else.
        ModelError: if it is pickled.
    """
    if not (folder / _VALUE_HEAD).is_file():
        if (folder / _PICKLED_VALUE_HEAD).is_file():
            raise _pickled(_PICKLED_VALUE_HEAD, folder)
        return False
    shapes = _read_shapes(folder / _VALUE_HEAD)
    if _VALUE_WEIGHT not in shapes:
        raise _missing_head(_VALUE_HEAD, _VALUE_WEIGHT)
    if set(shapes) - {_VALUE_WEIGHT, _VALUE_BIAS} or shapes.get(_VALUE_BIAS, (1,)) != (1,):
        raise HeadError(
            f"{_VALUE_WEIGHT} of one row and {_VALUE_BIAS} of one number in {_VALUE_HEAD}",
            f"{shapes}",
            "Save the model again.",
        )
    _require_whole(shapes, folder)
    return True


def _shapes(folder: Path, architecture: str) -> Shapes:
    """Name and shape of every tensor of a whole model, in one file or in shards.

    Raises:
        ModelError: if the weights are no safetensors, cannot be read, or were never consolidated.
    """
    shapes: Shapes = {}
    if (folder / _INDEX).is_file():
        for file in sorted(set(_read_json(folder / _INDEX).get("weight_map", {}).values())):
            shapes |= _read_shapes(folder / file)
    elif (folder / WEIGHTS).is_file():
        shapes = _read_shapes(folder / WEIGHTS)
    else:
        _refuse_pickled(folder, architecture)
    _require_whole(shapes, folder)
    return shapes


def _read_shapes(file: Path) -> Shapes:
    try:
        with safe_open(file, framework="pt") as weights:
            return {name: tuple(weights.get_slice(name).get_shape()) for name in weights.keys()}
    except (OSError, SafetensorError) as error:
        raise ModelError(f"readable weights in {file.name}", str(error), "Fetch or save the model again.") from error


def _refuse_pickled(folder: Path, architecture: str) -> None:
    """Say why weights that are no safetensors are not read; of those that are never of use, say so at once."""
    file = folder / _PICKLED
    if not file.is_file():
        raise ModelError(f"{WEIGHTS} or {_INDEX} in {folder.name!r}", "neither", "Fetch or save the model again.")
    try:
        names = torch.load(file, map_location="meta", weights_only=True)
    except (OSError, RuntimeError, pickle.UnpicklingError) as error:
        reason = (str(error).splitlines() or [""])[0][:200]
        raise ModelError(f"readable weights in {_PICKLED}", reason, "Save the model as safetensors.") from error
    _refuse_token_scores({str(name): () for name in names}, architecture, folder)
    raise _pickled(_PICKLED, folder)


def _pickled(file: str, folder: Path) -> ModelError:
    return ModelError(
        "a reward model whose weights are safetensors",
        f"{file} in {folder.name!r}",
        "Load it with the tool that made it and save it as safetensors.",
    )


def _require_whole(shapes: Shapes, folder: Path) -> None:
    if empty := sorted(name for name, shape in shapes.items() if 0 in shape):
        raise ModelError(
            f"whole tensors in {folder.name!r}",
            f"{len(empty)} of shape [0], as ZeRO-3 leaves them: {', '.join(empty[:3])}",
            "Consolidate the sharded checkpoint first (DeepSpeed's zero_to_fp32.py), and import the result.",
        )


def _weights_file(folder: Path) -> str:
    return _INDEX if (folder / _INDEX).is_file() else WEIGHTS


def _read_json(file: Path) -> dict[str, Any]:
    try:
        document = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"a readable {file.name}", str(error), "Fetch or save the model again.") from error
    if not isinstance(document, dict):
        raise ModelError(f"an object in {file.name}", type(document).__name__, "Fetch or save the model again.")
    return document


def _read_tensor(folder: Path, name: str) -> Tensor:
    file = folder / WEIGHTS
    if (folder / _INDEX).is_file():
        file = folder / _read_json(folder / _INDEX)["weight_map"][name]
    return _read_tensors(file, [name])[name]


def _read_tensors(file: Path, names: list[str]) -> dict[str, Tensor]:
    with safe_open(file, framework="pt") as weights:
        return {name: weights.get_tensor(name).float() for name in names}


def _source_normaliser(folder: Path) -> dict[str, float] | None:
    """Mean and std in OpenRLHF's config.json: of its raw scores on its evaluation data, whose size and hash it does not keep."""
    if not (folder / "config.json").is_file():
        return None
    config = _read_json(folder / "config.json")
    if not all(isinstance(config.get(name), int | float) for name in ("mean", "std")):
        return None
    return {name: float(config[name]) for name in ("mean", "std")}


def _local(source: str, *, revision: str | None = None) -> Path:
    """The folder of a source; a Hugging Face name is fetched without anything that holds code."""
    if (Path(source) / ADAPTER_CONFIG).is_file():  # an adapter has no config.json
        return Path(source)
    found = source_folder(source)
    if Path(found).is_dir():
        return Path(found)
    from huggingface_hub import snapshot_download  # loaded here: folders need no hub

    try:
        return Path(str(snapshot_download(found, revision=revision, allow_patterns=_DOWNLOADED)))
    except (OSError, ValueError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise ModelError(
            f"the model {source!r}", f"none that can be read ({reason})", "Give a folder or a reachable name."
        ) from error


def _config(folder: Path) -> PretrainedConfig:
    try:
        return AutoConfig.from_pretrained(str(folder), trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise ModelError(
            f"a model in {folder.name!r} that transformers has a class for", reason, "Its own code is never run."
        ) from error


def _backbone_class(config: PretrainedConfig) -> Any:
    try:
        found = AutoModel._model_mapping[type(config)]
    except KeyError as error:
        raise ModelError("a model with a backbone", config.model_type, "Choose another model.") from error
    return found[0] if isinstance(found, tuple) else found


def _from_sequence_classifier(folder: Path, recognised: Recognised, base: str | None, drop_bias: bool) -> _Built:
    return _Built(load_network(str(folder)), folder)


def _from_openrlhf(folder: Path, recognised: Recognised, base: str | None, drop_bias: bool) -> _Built:
    """A backbone and one linear layer of any name, in one checkpoint."""
    weight = recognised.found["head"]
    bias = f"{weight.removesuffix('.weight')}.bias"
    shapes = _shapes(folder, recognised.found["architecture"])
    names = [weight, *([bias] if shapes.get(bias) == (1,) else [])]
    tensors = {name: _read_tensor(folder, name) for name in names}
    backbone, left_out = _backbone(folder, heads=names)
    built = _put_together(backbone, _Head(tensors[weight], tensors.get(bias)), folder, drop_bias=drop_bias)
    built.left_out = left_out
    return built


def _from_llama_factory(folder: Path, recognised: Recognised, base: str | None, drop_bias: bool) -> _Built:
    """A language model with a head in a file of its own."""
    backbone, left_out = _backbone(folder, heads=[])
    built = _put_together(backbone, _value_head(folder), folder, drop_bias=drop_bias)
    built.left_out = left_out
    return built


def _value_head(folder: Path) -> _Head:
    tensors = _read_tensors(folder / _VALUE_HEAD, list(_read_shapes(folder / _VALUE_HEAD)))
    return _Head(tensors[_VALUE_WEIGHT], tensors.get(_VALUE_BIAS))


def _backbone(folder: Path, *, heads: list[str]) -> tuple[PreTrainedModel, list[str]]:
    """The backbone of a checkpoint, every weight of it, and the names of the output layer that was left out."""
    backbone, info = _from_pretrained(AutoModel, str(folder), use_safetensors=True)
    left = set(info["unexpected_keys"]) - set(heads)
    output = {name for name in left if name.partition(".")[0] in _OUTPUT_LAYERS}
    _require_all_keys({**info, "unexpected_keys": left - output}, str(folder), allowed=())
    return backbone, sorted(output)


def _put_together(backbone: PreTrainedModel, head: _Head, folder: Path, *, drop_bias: bool) -> _Built:
    """A decoder and a head as transformers' own class where that can say it, else as ours.

    The heads of transformers' decoders have no bias. LLaMA-Factory's have one, which Bradley-Terry never moves from its random start: it is in every score
    and in no margin. Scores that equal the source's need our class; without it they are lower by that constant, and load everywhere.
    """
    config = backbone.config
    if not is_decoder(config):
        raise HeadError("a decoder under the head", config.model_type, "Save the model as a sequence classifier.")
    for name in _FOREIGN_KEYS:
        if hasattr(config, name):
            delattr(config, name)
    choice = choose_pooling("last", config)
    left_out = choice.native and drop_bias and head.constant is not None
    notes = []
    if choice.native and (head.constant is None or left_out):
        network = _native_network(backbone, head, choice.reason)
    else:
        network = _own_network(backbone, head)
        if choice.native:
            reason = f"its head adds {head.constant:+g} to every score, for which transformers' own has no place; --drop-bias leaves it out"
        else:
            reason = f"transformers has none for {config.model_type}"
        notes.append(f"saved as a class of rewardsmith: {reason}")
    if left_out:
        notes.append(
            f"the head's constant {head.constant:+g} was left out: every score is lower by it, every margin as it was"
        )
    return _Built(network, folder, notes=notes, head_bias=head.constant, bias_left_out=left_out)


def _native_network(backbone: PreTrainedModel, head: _Head, reason: str) -> Network:
    config = backbone.config
    config.num_labels = 1
    model_class = MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING[type(config)]
    model = _joined(model_class, config, backbone, _score_layer(head, config, bias=False))
    return Network(model, "score", "last", True, "loaded", reason)


def _own_network(backbone: PreTrainedModel, head: _Head) -> Network:
    config = RewardsmithConfig(
        backbone=backbone.config.to_dict(), pooling="last", num_labels=1, pad_token_id=backbone.config.pad_token_id
    )
    score = _score_layer(head, backbone.config, bias=True)
    model = _joined(RewardsmithForSequenceClassification, config, backbone, score)
    return Network(model, "score", "last", False, "loaded", "the last real token")


def _score_layer(head: _Head, config: PretrainedConfig, *, bias: bool) -> ScoreHead:
    if head.weight.shape != (1, config.hidden_size):
        raise HeadError(
            f"a head of shape [1, {config.hidden_size}]", f"{list(head.weight.shape)}", "Save the model again."
        )
    layer = ScoreHead(config.hidden_size, 1, bias=bias)
    constant = {"bias": torch.zeros(1) if head.bias is None else head.bias} if bias else {}
    layer.load_state_dict({"weight": head.weight, **constant})
    return layer


def _joined(model_class: Any, config: PretrainedConfig, backbone: PreTrainedModel, score: ScoreHead) -> PreTrainedModel:
    """A model of a class, with this backbone and this head in the places of its own.

    Its own are built without storage: a class that were given the backbone at once would initialise what it does not know to be loaded, adapters above all.
    """
    with torch.device("meta"):
        model = model_class(config)
    setattr(model, model.base_model_prefix, backbone)
    model.score = score
    if empty := [name for name, parameter in model.named_parameters() if parameter.is_meta]:
        raise HeadError(
            "a class whose head is one layer named `score`",
            f"{model_class.__name__} with {empty[0]}",
            "Choose another model.",
        )
    return model


def _from_lora(folder: Path, recognised: Recognised, base: str | None, drop_bias: bool) -> _Built:
    """An adapter with the head that was trained beside it, on a classifier of its base model."""
    base_folder = _base_folder(folder, base)
    if (folder / CONTRACT).is_file():
        return _from_our_lora(folder, base_folder)
    network = build_network(str(base_folder), pooling="native", seed=0, dropout=False)
    shapes = _read_shapes(folder / ADAPTER_WEIGHTS)
    trained = {_plain(name) for name in shapes}
    lacking = [name for name in (network.head_name, *network.new_modules) if f"{name}.weight" not in trained]
    if network.head != "loaded" and lacking:  # what the base does not have either would stay random
        raise _missing_head(ADAPTER_WEIGHTS, f"{lacking[0]}.weight")
    wrapped, notes = _with_adapter(network.model, folder, set(shapes))
    adapted = replace(network, head_name=_head_beside_adapter(network.model))
    worst = _merge(wrapped, adapted, network, _tokenizer_folder(folder, base_folder))
    if "head" in recognised.found:
        name = recognised.found["head"]
        head = _read_tensors(folder / ADAPTER_WEIGHTS, [name])[name]
        if not torch.equal(network.head_module.weight.detach(), head):
            raise HeadError(
                f"the head of {ADAPTER_WEIGHTS} in the merged model",
                "another one",
                "Save the adapter with peft 0.17 or newer.",
            )
    return _Built(
        replace(network, head="loaded"), _tokenizer_folder(folder, base_folder), notes=notes, merge_difference=worst
    )


def _from_our_lora(folder: Path, base_folder: Path) -> _Built:
    """The adapter that `train` leaves beside a model: it says how it was read."""
    ours = _read_json(folder / CONTRACT)
    try:
        spec, pooling = RenderSpec(**ours["render"]), ours["pooling"]
    except (KeyError, TypeError) as error:
        raise ContractError(f"a whole {CONTRACT} beside the adapter", f"{error}", "Restore the folder.") from error
    network = build_network(str(base_folder), pooling=pooling, seed=0, dropout=False)
    load_adapters(network, folder)
    tokenizer_from = _tokenizer_folder(folder, base_folder)
    worst = merge(network, Renderer(load_tokenizer(str(tokenizer_from)), spec))
    return _Built(replace(network, head="loaded"), tokenizer_from, merge_difference=worst, spec=spec)


def _from_llama_factory_lora(folder: Path, recognised: Recognised, base: str | None, drop_bias: bool) -> _Built:
    """An adapter of a language model, with the head in a file of its own."""
    base_folder = _base_folder(folder, base)
    model, info = _from_pretrained(AutoModelForCausalLM, str(base_folder))
    inner = f"{model.base_model_prefix}."
    missing = {name for name in info["missing_keys"] if name.startswith(inner)}  # the output layer is read by no score
    _require_all_keys({**info, "missing_keys": missing}, str(base_folder), allowed=())
    wrapped, notes = _with_adapter(model, folder, set(_read_shapes(folder / ADAPTER_WEIGHTS)))
    backbone, head = getattr(model, model.base_model_prefix), _value_head(folder)
    scored = _own_network(backbone, head)
    tokenizer_from = _tokenizer_folder(folder, base_folder)
    worst = _merge(wrapped, scored, scored, tokenizer_from)
    built = _put_together(backbone, head, tokenizer_from, drop_bias=drop_bias)
    built.notes = notes + built.notes
    built.merge_difference = worst
    built.left_out = sorted(name for name in model.state_dict() if name.partition(".")[0] in _OUTPUT_LAYERS)
    return built


def _base_folder(folder: Path, base: str | None) -> Path:
    """Where the base model of an adapter is: as the user says, else as its config says.

    Raises:
        ModelError: if it is not there, or is quantised.
    """
    config = _read_json(folder / ADAPTER_CONFIG)
    named = base or config.get("base_model_name_or_path")
    if not named:
        raise ModelError("the base model of the adapter", f"an {ADAPTER_CONFIG} that names none", "Give it: --base.")
    try:
        found = _local(named, revision=None if base else config.get("revision"))
    except ModelError as error:
        if base:
            raise
        raise ModelError(
            f"the base model that {ADAPTER_CONFIG} names ({Path(named).name!r})", error.came, "Give it: --base."
        ) from error
    if "quantization_config" in read_config(str(found)):
        raise ModelError(
            "a base model in full precision, to merge the adapter into",
            f"the quantised {found.name!r}",
            "Give the original: --base.",
        )
    return found


def _tokenizer_folder(folder: Path, base_folder: Path) -> Path:
    """The tokenizer saved beside an adapter, or else that of its base."""
    return folder if (folder / "tokenizer_config.json").is_file() else base_folder


def _plain(name: str) -> str:
    return name.removeprefix(_WRAPPED).replace(_SAVED, "")


def _with_adapter(model: PreTrainedModel, folder: Path, names: set[str]) -> tuple[Any, list[str]]:
    """The model with the adapter put in by peft, and what peft had to say.

    Raises:
        MissingExtraError: if peft is not installed.
        ModelError: if the adapter and the model do not fit to the last tensor.
    """
    try:
        import peft
    except ImportError as error:
        raise MissingExtraError("LoRA folders", "peft", "lora") from error
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            config = peft.PeftConfig.from_pretrained(str(folder))
            config.task_type = (
                None  # which of peft's classes wraps the model, and asks it for what a score does not need
            )
            wrapped = peft.PeftModel.from_pretrained(model, str(folder), config=config, torch_device="cpu")
    except (RuntimeError, ValueError, KeyError, TypeError, OSError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise ModelError("an adapter that fits its base model", reason, "Give its own base: --base.") from error
    expected = {_plain(name) for name in peft.get_peft_model_state_dict(wrapped, save_embedding_layers=False)}
    whole = {_plain(name) for name in wrapped.state_dict()}
    found = {_plain(name) for name in names}
    missing, left = sorted(expected - found), sorted(found - expected - whole)
    if missing or left:
        raise ModelError(
            f"exactly the weights that {ADAPTER_CONFIG} declares in {ADAPTER_WEIGHTS}",
            f"missing: {', '.join(missing[:3]) or 'none'}; left over: {', '.join(left[:3]) or 'none'}",
            "Save the adapter again, or give its own base: --base.",
        )
    return wrapped, sorted({f"peft: {one.message}" for one in caught if issubclass(one.category, UserWarning)})


def _head_beside_adapter(model: PreTrainedModel) -> str:
    """Where the head is while peft holds a trained copy of it beside the one that the base came with."""
    heads = [name for name, module in model.named_modules() if isinstance(module, ScoreHead)]
    found = [name for name in heads if "original_module" not in name.split(".")]
    if len(found) != 1 or "base_layer" in found[0].split("."):
        raise HeadError(
            "a head that was trained in full",
            "an adapter on the head",
            "Merge it with peft on the model that holds the whole head, and import the result.",
        )
    return found[0]


def _merge(wrapped: Any, adapted: Network, merged: Network, tokenizer_from: Path) -> float:
    """Let peft add the adapter to the weights, in place, and compare the golden scores of before and after.

    Raises:
        ModelError: if they differ by more than 1e-5 x max(1, |s|).
    """
    capacity = position_capacity(adapted.model) or _DEFAULT_MAX_LENGTH
    tokenizer = load_tokenizer(str(tokenizer_from))
    renderer = Renderer(tokenizer, RenderSpec("text", DEFAULT_TEMPLATE, min(_DEFAULT_MAX_LENGTH, capacity)))
    _, before = golden_scores(adapted, renderer, one_by_one=True)  # padding has no part in this
    wrapped.merge_and_unload(safe_merge=True)
    _, after = golden_scores(merged, renderer, one_by_one=True)
    return check_merge(before, after)


_Builder = Callable[[Path, Recognised, str | None, bool], _Built]
_BUILDERS: dict[Kind, _Builder] = {
    "sequence_classifier": _from_sequence_classifier,
    "openrlhf": _from_openrlhf,
    "llama_factory": _from_llama_factory,
    "llama_factory_lora": _from_llama_factory_lora,
    "lora": _from_lora,
}


def _text_side(built: _Built, kind: Kind, max_length: int | None) -> tuple[Renderer, list[str]]:
    """Tokenizer, pad token and render spec of the folder to be, and what was chosen."""
    network, tokenizer = built.network, load_tokenizer(str(built.tokenizer_from))
    foreign_pad = network.backbone_config.pad_token_id
    notes = []
    if note := give_pad_token(network, tokenizer):
        notes.append(note)
    if network.native and tokenizer.pad_token_id is not None:
        network.model.config.pad_token_id = (
            tokenizer.pad_token_id
        )  # other tools find the last token by what the config says
    if note := check_vocabulary(network, tokenizer):
        notes.append(note)
    spec, more = _render_spec(built, tokenizer, max_length)
    renderer = Renderer(tokenizer, spec)
    if kind in ("sequence_classifier", "lora") and network.pooling == "last" and foreign_pad is not None:
        more += _pad_caution(renderer, foreign_pad)
    return renderer, notes + more


def _render_spec(
    built: _Built, tokenizer: PreTrainedTokenizerBase, max_length: int | None
) -> tuple[RenderSpec, list[str]]:
    capacity = position_capacity(built.network.model)
    if max_length is not None and capacity is not None and max_length > capacity:
        raise SettingsError(
            f"a max_length of at most {capacity}, where the model's positions end",
            f"{max_length}",
            "Lower --max-length.",
        )
    if built.spec is not None:
        spec = built.spec if max_length is None else replace(built.spec, max_length=max_length)
        return spec, [f"texts as {CONTRACT} says: encoding {spec.encoding!r}, at most {spec.max_length} tokens"]
    length = max_length or min(_DEFAULT_MAX_LENGTH, capacity or _DEFAULT_MAX_LENGTH)
    encoding, reason = resolve_encoding("auto", tokenizer)
    # A template that writes today's date gives other scores every day; from here on it writes the day of the import.
    day = pinned_date(tokenizer, date.today()) if encoding == "chat" else None
    spec = RenderSpec(encoding, DEFAULT_TEMPLATE, length, date=day)
    pinned = f"; the chat template's date is pinned to {day}" if day else ""
    return spec, [f"texts: encoding {encoding!r} ({reason}), at most {length} tokens, {spec.truncation}{pinned}"]


def _pad_caution(renderer: Renderer, foreign_pad: int) -> list[str]:
    """Transformers' own class skips pad ids at the end of a text, also where they are its end token: a source trained so read one token earlier."""
    table = renderer.encode(INPUTS)
    ends = int(np.sum([table.row(i)[-1] == foreign_pad for i in range(len(table))]))
    if not ends:
        return []
    token = renderer.tokenizer.convert_ids_to_tokens(foreign_pad)
    return [
        f"caution: {ends} of {len(table)} golden texts end with {token!r}, the source's pad token. Here the last real token is read; "
        "transformers' own class, with which TRL trains, skips it and reads the token before"
    ]
