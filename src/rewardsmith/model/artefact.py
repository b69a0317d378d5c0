"""The model folder: a Hugging Face checkpoint with its contract, its golden scores and its provenance. Saved whole, proven by loading it again."""

from __future__ import annotations

import copy
import json
import shutil
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from transformers import PreTrainedTokenizerBase

from rewardsmith.config import DEFAULT_TEMPLATE, Device
from rewardsmith.data.golden import INPUTS
from rewardsmith.data.io import write_rows
from rewardsmith.data.schema import Pair
from rewardsmith.errors import ContractError, HeadError, ModelError, OutputError, ScoreError
from rewardsmith.manifest import package_versions
from rewardsmith.model import modeling_rewardsmith
from rewardsmith.model.attributes import FILE_NAME as ATTRIBUTES
from rewardsmith.model.attributes import AttributeHeads
from rewardsmith.model.batching_choice import PADDED
from rewardsmith.model.clock import pinned_date
from rewardsmith.model.network import (
    Network,
    check_vocabulary,
    load_network,
    load_tokenizer,
    position_capacity,
    quiet_loading,
    read_config,
    require_reward_model,
)
from rewardsmith.model.precision import choose_device
from rewardsmith.model.render import Renderer, RenderSpec, TokenTable, resolve_encoding
from rewardsmith.model.scoring import BATCH_TOKENS, score_tokens
from rewardsmith.scores import Scores
from rewardsmith.storage import atomic_folder, file_sha256, text_sha256, write_json, write_text

FORMAT_VERSION = 1
CONTRACT, GOLDEN, WEIGHTS = "rewardsmith.json", "golden.jsonl", "model.safetensors"
# Same machine, same versions; `verify` allows TOLERANCE_ACROSS where platform or versions differ. Both times max(1, |s|).
TOLERANCE, TOLERANCE_ACROSS, TOLERANCE_BF16 = 1e-5, 1e-4, 5e-2
# What the network and the ids are made of. `verify` checks all of it; loading leaves out the weights (large) and the code (never run by us).
_CHECKED_AT_LOAD = ("config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
_HASHED = (WEIGHTS, *_CHECKED_AT_LOAD, ATTRIBUTES, "modeling_rewardsmith.py")
_DEFAULT_MAX_LENGTH = 512
# For chat templates that write today's date, in folders that pin none: the day that Llama's own template falls back to.
_FOREIGN_DAY = date(2024, 7, 26)


@dataclass(frozen=True)
class Normaliser:
    """Mean and standard deviation of scores on stated data; RL shaping asks for it by name."""

    mean: float
    std: float
    n: int
    data_sha256: str


@dataclass(frozen=True)
class Contract:
    """What a folder promises beside its weights.

    Args:
        render: template, encoding, max_length, truncation.
        special_tokens: ids that stand before, between and after the texts.
        end_tokens: ids with which every text that was not cut ends; None in folders that do not say.
        pooling: resolved, never "auto".
        head: {"key", "shape"} of the head's weight.
        training_dtype: number format of the training steps.
        temperature: of the calibrated probability sigmoid(margin / T); None where none was fitted.
        calibration: how the temperature was fitted and what it is worth on other prompts, the isotonic map, temperatures of slices, thresholds of guardrails.
        normaliser: see `Normaliser`.
        objective: the loss that was trained, what it learned beside the network, and its attributes; None where that is not known.
        files: SHA-256 by file name.
        saved_with: versions and platform, to choose the tolerance of `verify`.
        backend: of an exported model, the program that runs it, its precision and the bounds that it kept; None for torch (see `exported`).
        format_version: of this document.
    """

    render: RenderSpec
    special_tokens: dict[str, list[int]]
    pooling: str
    head: dict[str, Any]
    training_dtype: str
    temperature: float | None = None
    calibration: dict[str, Any] | None = None
    normaliser: Normaliser | None = None
    objective: dict[str, Any] | None = None
    end_tokens: list[int] | None = None
    files: dict[str, str] = field(default_factory=dict)
    saved_with: dict[str, str] = field(default_factory=dict)
    backend: dict[str, Any] | None = None
    format_version: int = FORMAT_VERSION

    def as_dict(self) -> dict[str, Any]:
        """The document in rewardsmith.json; the render spec carries its own hash."""
        document = asdict(self)
        document["render"] = self.render.as_dict()
        document["render_sha256"] = _render_hash(self.render)
        return document

    @classmethod
    def from_dict(cls, document: Mapping[str, Any], name: str) -> Contract:
        """Read rewardsmith.json.

        Raises:
            ContractError: if it is newer than this code, incomplete, or its render spec was changed by hand.
        """
        found = document.get("format_version")
        if not isinstance(found, int) or found > FORMAT_VERSION:
            raise ContractError(
                f"a contract of format version {FORMAT_VERSION} or older in {name!r}",
                f"version {found!r}",
                "Install a newer rewardsmith.",
            )
        try:
            values = {f.name: document[f.name] for f in fields(cls) if f.name in document}
            values["render"] = RenderSpec(**document["render"])
            if document.get("normaliser"):
                values["normaliser"] = Normaliser(**document["normaliser"])
            contract = cls(**values)
        except (KeyError, TypeError) as error:
            raise ContractError(f"a whole contract in {name!r}", f"{error}", "Save the model again.") from error
        if document.get("render_sha256") != _render_hash(contract.render):
            raise ContractError(
                f"the render spec that {name!r} was saved with",
                "one whose hash differs: rewardsmith.json was edited",
                "Restore the file; a model scored under another template or length is another model.",
            )
        return contract


def _render_hash(spec: RenderSpec) -> str:
    return text_sha256(json.dumps(spec.as_dict(), sort_keys=True))


def saved_with(device: torch.device) -> dict[str, str]:
    """Versions and place of a save, for the contract."""
    versions = package_versions()
    capability = f"{torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} threads"
    place = {"device": device.type, "cpu": capability}
    return {name: versions[name] for name in ("python", "torch", "transformers", "tokenizers")} | place


@dataclass
class Loaded:
    """What a model folder holds once it is read."""

    network: Network
    renderer: Renderer
    contract: Contract
    attributes: AttributeHeads | None = None


@dataclass(frozen=True)
class Check:
    """One line of `verify`."""

    name: str
    ok: bool
    detail: str
    max_difference: float | None = None

    def as_dict(self) -> dict[str, Any]:
        """The document of `verify --json`."""
        return asdict(self)


def golden_table(renderer: Renderer, inputs: Sequence[Pair] = INPUTS) -> TokenTable:
    """The ids of golden inputs."""
    if renderer.spec.truncation == "error":  # of the user's texts; ours are longer than some limits
        renderer = Renderer(renderer.tokenizer, replace(renderer.spec, truncation="keep_answer"))
    return renderer.encode(inputs)


def golden_scores(
    network: Network, renderer: Renderer, inputs: Sequence[Pair] = INPUTS, *, one_by_one: bool = False
) -> tuple[list[str], Scores]:
    """(hash of the ids, float32 score) of each golden input, on the CPU or wherever the model is.

    `one_by_one`: each text alone, through the model's own attention: how the scores of a batch are held to be those of its texts.
    """
    table = golden_table(renderer, inputs)
    device = next(network.model.parameters()).device
    scores = score_tokens(
        network,
        table,
        pad_id=renderer.tokenizer.pad_token_id or 0,
        with_types=renderer.uses_types,
        device=device,
        batching=PADDED if one_by_one else None,
        batch_tokens=1 if one_by_one else BATCH_TOKENS,
    )
    return [f"{digest:016x}" for digest in table.digests()], scores


def save(
    network: Network,
    renderer: Renderer,
    out: Path,
    *,
    training_dtype: str,
    manifest: Mapping[str, Any],
    normaliser: Normaliser | None = None,
    objective: dict[str, Any] | None = None,
    attributes: AttributeHeads | None = None,
    card: str = "",
) -> Contract:
    """Write a model folder under a temporary name, load it in fresh objects, compare every golden id and score, then rename it.

    Args:
        network: to save; it is left as it is.
        renderer: its text side.
        out: the folder; one that stands there is replaced.
        training_dtype: for the contract.
        manifest: provenance, as `manifest.Manifest` keeps it.
        normaliser: statistics of scores, if any.
        objective: see `Contract`.
        attributes: heads that the score is the weighted sum of, if any.
        card: README.md, if any.

    Raises:
        OutputError: if the disk refuses; nothing is left behind.
        ModelError: if what was written does not load as what was in memory.
    """
    with atomic_folder(out) as folder:
        try:
            write_checkpoint(network, renderer.tokenizer, folder)
        except SafetensorError as error:
            raise OutputError(
                f"room to write {WEIGHTS}", f"{error}", "Free some disk space; nothing half-written was left behind."
            ) from error
        if attributes is not None:
            attributes.save(folder)
        head = network.head_module
        device = head.weight.device
        contract = Contract(
            render=renderer.spec,
            special_tokens={
                "prefix": list(renderer.rule.prefix),
                "middle": list(renderer.rule.middle),
                "suffix": list(renderer.rule.suffix),
            },
            pooling=network.pooling,
            head={"key": f"{network.head_name}.weight", "shape": list(head.weight.shape)},
            training_dtype=training_dtype,
            normaliser=normaliser,
            objective=objective,
            end_tokens=list(renderer.end_tokens),
            files={name: file_sha256(folder / name) for name in _HASHED if (folder / name).exists()},
            saved_with=saved_with(device),
        )
        write_json(folder / CONTRACT, contract.as_dict())
        ids, scores = golden_scores(network, renderer)
        rows = [
            {"prompt": prompt, "answer": answer, "ids": digest, "score": float(score)}
            for (prompt, answer), digest, score in zip(INPUTS, ids, scores, strict=True)
        ]
        write_rows(folder / GOLDEN, rows)
        write_json(folder / "manifest.json", dict(manifest))
        if card:
            write_text(folder / "README.md", card)
        _prove(folder, ids, scores, device)
    return contract


def write_checkpoint(network: Network, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """The Hugging Face side of a model folder. Three keys keep other tools from squashing the score; dropout values in the config stay what they were."""
    model = network.model
    kept, model.config = model.config, copy.deepcopy(model.config)
    try:
        model.config.problem_type = "regression"
        model.config.sentence_transformers = {"activation_fn": "torch.nn.modules.linear.Identity", "version": ""}
        model.config.num_labels = 1
        if not network.native:
            model.config.auto_map = {
                "AutoConfig": "modeling_rewardsmith.RewardsmithConfig",
                "AutoModelForSequenceClassification": "modeling_rewardsmith.RewardsmithForSequenceClassification",
            }
        elif model.config.get_text_config().pad_token_id is None:
            model.config.get_text_config().pad_token_id = tokenizer.pad_token_id
        # One file whatever the size: the contract names and hashes it.
        with quiet_loading():
            model.save_pretrained(folder, max_shard_size="1TB")
    finally:
        model.config = kept
    # Left padding, a habit of generation, moves the scores of transformers' own class where positions are absolute.
    side, tokenizer.padding_side = tokenizer.padding_side, "right"
    try:
        tokenizer.save_pretrained(folder)
    finally:
        tokenizer.padding_side = side
    if not network.native:
        shutil.copy(modeling_rewardsmith.__file__, folder / "modeling_rewardsmith.py")


def _prove(folder: Path, ids: list[str], scores: Scores, device: torch.device) -> None:
    loaded = load(str(folder))
    loaded.network.model.to(device)
    found_ids, found = golden_scores(loaded.network, loaded.renderer)
    worst = difference(scores, found)
    if found_ids != ids or worst > TOLERANCE:
        raise ModelError(
            "a saved folder that scores like the model in memory",
            "other token ids" if found_ids != ids else f"scores up to {worst:.2e} x max(1, |s|) apart",
            "This is a fault of rewardsmith or of the model class; please report it with the model's name.",
        )


def difference(expected: Scores, found: Scores) -> float:
    """The largest |difference| / max(1, |expected|)."""
    return float(np.max(np.abs(expected - found) / np.maximum(1.0, np.abs(expected))))


def load(folder: str) -> Loaded:
    """Read a model folder, or with a warning a plain single-logit one of another tool.

    What can be checked cheaply is checked: the contract, the head's key and shape, the tokenizer's hash, that no key is missing or left over.

    Raises:
        ModelError: (or a subclass) saying what disagrees.
    """
    path = Path(folder)
    if path.is_dir() and (path / CONTRACT).is_file():
        contract = read_contract(path)
        check_files(path, contract, names=_CHECKED_AT_LOAD)
        _check_head_key(path, contract)
        network, tokenizer = load_network(folder), load_tokenizer(folder)
        renderer = Renderer(tokenizer, contract.render)
        check_renderer(renderer, contract)
        if network.pooling != contract.pooling:
            raise ContractError(
                f"pooling {contract.pooling!r}", f"a class that does {network.pooling!r}", "Restore config.json."
            )
    else:
        network, tokenizer, renderer = _load_foreign(folder)
        contract = _foreign_contract(network, renderer)
    check_vocabulary(network, tokenizer)
    network.model.eval()
    declared = (contract.objective or {}).get("attributes")
    return Loaded(network, renderer, contract, AttributeHeads.load(path, declared) if declared else None)


def check_renderer(renderer: Renderer, contract: Contract) -> None:
    """Refuse a tokenizer that does not frame texts as the contract says.

    Raises:
        ContractError: naming the tokens.
    """
    rule = renderer.rule
    found = {"prefix": list(rule.prefix), "middle": list(rule.middle), "suffix": list(rule.suffix)}
    if found != contract.special_tokens:
        raise ContractError(
            f"the special tokens {contract.special_tokens}",
            f"{found}",
            "The tokenizer is not the one saved with it.",
        )
    if contract.end_tokens is not None and contract.end_tokens != list(renderer.end_tokens):
        raise ContractError(
            f"texts that end with the tokens {contract.end_tokens}",
            f"{list(renderer.end_tokens)}",
            "The tokenizer or its chat template is not the one saved with it.",
        )


def read_contract(path: Path) -> Contract:
    """The contract of a folder.

    Raises:
        ContractError: if rewardsmith.json cannot be read.
    """
    try:
        document = json.loads((path / CONTRACT).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ContractError(f"a readable {CONTRACT}", str(error), "Save the model again.") from error
    return Contract.from_dict(document, path.name)


def store_calibration(path: Path, temperature: float, calibration: Mapping[str, Any]) -> None:
    """Write a temperature and its evidence into the contract of a folder, whole or not at all; nothing else of the folder changes.

    Raises:
        ContractError: if the folder has no readable contract.
        OutputError: if the system refuses.
    """
    contract = replace(read_contract(path), temperature=temperature, calibration=dict(calibration))
    write_json(path / CONTRACT, contract.as_dict())


def check_files(path: Path, contract: Contract, *, names: tuple[str, ...]) -> None:
    """Refuse a folder of which one of the named files is not the one that the contract knows.

    Raises:
        ContractError: naming the file.
    """
    for name in names:
        if name not in contract.files:
            continue
        found = file_sha256(path / name) if (path / name).is_file() else None
        if found != contract.files[name]:
            came = "none" if found is None else "another one (its hash differs)"
            raise ContractError(f"the {name} that was saved with this model", came, "Restore the folder.")


def _check_head_key(path: Path, contract: Contract) -> None:
    try:
        with safe_open(path / WEIGHTS, framework="pt") as weights:
            keys = set(weights.keys())
            key, shape = contract.head["key"], contract.head["shape"]
            if key not in keys:
                raise HeadError(
                    f"the reward head {key!r} in {WEIGHTS}",
                    "weights without it",
                    "It cannot be recovered; save the model again from the run that trained it.",
                )
            found = list(weights.get_slice(key).get_shape())
    except (OSError, SafetensorError) as error:
        raise ModelError(f"readable weights in {path.name!r}", str(error), "Fetch or save the model again.") from error
    if found != shape:
        mend = "Consolidate the sharded checkpoint first." if 0 in found else "Restore the weights."
        raise HeadError(f"a head of shape {shape}", f"shape {found}", mend)


def _load_foreign(folder: str) -> tuple[Network, PreTrainedTokenizerBase, Renderer]:
    """A single-logit folder without a contract: its chat template if it has one, else the guide's text, nothing appended."""
    config = read_config(folder)
    require_reward_model(config, folder)
    network, tokenizer = load_network(folder), load_tokenizer(folder)
    encoding, reason = resolve_encoding("auto", tokenizer)
    capacity = position_capacity(network.model)
    max_length = _DEFAULT_MAX_LENGTH if capacity is None else min(_DEFAULT_MAX_LENGTH, capacity)
    day = pinned_date(tokenizer, _FOREIGN_DAY) if encoding == "chat" else None
    dated = f", the date {day} where the chat template writes today's" if day else ""
    warnings.warn(
        f"{Path(folder).name} carries no {CONTRACT}: how it was trained is not known. Assuming encoding {encoding!r} ({reason}), "
        f"max_length {max_length}, keep_answer{dated}. `rewardsmith import` writes these choices down.",
        stacklevel=3,
    )
    return network, tokenizer, Renderer(tokenizer, RenderSpec(encoding, DEFAULT_TEMPLATE, max_length, date=day))


def _foreign_contract(network: Network, renderer: Renderer) -> Contract:
    rule = renderer.rule
    return Contract(
        render=renderer.spec,
        special_tokens={"prefix": list(rule.prefix), "middle": list(rule.middle), "suffix": list(rule.suffix)},
        pooling=network.pooling,
        head={"key": f"{network.head_name}.weight", "shape": list(network.head_module.weight.shape)},
        training_dtype="unknown",
    )


def verify(folder: str, *, device: Device = "cpu") -> list[Check]:
    """Recompute everything a folder claims: file hashes, the head, every golden id and score, and that the batch does not matter.

    Where device, processor, threads or versions are not those of the save, the tolerance is the one for other machines.

    Raises:
        ModelError: if the folder cannot be loaded at all, or has no golden scores to check.
    """
    path = Path(folder)
    if not (path / CONTRACT).is_file() or not (path / GOLDEN).is_file():
        raise ContractError(
            f"a model folder with {CONTRACT} and {GOLDEN}",
            f"{path.name!r} without them",
            "Make one: rewardsmith import SRC --out DIR.",
        )
    contract = read_contract(path)
    checks = []
    for name, promised in contract.files.items():
        found = file_sha256(path / name) if (path / name).exists() else "no such file"
        checks.append(Check(f"file {name}", found == promised, "as saved" if found == promised else "changed"))
    try:
        loaded = load(folder)
    except ModelError as error:
        return [*checks, Check("load", False, str(error))]
    place = choose_device(device)
    loaded.network.model.to(place)
    head = loaded.network.head_module
    finite = bool(torch.isfinite(head.weight).all()) and bool((head.weight != 0).any())
    checks.append(Check("head", finite and head.weight.dtype == torch.float32, "one finite, non-zero row in float32"))
    try:
        rows = [json.loads(line) for line in (path / GOLDEN).read_text(encoding="utf-8").splitlines()]
        inputs: list[Pair] = [(row["prompt"], row["answer"]) for row in rows]
        promised_ids = [row["ids"] for row in rows]
        saved = np.array([row["score"] for row in rows], dtype=np.float32)
    except (ValueError, KeyError, TypeError) as error:
        return [*checks, Check("golden file", False, f"{GOLDEN} cannot be read: {error}")]
    if len(rows) != len(INPUTS):
        return [*checks, Check("golden file", False, f"{len(rows)} rows in {GOLDEN}, {len(INPUTS)} were saved")]
    try:
        ids, scores = golden_scores(loaded.network, loaded.renderer, inputs)
    except ScoreError as error:
        return [*checks, Check("golden scores", False, str(error))]
    wrong = [i for i, promised in enumerate(promised_ids) if promised != ids[i]]
    detail = "all equal" if not wrong else f"rows {wrong} of {GOLDEN} differ"
    checks.append(Check("golden ids", not wrong, detail))
    same = contract.saved_with == saved_with(place)
    tolerance = TOLERANCE if same else TOLERANCE_ACROSS
    worst = difference(saved, scores)
    where = "same machine and versions" if same else "other machine or versions"
    worst_row = int(np.argmax(np.abs(saved - scores)))
    detail = f"tolerance {tolerance:g} x max(1, |s|), {where}"
    if worst > tolerance:
        detail += f"; worst at row {worst_row}: saved {saved[worst_row]:.6f}, found {scores[worst_row]:.6f}"
    checks.append(Check("golden scores", worst <= tolerance, detail, worst))
    _, one_by_one = golden_scores(loaded.network, loaded.renderer, inputs, one_by_one=True)
    alone = difference(scores, one_by_one)
    checks.append(Check("batch size", alone <= TOLERANCE, "batched against one by one", alone))
    return checks
