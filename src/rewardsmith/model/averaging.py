"""One reward model of several: their scores put on one scale, then their weights averaged (WARM, Rame et al. 2024, arXiv 2401.12187).

Bradley-Terry pins neither the level nor, under a finite number of steps, the size of scores: of two members that agree on every pair one may shout. Without
an alignment it would weigh more in the average. Weights may be averaged where the members were fine-tuned from one start; of others the average is noise.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.table import Table
from torch import Tensor

from rewardsmith import metrics
from rewardsmith.config import Device, ScoringSettings
from rewardsmith.data import io
from rewardsmith.data.faults import EMPTY, content_fault
from rewardsmith.data.schema import Preference, prompt_key
from rewardsmith.errors import ContractError, DataError, ModelError, OutputError, SettingsError
from rewardsmith.manifest import FILE_NAME, Manifest, package_versions
from rewardsmith.model import artefact
from rewardsmith.model.network import Network, read_config, source_folder
from rewardsmith.model.render import Renderer
from rewardsmith.model.reward_model import RewardModel
from rewardsmith.stats import Estimate, Floats, cluster_codes, mean
from rewardsmith.storage import file_sha256, refuse_inside

# Of a config.json: where and by what it was written, nothing of what the network computes.
_RATED = frozenset({"regression", "ordinal", "attributes"})
_NOT_ARCHITECTURE = {"_name_or_path", "transformers_version", "dtype", "torch_dtype", "use_cache"}
_TEXT_FILES = ("tokenizer.json", "chat_template.jinja")


@dataclass(frozen=True)
class Head:
    """A linear score head in float64: weight (1, H) and bias (1,), or None where the class has no bias."""

    weight: Tensor
    bias: Tensor | None


@dataclass(frozen=True)
class Scale:
    """Mean and standard deviation of a member's scores, on texts that all members scored."""

    mean: float
    std: float


@dataclass(frozen=True)
class Alignment:
    """What becomes of a score s: factor * s + shift, with a factor above 0, so that no order changes."""

    factor: float
    shift: float


def alignments(scales: Sequence[Scale]) -> list[Alignment]:
    """The maps that give every member the mean of all means and the mean of all standard deviations.

    >>> alignments([Scale(0.0, 1.0), Scale(4.0, 3.0)])
    [Alignment(factor=2.0, shift=2.0), Alignment(factor=0.6666666666666666, shift=-0.6666666666666665)]

    Raises:
        ModelError: if a member gives every text the same score.
    """
    for number, scale in enumerate(scales, start=1):
        if not (np.isfinite(scale.mean) and np.isfinite(scale.std) and scale.std > 0):
            raise ModelError(
                "scores that differ between texts, to put members on one scale",
                f"mean {scale.mean:g} and standard deviation {scale.std:g} of member {number}",
                "Leave that member out, or give other texts with --data.",
            )
    level, size = float(np.mean([s.mean for s in scales])), float(np.mean([s.std for s in scales]))
    return [Alignment(size / scale.std, level - scale.mean * size / scale.std) for scale in scales]


def aligned_heads(heads: Sequence[Head], scales: Sequence[Scale]) -> list[Head]:
    """The heads whose scores have one mean and one standard deviation on the texts of `scales`.

    A head without a bias keeps its level, which no difference of scores can see.

    Raises:
        ModelError: if a member gives every text the same score.
    """
    return [_aligned(head, alignment) for head, alignment in zip(heads, alignments(scales), strict=True)]


def _aligned(head: Head, alignment: Alignment) -> Head:
    bias = None if head.bias is None else head.bias.double() * alignment.factor + alignment.shift
    return Head(head.weight.double() * alignment.factor, bias)


def average(states: Iterable[Mapping[str, Tensor]], weights: Sequence[float] | None = None) -> dict[str, Tensor]:
    """The weighted mean of state dictionaries, float64; one is held at a time, so `states` may be a generator that loads them.

    Args:
        states: of networks of one shape.
        weights: of each, above 0; equal where None.

    Raises:
        ModelError: if names, shapes or whole numbers differ, or nothing came.
    """
    total: dict[str, Tensor] = {}
    sum_of_weights = 0.0
    for number, state in enumerate(states):
        weight = 1.0 if weights is None else weights[number]
        sum_of_weights += weight
        if number == 0:
            total = {
                name: tensor.double() * weight if tensor.is_floating_point() else tensor.clone()
                for name, tensor in state.items()
            }
            continue
        _require_same_tensors(total, state)
        for name, tensor in state.items():
            if tensor.is_floating_point():
                total[name] += tensor.double() * weight
    if not total:
        raise ModelError("at least one set of weights", "none", "Name the members.")
    return {name: tensor / sum_of_weights if tensor.is_floating_point() else tensor for name, tensor in total.items()}


def _require_same_tensors(first: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> None:
    differing = sorted(first.keys() ^ other.keys())
    differing += [name for name in first.keys() & other.keys() if first[name].shape != other[name].shape]
    whole = [name for name in first.keys() & other.keys() if not first[name].is_floating_point()]
    differing += [name for name in whole if not differing and not torch.equal(first[name], other[name])]
    if differing:
        raise ModelError(
            "members whose weights have one set of names and shapes",
            f"other ones: {', '.join(differing[:3])}",
            "Average models that were fine-tuned from one start.",
        )


@dataclass(frozen=True)
class Member:
    """A model folder that goes into an average.

    Args:
        name: for tables: the last part of what the user wrote.
        folder: of the model.
        sha256: of its weights.
        contract: what it promises.
        config: its config.json.
        manifest: its provenance, as far as it has one.
    """

    name: str
    folder: str
    sha256: str
    contract: artefact.Contract
    config: dict[str, Any]
    manifest: dict[str, Any]


def read_member(source: str) -> Member:
    """A model folder or run folder, without its weights, which must be those that its contract names.

    Raises:
        ContractError: if it has no contract, or other weights.
        ModelError: if there is no such folder.
    """
    folder = source_folder(source)
    path = Path(folder)
    if not (path / artefact.CONTRACT).is_file():
        raise ContractError(
            f"a model folder with {artefact.CONTRACT}, for how a text is read is part of what is averaged",
            f"{path.name!r} without it",
            "Make one: rewardsmith import SRC --out DIR.",
        )
    contract = artefact.read_contract(path)
    weights = path / artefact.WEIGHTS
    found = file_sha256(weights) if weights.is_file() else "none"
    if found != contract.files.get(artefact.WEIGHTS):
        raise ContractError(
            f"the {artefact.WEIGHTS} that was saved with {source}", "another one", "Restore the folder."
        )
    try:
        manifest = json.loads((path / FILE_NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError):  # a folder may have lost it; then its start is not known, and that is said
        manifest = {}
    given = Path(source).resolve()
    name = given.parent.name if given.name == "model" else given.name
    return Member(name, folder, found, contract, read_config(folder), manifest)


def read_members(sources: Sequence[str]) -> list[Member]:
    """All members, named apart.

    Raises:
        SettingsError: if there are fewer than two, or two with the same weights.
        ModelError: (or ContractError) naming what differs between two of them.
    """
    if len(sources) < 2:
        raise SettingsError("two or more models to average", str(len(sources)), "Name the others.")
    members: list[Member] = []
    for source in sources:
        member = read_member(source)
        twin = next((other for other in members if other.sha256 == member.sha256), None)
        if twin is not None:
            raise SettingsError(
                "different models", f"{twin.name} and {member.name} with the same weights", "Name each once."
            )
        if any(other.name == member.name for other in members):
            member = replace(member, name=f"{member.name} ({len(members) + 1})")
        members.append(member)
    for member in members[1:]:
        require_alike(members[0], member)
    return members


def require_alike(first: Member, other: Member) -> None:
    """Refuse two members whose weights mean different things.

    Raises:
        ModelError: naming what differs.
    """
    differing = _differing(_architecture(first.config), _architecture(other.config))
    parts = {
        "architecture": sorted(differing),
        "pooling": []
        if first.contract.pooling == other.contract.pooling
        else [first.contract.pooling, other.contract.pooling],
        "render spec": sorted(_differing(first.contract.render.as_dict(), other.contract.render.as_dict())),
        "tokenizer": [n for n in _TEXT_FILES if first.contract.files.get(n) != other.contract.files.get(n)],
        "special tokens": sorted(_differing(first.contract.special_tokens, other.contract.special_tokens)),
        "head": sorted(_differing(first.contract.head, other.contract.head)),
        "loss": sorted({_loss_of(first), _loss_of(other)} if _loss_of(first) != _loss_of(other) else ()),
    }
    found = [f"{part} ({', '.join(names[:4])})" for part, names in parts.items() if names]
    if _loss_of(first) in _RATED:
        raise ModelError(
            "members of a loss of pairs or lists",
            f"{first.name}, of the loss {_loss_of(first)}: its scores have the units of ratings, which one scale for all would take away",
            "Average such runs by their scores.",
        )
    if found:
        raise ModelError(
            "models that were fine-tuned from one start and read texts in one way",
            f"{first.name} and {other.name}, which differ in {'; '.join(found)}",
            "Average only runs that differ in seed, data or how they were trained.",
        )


def _loss_of(member: Member) -> str:
    return str((member.contract.objective or {}).get("loss", "unknown"))


def _architecture(config: Mapping[str, Any]) -> dict[str, Any]:
    return {
        key: _architecture(value) if isinstance(value, Mapping) else value
        for key, value in config.items()
        if key not in _NOT_ARCHITECTURE
    }


def _differing(first: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    return [key for key in first.keys() | other.keys() if first.get(key) != other.get(key)]


def shared_start(members: Sequence[Member]) -> dict[str, Any]:
    """What the manifests say of the weights that the members started from: `warnings` is empty where all is known and the same.

    Returns:
        `checked`: a sentence; `warnings`: a list of them.
    """
    starts = {
        m.name: (m.manifest.get("model", {}).get("source"), m.manifest.get("identity", {}).get("model"))
        for m in members
    }
    unknown = [name for name, start in starts.items() if None in start]
    if unknown:
        return {
            "checked": "the weights alone cannot show a common start",
            "warnings": [f"no record of the model that {', '.join(unknown)} started from: judge the average on --data"],
        }
    checked = "by their manifests: " + "; ".join(f"{name} from {start[0]}" for name, start in starts.items())
    if len({start[1] for start in starts.values()}) > 1:
        return {"checked": checked, "warnings": [f"the members started from different weights ({checked})"]}
    heads = {m.name: str(m.manifest["model"].get("head")) for m in members}
    if len(set(heads.values())) > 1:
        told = ", ".join(f"{name}: {head}" for name, head in heads.items())
        warning = (
            f"the members started from one backbone but from different heads ({told}); to share the head too, train one reward model first "
            "(freeze = encoder is enough) and start all members from it"
        )
        return {"checked": checked, "warnings": [warning]}
    return {"checked": checked, "warnings": []}


@dataclass(frozen=True)
class _Judged:
    """Pairs with two answers and a winner, how many had not, and the scores by member, float64 (2, n): chosen, rejected."""

    pairs: list[Preference]
    left_out: int
    scores: dict[str, Floats]


def average_folders(
    sources: Sequence[str],
    out: Path,
    *,
    pairs: Sequence[Preference] | None = None,
    device: Device = "auto",
    overwrite: bool = False,
    seed: int = 0,
) -> dict[str, Any]:
    """Make one model folder of several: the document of `rewardsmith average --json`.

    The order of the members changes no byte of the weights.

    Args:
        sources: model folders or run folders, two or more.
        out: the folder to make.
        pairs: to judge the members and the average on, and to align on where the contracts do not do.
        device: where pairs are scored.
        overwrite: replace an average that stands in `out`.
        seed: of the intervals.

    Raises:
        SettingsError, ModelError: see `read_members` and `scales_of`.
        OutputError: if `out` exists and may not be replaced.
        DataError: if no pair has two answers and a winner.
    """
    _check_out(out, sources, overwrite)
    given = read_members(sources)
    members = sorted(given, key=lambda member: member.sha256)
    judged = None if pairs is None else _score_all(members, pairs, device)
    scales, aligned_on = scales_of(members, None if judged is None else judged.scores)
    maps = alignments(scales)
    last = artefact.load(members[-1].folder)
    network, renderer = last.network, last.renderer
    network.model.load_state_dict(average(_states(members, maps)))
    scores = None if judged is None else _score(network, renderer, last.contract, judged.pairs, device)
    normaliser = None
    if judged is not None and scores is not None:
        normaliser = artefact.Normaliser(
            float(scores.mean()), float(scores.std()), scores.size, io.fingerprint(judged.pairs)
        )
    document: dict[str, Any] = {
        "verb": "average",
        "members": {
            member.name: {"weights_sha256": member.sha256, "scale": asdict(scale), **asdict(alignment)}
            for member, scale, alignment in sorted(
                zip(members, scales, maps, strict=True), key=lambda one: given.index(one[0])
            )
        },
        "aligned_on": aligned_on,
        "start": shared_start(given),
    }
    dtypes = sorted({member.contract.training_dtype for member in members})
    artefact.save(
        network,
        renderer,
        out,
        training_dtype=dtypes[0] if len(dtypes) == 1 else f"mixed: {', '.join(dtypes)}",
        manifest={"tool": "rewardsmith", **document, "versions": package_versions()},
        normaliser=normaliser,
        # What the members' losses learned (a threshold, say) is on their own scales, and is not carried over.
        objective=None if members[0].contract.objective is None else {"loss": _loss_of(members[0])},
    )
    if judged is not None and scores is not None:
        shifted = [
            alignment.factor * judged.scores[m.name] + alignment.shift
            for m, alignment in zip(members, maps, strict=True)
        ]
        ordered = {member.name: judged.scores[member.name] for member in given}
        document |= {"without_winner": judged.left_out}
        document |= compare(judged.pairs, ordered, average=scores, ensemble=np.mean(shifted, axis=0), seed=seed)
    return document


def _check_out(out: Path, sources: Sequence[str], overwrite: bool) -> None:
    refuse_inside(out, *sources)
    found = Manifest.read(out / FILE_NAME)
    ours = found is not None and found.document.get("verb") == "average"
    if out.exists() and not (overwrite and ours):
        raise OutputError(
            "a new folder for --out, or with --overwrite one of an earlier average",
            f"{out}, which exists",
            "Choose another --out.",
        )


def scales_of(members: Sequence[Member], scores: Mapping[str, Floats] | None) -> tuple[list[Scale], dict[str, Any]]:
    """Each member's scale on the same texts, and which these were: those of the contracts if all name the same data, else those of `scores`.

    Raises:
        SettingsError: if neither is there.
    """
    normalisers = [member.contract.normaliser for member in members]
    hashes = {normaliser.data_sha256 for normaliser in normalisers if normaliser is not None}
    if len(hashes) == 1 and None not in normalisers:
        found = [normaliser for normaliser in normalisers if normaliser is not None]
        said = {"texts": "of the normaliser in the contracts", "n": found[0].n, "data_sha256": found[0].data_sha256}
        return [Scale(normaliser.mean, normaliser.std) for normaliser in found], said
    if scores is None:
        raise SettingsError(
            "the scores of all members on the same texts, to put them on one scale",
            "contracts whose normalisers are absent or of different data",
            "Give --data PAIRS: all members score its answers.",
        )
    arrays = [scores[member.name] for member in members]
    said = {"texts": "both answers of each pair of --data", "n": int(arrays[0].size)}
    return [Scale(float(array.mean()), float(array.std())) for array in arrays], said


def _states(members: Sequence[Member], maps: Sequence[Alignment]) -> Iterator[dict[str, Tensor]]:
    """The weights of each member with its head aligned, loaded when their turn comes."""
    for member, alignment in zip(members, maps, strict=True):
        network = artefact.load(member.folder).network
        state = dict(network.model.state_dict())
        key = f"{network.head_name}."
        head = _aligned(Head(state[f"{key}weight"], state.get(f"{key}bias")), alignment)
        state[f"{key}weight"] = head.weight
        if head.bias is not None:
            state[f"{key}bias"] = head.bias
        yield state


def _score_all(members: Sequence[Member], pairs: Sequence[Preference], device: Device) -> _Judged:
    usable = [pair for pair in pairs if not pair.tie and content_fault(pair) != EMPTY]
    if not usable:
        raise DataError(
            "at least one pair with two answers and a winner", f"{len(pairs)} rows without", "Check the data."
        )
    scores = {}
    for member in members:
        loaded = artefact.load(member.folder)
        scores[member.name] = _score(loaded.network, loaded.renderer, loaded.contract, usable, device)
    return _Judged(usable, len(pairs) - len(usable), scores)


def _score(
    network: Network, renderer: Renderer, contract: artefact.Contract, pairs: Sequence[Preference], device: Device
) -> Floats:
    """Float32 scores as float64, (2, n); the network comes back to the CPU, where it is saved."""
    texts = [pair.chosen_pair for pair in pairs] + [pair.rejected_pair for pair in pairs]
    scores = RewardModel(network, renderer, contract, ScoringSettings(device=device)).score(texts)
    network.model.to("cpu")
    return scores.astype(np.float64).reshape(2, -1)


def compare(
    pairs: Sequence[Preference], members: Mapping[str, Floats], *, average: Floats, ensemble: Floats, seed: int = 0
) -> dict[str, Any]:
    """Accuracy of each member, of the average and of the mean of the aligned scores, and the average against each of the others, paired.

    Args:
        pairs: (n).
        members: scores by name, (2, n): chosen, rejected.
        average: of the averaged weights.
        ensemble: the mean of the members' aligned scores, which costs a pass of every member.
        seed: of the intervals.
    """
    clusters = cluster_codes([prompt_key(pair.prompt) for pair in pairs])
    others = {**members, "mean of the aligned scores": ensemble}
    won = metrics.wins(average[0] - average[1])
    return {
        "num_pairs": len(pairs),
        "accuracy": {
            name: metrics.accuracy(scores[0] - scores[1], clusters, seed=seed).as_dict()
            for name, scores in {**others, "average of the weights": average}.items()
        },
        "average_minus": {
            name: mean(won - metrics.wins(scores[0] - scores[1]), clusters, seed=seed).as_dict()
            for name, scores in others.items()
        },
    }


def accuracy_table(document: Mapping[str, Any]) -> Table:
    """The members, the ensemble and the average side by side."""
    title = f"accuracy on {document['num_pairs']:,} pairs (ties one half), {document['without_winner']:,} without a winner left out"
    table = Table(title=title, title_justify="left")
    table.add_column("", overflow="fold")
    for column in ("value", "95 % interval", "average minus it, paired"):
        table.add_column(column, justify="right")
    for name, values in document["accuracy"].items():
        other = document["average_minus"].get(name)
        paired = "" if other is None else f"{other['value']:+.3f} {_interval(other)}"
        table.add_row(name, f"{values['value']:.3f}", _interval(values), paired, style="" if other else "bold")
    return table


def _interval(document: Mapping[str, Any]) -> str:
    estimate = Estimate(**document)
    return rf"\[{estimate.low:.3f}, {estimate.high:.3f}]"
