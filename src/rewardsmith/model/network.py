"""A torch network that scores: an encoder or decoder, its pooling and one scalar head, built from a base model or loaded whole.

Weights are read as safetensors; only a *base* model may come as .bin, and then with weights_only. No code from a folder is ever run.
"""

from __future__ import annotations

import contextlib
import inspect
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as transformers_logging

from rewardsmith.config import Pooling
from rewardsmith.errors import ContractError, HeadError, ModelError, SettingsError
from rewardsmith.model import gguf_source
from rewardsmith.model.attention import NAME, SEGMENTS, AttentionPlan
from rewardsmith.model.batching import Batch
from rewardsmith.model.bundled import BUNDLED
from rewardsmith.model.last_layer import can_shorten, shorten
from rewardsmith.model.modeling_rewardsmith import (
    RewardsmithConfig,
    RewardsmithForSequenceClassification,
    ScoreHead,
    last_positions,
    pool,
    without_pooler,
)
from rewardsmith.model.packing import PackedBatch
from rewardsmith.model.pooling import choose_pooling, is_decoder

_POSITION_NAMES = frozenset({"position_embeddings", "position_embedding", "wpe", "embed_positions", "positions_embed"})


@dataclass
class Network:
    """A model with one scalar head.

    Args:
        model: a transformers model whose `.logits` are (N, 1).
        head_name: the head's place in it, "classifier" or "score".
        pooling: what is done, resolved.
        native: whether the model's class is transformers' own.
        head: "loaded" or "new (seed 0)", for the log and the record.
        reason: why this pooling.
        new_modules: parts beside the head that the source did not have.
    """

    model: PreTrainedModel
    head_name: str
    pooling: str
    native: bool
    head: str
    reason: str
    new_modules: tuple[str, ...] = ()

    @property
    def head_module(self) -> ScoreHead:
        """The head."""
        module = self.model.get_submodule(self.head_name)
        assert isinstance(module, ScoreHead)
        return module

    @property
    def backbone_type(self) -> str:
        """The model type of the backbone, "bert" also inside a folder of our own class."""
        config = self.model.config
        return config.backbone["model_type"] if isinstance(config, RewardsmithConfig) else config.model_type

    @property
    def backbone_config(self) -> PretrainedConfig:
        """The configuration of the backbone."""
        model = self.model
        return model.backbone.config if isinstance(model, RewardsmithForSequenceClassification) else model.config

    def scores(self, batch: Batch) -> Tensor:
        """Raw scores, float32 (N,), of a network with one output."""
        return self.outputs(batch)[:, 0]

    def outputs(self, batch: Batch | PackedBatch) -> Tensor:
        """What the head says, float32 (N, A), A = 1 but for a head that is trained on several attributes.

        A packed batch needs a network that `batching_choice.choose_batching` found fit for it.
        """
        if isinstance(batch, PackedBatch):
            return self._packed_outputs(batch)
        inputs: dict[str, Any] = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
        if batch.token_type_ids is not None:
            inputs["token_type_ids"] = batch.token_type_ids
        if self.pooling == "last" and self.native:
            # transformers' own class looks for the pad id; the mask is what tells. It tells the positions too: GPT-2's kind would count filler on the left.
            backbone = getattr(self.model, self.model.base_model_prefix)
            if "position_ids" in inspect.signature(backbone.forward).parameters:
                inputs["position_ids"] = (batch.attention_mask.cumsum(dim=1) - 1).clamp(min=0)
            states = backbone(**inputs, use_cache=False).last_hidden_state
            rows = torch.arange(len(states), device=states.device)
            return self.head_module(states[rows, last_positions(batch.attention_mask)])
        # Its forward, not itself: a routed model (see `trainer.route`) is in a call already, and what acts on calls must see one.
        return self.model.forward(**inputs).logits.float()

    def _packed_outputs(self, batch: PackedBatch) -> Tensor:
        if self.backbone_config._attn_implementation != NAME:
            # For good, and not for this call: checkpointed layers run again in the backward pass.
            self.model.set_attn_implementation(NAME)
        backbone = getattr(self.model, self.model.base_model_prefix)
        firsts = None
        if self.pooling in ("pooler", "cls") and can_shorten(backbone):
            shorten(backbone)
            firsts = batch.tokens[:, 0]
        inputs: dict[str, Any] = {
            "input_ids": batch.input_ids,
            "position_ids": batch.position_ids + self.first_position,
            # Whatever has four dimensions is taken for a finished mask, and handed on to the attention, which goes by the plan.
            "attention_mask": torch.ones(1, 1, 1, 1, dtype=torch.bool, device=batch.input_ids.device),
            SEGMENTS: AttentionPlan(batch.segments, batch.inserts, batch.keeps, first_tokens=firsts),
        }
        if batch.token_type_ids is not None:
            inputs["token_type_ids"] = batch.token_type_ids
        if is_decoder(self.backbone_config):
            inputs["use_cache"] = False
        states = backbone(**inputs).last_hidden_state[0]  # (T, H), or (N, H) where the last layer was shortened
        if self.pooling == "mean":
            return self.head_module(pool(states[batch.tokens], batch.mask, "mean"))
        if firsts is not None:
            pooled = states
        else:
            place = last_positions(batch.mask) if self.pooling == "last" else torch.zeros_like(batch.tokens[:, 0])
            pooled = states[batch.tokens.gather(1, place[:, None])[:, 0]]  # (T, H) -> (N, H)
        if self.pooling == "pooler":
            pooled = backbone.pooler(pooled[:, None])
        return self.head_module(pooled.float())

    @property
    def first_position(self) -> int:
        """The position id of a text's first token: RoBERTa counts from padding_idx + 1."""
        for _, module in position_tables(self.model):
            if module.padding_idx is not None:
                return int(module.padding_idx) + 1
        return 0

    def set_head(self, weight: Tensor, bias: Tensor | None) -> None:
        """Put another head in the place of the one that is there: weight (A, H), bias (A,), both in float32; the config learns A."""
        old = self.head_module
        head = ScoreHead(weight.shape[1], weight.shape[0], bias=bias is not None, device=old.weight.device)
        with torch.no_grad():
            head.weight.copy_(weight)
            if bias is not None:
                head.bias.copy_(bias)
        parent, _, child = self.head_name.rpartition(".")
        setattr(self.model.get_submodule(parent), child, head)
        self.model.config.num_labels = weight.shape[0]


@contextlib.contextmanager
def quiet_loading() -> Iterator[None]:
    """Silence transformers' load report: what it would warn about is checked here and raised as an error."""
    verbosity = transformers_logging.get_verbosity()
    bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity(logging.CRITICAL)
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if bars:
            transformers_logging.enable_progress_bar()


def source_folder(source: str) -> str:
    """A MODEL argument as transformers takes it: a bundled name, a run folder (its model), a GGUF file (dequantised), a folder or hub name.

    Raises:
        ModelError: if it looks like a folder and is none.
    """
    if source in BUNDLED and not Path(source).exists():
        source = str(BUNDLED[source]())
    if gguf_source.is_gguf(source):
        return str(gguf_source.dequantised(Path(source)))
    path = Path(source)
    if (path / "model" / "config.json").is_file():
        return str(path / "model")
    if (path / "adapter_config.json").is_file() and not (path / "config.json").is_file():
        raise ModelError(
            f"a whole model at {source}",
            "an adapter alone",
            "Merge it into its base first: rewardsmith import ADAPTER --base BASE --out DIR.",
        )
    if path.is_dir() and not (path / "config.json").is_file():
        raise ModelError(f"a model folder at {source}", "a folder without config.json", "Check the path.")
    if not path.exists() and (source.startswith((".", "/", "~")) or source.count("/") > 1):
        raise ModelError(f"a model folder at {source}", "nothing there", "Check the path.")
    return source


def read_config(source: str) -> dict[str, Any]:
    """The config.json of a folder or hub name, as a dictionary; nothing is built and no code runs.

    Raises:
        ModelError: if there is none.
    """
    try:
        with quiet_loading():
            config, _ = PretrainedConfig.get_config_dict(source)
    except (OSError, ValueError) as error:
        raise _not_found(source, error) from error
    if not config:
        raise ModelError(f"the model {source!r}", "no config.json", "Check the path or the name.")
    return config


def _not_found(source: str, error: Exception) -> ModelError:
    reason = (str(error).splitlines() or [type(error).__name__])[0]
    return ModelError(
        f"the model {source!r}",
        f"none that can be read ({reason[:200]})",
        f"Give a folder, a GGUF file, a Hugging Face name that this machine can reach, or a bundled one: {', '.join(BUNDLED)}.",
    )


def load_tokenizer(source: str) -> PreTrainedTokenizerBase:
    """The tokenizer of a folder or hub name.

    Raises:
        ModelError: if there is none.
    """
    try:
        with quiet_loading():
            return AutoTokenizer.from_pretrained(source, trust_remote_code=False)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise ModelError(
            f"a tokenizer in {source!r}",
            f"none that loads ({(str(error).splitlines() or [''])[0][:200]})",
            "Save the tokenizer beside the model.",
        ) from error


def num_labels(config: Mapping[str, Any]) -> int:
    """The labels that a config.json declares; transformers' default is 2."""
    if "id2label" in config:
        return len(config["id2label"])
    return int(config.get("num_labels", 2))


def is_reward_model(config: Mapping[str, Any]) -> bool:
    """Whether a config.json is of a sequence classifier with one label."""
    architecture = (config.get("architectures") or [""])[0]
    return architecture.endswith("ForSequenceClassification") and num_labels(config) == 1


def require_reward_model(config: Mapping[str, Any], source: str) -> None:
    """Refuse a checkpoint that has no single-score head.

    Raises:
        HeadError: naming the class and the labels found.
    """
    if is_reward_model(config):
        return
    architecture = (config.get("architectures") or ["no architecture"])[0]
    came = f"{architecture} in {Path(source).name!r}"
    if architecture.endswith("ForSequenceClassification"):
        came += f" with {num_labels(config)} labels"
    raise HeadError(
        "a sequence classifier with one label (a score head of shape [1, hidden])",
        came,
        "Train a reward model from it first: rewardsmith train --model ... --data ... --out ...",
    )


def load_network(folder: str) -> Network:
    """A whole reward model: every key must be there, none may be left over.

    Raises:
        HeadError: if the head is missing, or is not one linear layer with one output.
        ModelError: if anything else is missing or left over.
    """
    config = read_config(folder)
    require_reward_model(config, folder)
    own = config.get("model_type") == RewardsmithConfig.model_type
    model_class: Any = RewardsmithForSequenceClassification if own else AutoModelForSequenceClassification
    model, info = _from_pretrained(model_class, folder, use_safetensors=True)
    _require_all_keys(info, folder, allowed=())
    head_name = _install_head(model, folder)
    if own:
        assert isinstance(model.config, RewardsmithConfig)
        return Network(model, head_name, model.config.pooling, False, "loaded", "as saved")
    choice = choose_pooling("native", model.config)
    return Network(model, head_name, choice.pooling, True, "loaded", choice.reason)


def build_network(source: str, *, pooling: Pooling, seed: int, dropout: bool) -> Network:
    """A network to train: a reward model goes on with its head, any other model gets a new one.

    Raises:
        SettingsError: if the pooling asked for does not fit.
        ModelError: if the source lacks more than a head.
    """
    raw = read_config(source)
    if is_reward_model(raw):
        network = load_network(source)
        if pooling not in ("auto", "native", network.pooling):
            raise SettingsError(
                f"the pooling of the reward model that goes on ({network.pooling!r})",
                f"pooling = {pooling!r}",
                'Set pooling = "auto", or start from the base model.',
            )
    else:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            network = _new_head(source, pooling, seed)
    if not dropout:
        turn_off_dropout(network.model)
    return network


def _new_head(source: str, pooling: Pooling, seed: int) -> Network:
    try:
        config = AutoConfig.from_pretrained(source, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise _not_found(source, error) from error
    choice = choose_pooling(pooling, config)
    if choice.native:
        config.num_labels = 1
        # A classifier of another size (an NLI model, say) gives its backbone; its head is no score.
        model, info = _from_pretrained(
            AutoModelForSequenceClassification, source, config=config, ignore_mismatched_sizes=True
        )
        inner = f"{model.base_model_prefix}."
        allowed = tuple(
            key for key in info["missing_keys"] if not key.startswith(inner) or key.startswith(f"{inner}pooler.")
        )
        _require_all_keys(info, source, allowed=allowed, base=True)
        head_name = _install_head(model, source)
    else:
        model_class = AutoModel._model_mapping[type(config)]
        backbone, info = _from_pretrained(AutoModel, source, config=config, **without_pooler(model_class))
        _require_all_keys(info, source, allowed=(), base=True)
        allowed = ()
        own_config = RewardsmithConfig(
            backbone=config.to_dict(), pooling=choice.pooling, num_labels=1, pad_token_id=config.pad_token_id
        )
        model = RewardsmithForSequenceClassification(own_config, backbone)
        head_name = "score"
    head = model.get_submodule(head_name)
    assert isinstance(head, ScoreHead)
    nn.init.normal_(head.weight, std=getattr(config, "initializer_range", None) or 0.02)
    if head.bias is not None:
        nn.init.zeros_(head.bias)
    new_modules = sorted({key.rpartition(".")[0] for key in allowed} - {head_name})
    return Network(
        model, head_name, choice.pooling, choice.native, f"new (seed {seed})", choice.reason, tuple(new_modules)
    )


def _from_pretrained(model_class: Any, source: str, **options: Any) -> tuple[Any, dict[str, Any]]:
    try:
        with quiet_loading():
            return model_class.from_pretrained(
                source,
                dtype=torch.float32,
                output_loading_info=True,
                trust_remote_code=False,
                weights_only=True,
                **options,
            )
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise _not_found(source, error) from error
    except Exception as error:  # safetensors raises its own kind for a cut or foreign file
        if type(error).__module__.startswith("safetensors"):
            raise _not_found(source, error) from error
        raise


def _require_all_keys(info: Mapping[str, Any], source: str, *, allowed: tuple[str, ...], base: bool = False) -> None:
    missing = sorted(set(info["missing_keys"]) - set(allowed))
    unexpected = [] if base else sorted(info["unexpected_keys"])
    mismatched = [] if base else [str(key) for key in info["mismatched_keys"]]
    name = Path(source).name
    head_words = ("classifier", "score", "head", "out_proj")
    if missing:
        if any(word in key for key in missing for word in head_words) and not base:
            raise HeadError(
                f"the reward head in {name!r}",
                f"weights without {', '.join(missing[:3])}",
                "It cannot be recovered; save the model again from the run that trained it.",
            )
        raise ModelError(
            f"all weights of the base model in {name!r}",
            f"{len(missing)} missing: {', '.join(missing[:3])}",
            "Fetch the checkpoint again; is it sharded (ZeRO-3, FSDP)? Then consolidate it first.",
        )
    if unexpected or mismatched:
        raise HeadError(
            f"exactly the weights that the config of {name!r} declares",
            f"left over or of another shape: {', '.join((unexpected + mismatched)[:3])}",
            "The config and the weights are of two models; save them together.",
        )


def _install_head(model: PreTrainedModel, source: str) -> str:
    """Replace the one linear layer with one output outside the backbone by a float32 head of the same weights."""
    inner = f"{model.base_model_prefix}."
    found = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and module.out_features == 1 and not name.startswith(inner)
    ]
    if len(found) != 1:
        raise HeadError(
            "one linear layer with one output (the score head)",
            f"{len(found)} in {type(model).__name__} of {Path(source).name!r}",
            "Choose another architecture, or pooling = mean.",
        )
    name = found[0]
    old = model.get_submodule(name)
    if not isinstance(old, ScoreHead):
        assert isinstance(old, nn.Linear)
        head = ScoreHead(old.in_features, 1, bias=old.bias is not None)
        head.load_state_dict(old.state_dict())
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, head)
    return name


def turn_off_dropout(model: nn.Module) -> None:
    """Set every dropout of a network to 0: modules, and the plain numbers that fused attention reads. The config stays as it is."""
    for module in model.modules():
        for name, value in list(vars(module).items()):
            if "drop" in name and isinstance(value, float):
                setattr(module, name, 0.0)
        if isinstance(module, nn.modules.dropout._DropoutNd):
            module.p = 0.0


def position_capacity(model: nn.Module) -> int | None:
    """How many tokens absolute position embeddings reach, or None where positions are relative or rotary."""
    capacities = []
    for _, module in position_tables(model):
        # RoBERTa counts positions from padding_idx + 1, OPT from its `offset`.
        used = 0 if module.padding_idx is None else module.padding_idx + 1
        capacities.append(module.num_embeddings - used - int(getattr(module, "offset", 0)))
    return min(capacities, default=None)


def position_tables(model: nn.Module) -> Iterator[tuple[str, nn.Embedding]]:
    """(name, module) of the tables of absolute position embeddings."""
    for name, module in model.named_modules():
        if name.rpartition(".")[2] in _POSITION_NAMES and isinstance(module, nn.Embedding):
            yield name, module


def check_vocabulary(network: Network, tokenizer: PreTrainedTokenizerBase) -> str | None:
    """Refuse ids beyond the embedding table before the first forward pass; the returned sentence, if any, is a warning for the log.

    Raises:
        ModelError: naming the id and the number of rows.
        ContractError: if a decoder's padding would mislead other tools.
    """
    rows = network.model.get_input_embeddings().num_embeddings
    pad = tokenizer.pad_token_id
    if pad is not None and not 0 <= pad < rows:
        raise ModelError(
            f"a pad token id below the {rows} rows of the embedding table",
            f"pad_token_id = {pad}",
            "Set the tokenizer's pad token to one the model knows.",
        )
    highest = max(tokenizer.get_vocab().values())
    if highest >= rows:
        raise ModelError(
            f"token ids below the {rows} rows of the embedding table",
            f"a tokenizer with ids up to {highest}",
            "Take the tokenizer that belongs to the model.",
        )
    if is_decoder(network.backbone_config) and network.native and pad in (None, tokenizer.eos_token_id):
        raise ContractError(
            "a pad token of its own, because other tools find a decoder's last token by it",
            "no pad token" if pad is None else "one that is the end token as well",
            "Set tokenizer.pad_token to an unused special token and save the tokenizer with the model.",
        )
    if pad is None:
        return "the tokenizer has no pad token: padding goes by the attention mask alone"
    return None
