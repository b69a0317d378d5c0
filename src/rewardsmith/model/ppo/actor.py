"""The policy with a value head on its trunk, and the reference that it started from.

One trunk for both: a forward pass gives probabilities and values together, and no second model has to fit into memory. The price is that the value loss moves
what the policy stands on; `detach_value` forbids it that.

Legend: `N` answers, `T` tokens of prompt and answer, `A` of the answer, `H` hidden, `V` vocabulary.
"""

from __future__ import annotations

import contextlib
import copy
import inspect
from collections.abc import Iterator
from pathlib import Path
from types import MethodType
from typing import Any, NamedTuple

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional

from rewardsmith.config import LoraSettings
from rewardsmith.errors import MissingExtraError, SettingsError
from rewardsmith.model.network import turn_off_dropout
from rewardsmith.model.policy import Policy

_ADAPTER = "default"
# What peft puts before the names of a wrapped model.
_WRAPPED = "base_model.model."


class Reading(NamedTuple):
    """What an actor says at each place of an answer before its token is drawn.

    Args:
        logits: over the temperature, of the ids that can be drawn, float32 (N, A, V).
        values: float32 (N, A).
    """

    logits: Tensor
    values: Tensor


class Actor(nn.Module):
    """A causal language model and its value head, without dropout in all that it does."""

    def __init__(self, policy: Policy, *, detach_value: bool = False) -> None:
        """Take over the model of a policy; the value head is 0, so that the first advantages are made of rewards alone."""
        super().__init__()
        self.model = policy.model
        turn_off_dropout(self.model)
        self.model.eval()
        self.temperature, self.num_tokens, self.detach_value = policy.temperature, policy.num_tokens, detach_value
        output = self.model.get_output_embeddings()
        self.value_head = nn.Linear(output.weight.shape[1], 1, device=output.weight.device)
        nn.init.zeros_(self.value_head.weight)
        nn.init.zeros_(self.value_head.bias)
        _keep_float32(output)

    def train(self, mode: bool = True) -> Actor:
        """There is one mode: the policy that is updated is the one that drew."""
        return super().train(False)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, num_places: int) -> Reading:
        """Read prompts and answers.

        Args:
            input_ids: prompts padded on the left, answers on the right, each answer without its last token (N, T - 1).
            attention_mask: (N, T - 1).
            num_places: A; the last so many places foretell the tokens of the answers.
        """
        seen: list[Tensor] = []
        # What the output layer is given are the states that the model itself makes its logits of, whatever its class calls them.
        watch = self.model.get_output_embeddings().register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
        try:
            logits = self._drawable(_logits(self.model, input_ids, attention_mask, num_places))
        finally:
            watch.remove()
        states = seen[0][:, -num_places:]  # (N, A, H)
        if self.detach_value:
            states = states.detach()
        with torch.autocast(states.device.type, enabled=False):
            values = self.value_head(states.float())[..., 0]
        return Reading(logits, values)

    def reference_logits(
        self, reference: nn.Module | None, input_ids: Tensor, attention_mask: Tensor, num_places: int
    ) -> Tensor:
        """The logits of a `reference_of` this actor, as those of `forward`."""
        off = adapters_off(self.model) if reference is None else contextlib.nullcontext()
        with off:
            model = self.model if reference is None else reference
            return self._drawable(_logits(model, input_ids, attention_mask, num_places))

    def _drawable(self, logits: Tensor) -> Tensor:
        """Over the temperature, float32, of the ids that can be drawn: probabilities are those of the draws."""
        return logits[..., : self.num_tokens].float() / self.temperature


def _logits(model: Any, input_ids: Tensor, attention_mask: Tensor, num_places: int) -> Tensor:
    """Raw logits at the last places, (N, A, rows of the output layer)."""
    named = inspect.signature(model.forward).parameters
    options: dict[str, Any] = {"use_cache": False}
    if "position_ids" in named:  # padding on the left must not count
        options["position_ids"] = (attention_mask.cumsum(dim=1) - 1).clamp(min=0)
    if "logits_to_keep" in named:
        options["logits_to_keep"] = num_places
    return model(input_ids=input_ids, attention_mask=attention_mask, **options).logits[:, -num_places:]


def reference_of(actor: Actor, *, has_adapters: bool) -> nn.Module | None:
    """The policy as it is at this moment, frozen: a copy; None stands for the policy itself with its adapters off."""
    return None if has_adapters else copy.deepcopy(actor.model).requires_grad_(False).eval()


def _keep_float32(output: nn.Module) -> None:
    """Compute the output layer in float32 whatever the rest is in: bf16 logits of 20 lie 0.125 apart, and a KL is made of their differences."""

    def forward(layer: nn.Linear, states: Tensor) -> Tensor:
        with torch.autocast(states.device.type, enabled=False):
            bias = None if layer.bias is None else layer.bias.float()
            return functional.linear(states.float(), layer.weight.float(), bias)

    if isinstance(output, nn.Linear):
        output.forward = MethodType(forward, output)  # a copy of the model gets a method of its own layer


def add_adapters(model: Any, settings: LoraSettings) -> None:
    """Put adapters on the linear layers of a causal language model, in place; all else is frozen. Their first factor is drawn from torch's generator, their product is 0.

    Raises:
        SettingsError: if a name in `targets` fits no linear layer.
        MissingExtraError: if peft is not installed.
    """
    peft = _peft()
    trunk = f"{model.base_model_prefix}."
    layers = {
        name: module
        for name, module in model.named_modules()
        if name.startswith(trunk) and (isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D")
    }
    names = list(layers)
    if settings.targets != "all-linear":
        names = [name for name in names if any(f".{name}".endswith(f".{target}") for target in settings.targets)]
        unknown = [t for t in settings.targets if not any(f".{name}".endswith(f".{t}") for name in names)]
        if unknown or not names:
            known = sorted({name.rpartition(".")[2] for name in layers})
            raise SettingsError(
                "names of linear layers of the policy in lora.targets",
                ", ".join(unknown),
                f'Take some of {", ".join(known)}, or "all-linear".',
            )
    config = peft.LoraConfig(
        task_type="CAUSAL_LM",
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=0.0,
        use_dora=settings.dora,
        target_modules=names,
        fan_in_fan_out=any(type(layers[name]).__name__ == "Conv1D" for name in names),
    )
    peft.inject_adapter_in_model(config, model)
    for name, parameter in model.named_parameters():
        parameter.requires_grad = "lora_" in name


def store_frozen(model: Any, dtype: torch.dtype) -> None:
    """Keep the frozen linear layers in the number format that autocast computes them in: the same products, without a conversion of all weights at each token."""
    output = model.get_output_embeddings()
    for module in model.modules():
        if isinstance(module, nn.Linear) and module is not output and not module.weight.requires_grad:
            module.weight.data = module.weight.data.to(dtype)


def check_peft() -> None:
    """Refuse adapters where peft is not installed.

    Raises:
        MissingExtraError: then.
    """
    _peft()


def _peft() -> Any:
    try:
        import peft
    except ImportError as error:
        raise MissingExtraError("LoRA adapters", "peft", "lora") from error
    return peft


def _adapted(model: nn.Module) -> list[tuple[str, Any]]:
    return [(name, one) for name, one in model.named_modules() if hasattr(one, "lora_A") and hasattr(one, "merge")]


@contextlib.contextmanager
def adapters_off(model: nn.Module) -> Iterator[None]:
    """The model as it was before it was adapted."""
    layers = [layer for _, layer in _adapted(model)]
    for layer in layers:
        layer.enable_adapters(False)
    try:
        yield
    finally:
        for layer in layers:
            layer.enable_adapters(True)


def save_policy(policy: Policy, folder: Path, *, source: str, merge: bool) -> None:
    """Write the policy as others load it: a checkpoint with its tokenizer, or a peft folder with it.

    Args:
        policy: trained; left as it is.
        folder: empty.
        source: where peft looks for the base of an adapter.
        merge: write a policy with adapters as a whole checkpoint.
    """
    model = policy.model
    adapted = _adapted(model)
    policy.tokenizer.save_pretrained(folder)
    if adapted and not merge:
        peft = _peft()
        config = copy.deepcopy(model.peft_config[_ADAPTER])
        config.base_model_name_or_path, config.inference_mode = source, True
        config.save_pretrained(str(folder))
        tensors = peft.get_peft_model_state_dict(model)
        save_file(
            {f"{_WRAPPED}{name}": tensor.detach().cpu().contiguous() for name, tensor in tensors.items()},
            folder / "adapter_model.safetensors",
            metadata={"format": "pt"},
        )
        return
    plain = _merged(model) if adapted else model
    generation = plain.generation_config
    plain.generation_config = policy.advice  # what draws are shaped by here is no advice for others
    try:
        plain.save_pretrained(folder, max_shard_size="1TB")
    finally:
        plain.generation_config = generation


def _merged(model: Any) -> Any:
    """A copy without adapters, their products added to the weights."""
    whole = copy.deepcopy(model).float()
    for name, layer in _adapted(whole):
        layer.merge(safe_merge=True)
        parent, _, child = name.rpartition(".")
        setattr(whole.get_submodule(parent), child, layer.get_base_layer())
    del whole.peft_config
    return whole
