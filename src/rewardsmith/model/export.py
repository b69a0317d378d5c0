"""Export a reward model to another program, and prove before the folder takes its name that it still is the same reward model."""

from __future__ import annotations

import importlib.metadata
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForSequenceClassification

from rewardsmith.config import ExportSettings, ScoringSettings
from rewardsmith.data.golden import INPUTS
from rewardsmith.data.schema import Preference
from rewardsmith.errors import ModelError, OutputError
from rewardsmith.manifest import FILE_NAME, Manifest, code_state, package_versions, without_paths
from rewardsmith.model import artefact, exported
from rewardsmith.model.agreement import Comparison, compare_golden, compare_pairs, pairs_to_compare
from rewardsmith.model.artefact import CONTRACT, GOLDEN, TOLERANCE, Check
from rewardsmith.model.backends import GraphBackend
from rewardsmith.model.engines import engine_section, engines
from rewardsmith.model.graphs import holds_numbers, write_onnx, write_openvino
from rewardsmith.model.modeling_rewardsmith import RewardsmithForSequenceClassification
from rewardsmith.model.network import Network, quiet_loading, source_folder
from rewardsmith.model.render import Renderer
from rewardsmith.model.reward_model import RewardModel
from rewardsmith.model.runtimes import PACKAGES, package
from rewardsmith.model.tracing import ScoreGraph, example_inputs
from rewardsmith.scores import Scores, checked
from rewardsmith.stats import Estimate
from rewardsmith.storage import atomic_folder, file_sha256, refuse_inside, write_json, write_text

_WRITERS = {"onnx": write_onnx, "openvino": write_openvino}


@dataclass(frozen=True)
class Export:
    """What an export came to. Where `ok` is False nothing was written."""

    ok: bool
    checks: list[Check]
    document: dict[str, Any]


@dataclass(frozen=True)
class _Reference:
    """The network in float32: what an export has to reproduce."""

    contract: artefact.Contract
    renderer: Renderer
    head: np.ndarray[Any, np.dtype[np.float32]]
    golden: exported.Golden
    pairs: list[Preference]
    scores: Scores
    """Of all chosen answers of `pairs`, then of all rejected ones."""
    data: dict[str, Any] | None


class _Refused(Exception):
    """Carries an export that failed its checks out of the folder that must not take its name."""

    def __init__(self, export: Export) -> None:
        super().__init__()
        self.export = export


def export_model(settings: ExportSettings, *, overwrite: bool = False, seed: int = 0) -> Export:
    """Export a model folder or run folder to `settings.out`, or to nothing where a check fails.

    Args:
        settings: see `ExportSettings`.
        overwrite: replace an earlier export that stands there.
        seed: of the intervals.

    Raises:
        OutputError: if the place may not be written.
        MissingExtraError: if the program is not installed.
        ModelError: if the model cannot be loaded, or its graph not be traced.
        DataError: if no pair of `settings.data` has two answers and a winner.
    """
    out = Path(settings.out)
    _check_out(out, settings, overwrite)
    for name in PACKAGES.get(settings.to, ()):
        package(name, settings.to)
    source = source_folder(settings.model)
    reference = _reference(settings, source)
    try:
        with atomic_folder(out) as folder:
            write = _write_plain if settings.to == "hf" else _write_graph
            checks, document = write(settings, source, reference, folder, seed)
            export = Export(all(check.ok for check in checks), checks, _document(settings, checks, document))
            if not export.ok:
                raise _Refused(export)
            write_json(folder / FILE_NAME, _manifest(settings, reference, export))
    except _Refused as refused:
        return refused.export
    return export


def _check_out(out: Path, settings: ExportSettings, overwrite: bool) -> None:
    refuse_inside(out, settings.model, *([settings.data] if settings.data else []))
    found = Manifest.read(out / FILE_NAME)
    ours = found is not None and found.document.get("verb") == "export"
    if out.exists() and not (overwrite and ours):
        raise OutputError(
            "a new folder for --out, or with --overwrite one of an earlier export",
            f"{out}, which exists",
            "Choose another --out.",
        )


def _reference(settings: ExportSettings, source: str) -> _Reference:
    model = RewardModel.load(source, ScoringSettings(device="cpu"))
    pairs, data = pairs_to_compare(settings.data, skip_bad=settings.skip_bad) if settings.data else ([], None)
    ids, golden = artefact.golden_scores(model.network, model.renderer)
    scores = model.score([p.chosen_pair for p in pairs] + [p.rejected_pair for p in pairs])
    head = model.network.head_module.weight.detach().numpy().copy()
    kept = exported.Golden(list(INPUTS), ids, golden, golden)
    return _Reference(model.contract, model.renderer, head, kept, pairs, scores, data)


def _write_graph(
    settings: ExportSettings, source: str, reference: _Reference, folder: Path, seed: int
) -> tuple[list[Check], dict[str, Any]]:
    """Trace, save and open again; returns what the opened graph is found to be."""
    example = example_inputs(reference.renderer)
    graph = ScoreGraph(_fresh_network(source))
    _WRITERS[settings.to](graph, example, folder, settings.precision)
    del graph  # as large as the model
    checks = [Check("head", holds_numbers(folder, reference.head), "float32, to the bit, in the exported graph")]
    reference.renderer.tokenizer.save_pretrained(folder)
    _write_contract(settings, reference, folder)
    write_text(folder / GOLDEN, reference.golden.text())
    opened = exported.load(folder)
    table = artefact.golden_table(opened.renderer)
    # The graph's own scores take their place beside the reference's before anything is held against them.
    golden = replace(reference.golden, score=checked(opened.backend.outputs(table)[:, 0], len(table)))
    write_text(folder / GOLDEN, golden.text())
    opened.golden = golden
    checks += exported.prove(opened)
    kept = {"precision": settings.precision, "min_agreement": settings.min_agreement}
    document: dict[str, Any] = {
        "golden": compare_golden(golden.reference, golden.score, **kept).document,  # type: ignore[arg-type]
        "data": None,
    }
    if reference.pairs:
        compared = _compare_on_data(settings, reference, opened.backend, seed)
        checks += compared.checks
        document["data"] = {**(reference.data or {}), **compared.document}
    document["size"] = sum((folder / name).stat().st_size for name in _files(folder) if name.startswith("model."))
    return checks, document


def _fresh_network(source: str) -> Network:
    """The network once more: the one that gave the reference may have been set up for packed rows, which no tracer can follow."""
    network = artefact.load(source).network
    if network.head_module.out_features != 1:
        raise ModelError("a network with one score", f"{network.head_module.out_features}", "Export the whole model.")
    return network


def _compare_on_data(settings: ExportSettings, reference: _Reference, backend: GraphBackend, seed: int) -> Comparison:
    pairs = reference.pairs
    tokens = reference.renderer.encode([p.chosen_pair for p in pairs] + [p.rejected_pair for p in pairs])
    found = checked(backend.outputs(tokens)[:, 0], len(tokens))
    return compare_pairs(
        pairs,
        reference.scores,
        found,
        precision=settings.precision,
        min_agreement=settings.min_agreement,
        seed=seed,
    )


def _write_contract(settings: ExportSettings, reference: _Reference, folder: Path) -> None:
    contract = replace(
        reference.contract,
        files={name: file_sha256(folder / name) for name in _files(folder)},
        saved_with=artefact.saved_with(torch.device("cpu")) | _versions(settings.to),
        backend={"name": settings.to, "precision": settings.precision, "min_agreement": settings.min_agreement},
    )
    write_json(folder / CONTRACT, contract.as_dict())


def _files(folder: Path) -> list[str]:
    """The graph, whatever number of files it takes, and the text files."""
    return sorted(path.name for path in folder.iterdir() if path.name not in (CONTRACT, GOLDEN, FILE_NAME))


def _versions(backend: str) -> dict[str, str]:
    return {name: importlib.metadata.version(name) for name in PACKAGES.get(backend, ())}


def _write_plain(
    settings: ExportSettings, source: str, reference: _Reference, folder: Path, seed: int
) -> tuple[list[Check], dict[str, Any]]:
    """A checkpoint as transformers knows it and nothing else, loaded again the plain way."""
    network = _fresh_network(source)
    artefact.write_checkpoint(network, reference.renderer.tokenizer, folder)
    # Only a class of our own needs code from the folder; it is that of this package, which is run here in its place.
    loader: Any = AutoModelForSequenceClassification if network.native else RewardsmithForSequenceClassification
    with quiet_loading():
        model = loader.from_pretrained(folder)
    plain = replace(network, model=model.eval())
    found = _plain_scores(plain, reference.renderer)
    worst = artefact.difference(reference.golden.reference, found)
    how = "plainly" if network.native else "with trust_remote_code=True"
    checks = [
        Check("golden scores", worst <= TOLERANCE, f"loads {how}: within {TOLERANCE:g} x max(1, |s|)", worst),
        Check("head", model.config.num_labels == 1, "one label, no function over the score"),
    ]
    spec = reference.renderer.spec
    elsewhere = engines(
        model_type=network.backbone_type,
        own_class=not network.native,
        encoding=spec.encoding,
        max_length=spec.max_length,
    )
    write_text(folder / "README.md", _usage(reference, native=network.native) + "\n" + engine_section(elsewhere))
    return checks, {
        "loads": how,
        "golden": {"max_difference": worst},
        "data": None,
        "engines": [engine.as_dict() for engine in elsewhere],
    }


def _plain_scores(network: Network, renderer: Renderer) -> Scores:
    """Logits of transformers' own class, one text at a time, as its own forward pools them."""
    table = artefact.golden_table(renderer)
    scores = []
    for i in range(len(table)):
        ids = torch.from_numpy(table.row(i).astype(np.int64))[None]
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        if renderer.uses_types:
            inputs["token_type_ids"] = (torch.arange(ids.shape[1]) >= int(table.second[i])).long()[None]
        with torch.inference_mode():
            scores.append(float(network.model(**inputs).logits[0, 0]))
    return checked(scores, len(table))


def _usage(reference: _Reference, *, native: bool) -> str:
    """README.md of a plain folder: how a text must look, which no file of transformers says."""
    spec = reference.renderer.spec
    shape = {
        "text": f"the text {json.dumps(spec.template)} with prompt and answer put in",
        "chat": "the conversation through the tokenizer's chat template, without special tokens added again",
        "pair": "prompt and answer as two segments",
    }[spec.encoding]
    code = "" if native else " It is of a class in modeling_rewardsmith.py: load it with `trust_remote_code=True`."
    return (
        "# Reward model\n\n"
        f"A sequence classifier with one label: its logit is the raw score.{code}\n\n"
        f"Texts are {shape}, at most {spec.max_length} tokens. rewardsmith cuts longer ones by `{spec.truncation}`, other tools cut the end.\n"
    )


def comparison_lines(document: dict[str, Any]) -> list[str]:
    """What people read of a comparison on data: both accuracies and their paired difference, with intervals."""
    data = document.get("data")
    if data is None:
        return []
    told = {name: Estimate(**data[name]) for name in ("accuracy_reference", "accuracy", "difference")}
    return [
        f"accuracy on {data['source']}: {told['accuracy']} exported, {told['accuracy_reference']} before",
        f"difference, paired: {told['difference'].value:+.4f} [{told['difference'].low:+.4f}, {told['difference'].high:+.4f}]",
    ]


def _document(settings: ExportSettings, checks: Sequence[Check], found: dict[str, Any]) -> dict[str, Any]:
    return {
        "verb": "export",
        "model": Path(settings.model).name,
        "to": settings.to,
        "precision": settings.precision,
        "min_agreement": settings.min_agreement,
        "ok": all(check.ok for check in checks),
        "checks": [check.as_dict() for check in checks],
        **found,
    }


def _manifest(settings: ExportSettings, reference: _Reference, export: Export) -> dict[str, Any]:
    return {
        "tool": "rewardsmith",
        **export.document,
        "settings": without_paths(settings.model_dump()),
        "source": {"name": Path(settings.model).name, "files": reference.contract.files},
        "code": code_state(),
        "versions": package_versions() | _versions(settings.to),
    }
