"""An exported folder: a graph for another program, with the tokenizer, the contract and the golden scores of the model that it was made of.

    model.onnx | model.xml + model.bin   ids and mask to score
    tokenizer files                      of the source
    rewardsmith.json                     its contract, with `backend`: {"name", "precision", "min_agreement"}
    golden.jsonl                         each row with `score`, as the graph gave it at export, and `reference`, as the network in float32 did
    manifest.json                        the source, the comparison, versions

There is no config.json and no model.safetensors: what loads checkpoints finds none here, and fails.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from rewardsmith.config import ScoringSettings
from rewardsmith.data.golden import INPUTS
from rewardsmith.data.schema import Pair
from rewardsmith.errors import ContractError, ModelError, ScoreError, SettingsError
from rewardsmith.model import artefact
from rewardsmith.model.agreement import compare_golden
from rewardsmith.model.artefact import CONTRACT, GOLDEN, TOLERANCE, TOLERANCE_ACROSS, TOLERANCE_BF16, Check, Contract
from rewardsmith.model.backends import GraphBackend
from rewardsmith.model.network import load_tokenizer, source_folder
from rewardsmith.model.render import Renderer
from rewardsmith.model.runtimes import open_graph
from rewardsmith.scores import Scores, checked
from rewardsmith.storage import file_sha256


@dataclass
class Exported:
    """What an exported folder holds once it is read."""

    backend: GraphBackend
    renderer: Renderer
    contract: Contract
    golden: Golden


@dataclass(frozen=True)
class Golden:
    """golden.jsonl of an exported folder: inputs, hashes of their ids, both scores."""

    inputs: list[Pair]
    ids: list[str]
    score: Scores
    reference: Scores

    @classmethod
    def read(cls, path: Path) -> Golden:
        """Read the file.

        Raises:
            ContractError: if it is not whole.
        """
        try:
            rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
            golden = cls(
                [(row["prompt"], row["answer"]) for row in rows],
                [row["ids"] for row in rows],
                checked([row["score"] for row in rows], len(INPUTS)),
                checked([row["reference"] for row in rows], len(INPUTS)),
            )
        except (OSError, ValueError, KeyError, TypeError, ScoreError) as error:
            raise ContractError(f"a whole {GOLDEN}", f"{error}", "Export the model again.") from error
        return golden

    def text(self) -> str:
        """The content of the file."""
        rows = zip(self.inputs, self.ids, self.score, self.reference, strict=True)
        documents = [
            {"prompt": prompt, "answer": answer, "ids": ids, "score": float(score), "reference": float(reference)}
            for (prompt, answer), ids, score, reference in rows
        ]
        return "".join(json.dumps(document, ensure_ascii=False) + "\n" for document in documents)


def is_exported(source: str | Path) -> bool:
    """Whether a MODEL argument is an exported folder."""
    path = Path(source)
    if not (path / CONTRACT).is_file() or (path / "config.json").exists():
        return False
    return artefact.read_contract(path).backend is not None


def contract_folder(model: str) -> Path:
    """The folder in which the contract of a MODEL argument lies: a model folder, that of a run, or an exported one.

    Raises:
        ModelError: if the model has no contract here.
    """
    folder = Path(model) if is_exported(model) else Path(source_folder(model))
    if not (folder / CONTRACT).is_file():
        raise ModelError(
            f"a model folder with {CONTRACT}",
            f"{model}, which has none",
            "Make one of it: rewardsmith import MODEL --out DIR.",
        )
    return folder


def identity(model: str) -> dict[str, str]:
    """What tells two models apart, without loading one: SHA-256 by file name, as the contract says or of all files of a folder; of a name on the hub, the name.

    Raises:
        ModelError: if there is no such model.
    """
    folder = Path(model) if is_exported(model) else Path(source_folder(model))
    if (folder / CONTRACT).is_file():
        return artefact.read_contract(folder).files
    if folder.is_dir():
        return {file.name: file_sha256(file) for file in sorted(folder.iterdir()) if file.is_file()}
    return {"name": model}


def load(source: str | Path, settings: ScoringSettings | None = None) -> Exported:
    """Read an exported folder; the graph and the text files must be those that its contract names.

    Raises:
        SettingsError: if a precision or a device is asked for that the export does not have.
        ContractError: if a file is another one.
        MissingExtraError: if the program that runs it is not installed.
        ModelError: if it cannot be run.
    """
    path, settings = Path(source), settings or ScoringSettings()
    contract = artefact.read_contract(path)
    backend = contract.backend or {}
    precision = str(backend.get("precision"))
    if settings.precision not in ("float32", precision):
        raise SettingsError(
            f"the precision of the export ({precision})",
            f"--precision {settings.precision}",
            "Leave --precision away, or export the model again in that precision.",
        )
    if settings.device not in ("auto", "cpu"):
        raise SettingsError("an exported model on the cpu", f"--device {settings.device}", "Score the model folder.")
    artefact.check_files(path, contract, names=tuple(contract.files))
    renderer = Renderer(load_tokenizer(str(path)), contract.render)
    artefact.check_renderer(renderer, contract)
    runtime = open_graph(str(backend.get("name")), path, precision)
    golden = Golden.read(path / GOLDEN)
    graph = GraphBackend(
        runtime,
        renderer,
        precision=precision,
        reference=golden.reference,
        batch_tokens=settings.batch_tokens,
    )
    return Exported(graph, renderer, contract, golden)


def verify(folder: str | Path) -> list[Check]:
    """Recompute what an exported folder claims: hashes, golden ids and scores, and how near it is to its reference.

    Raises:
        MissingExtraError: if the program that runs it is not installed.
        ContractError: if rewardsmith.json or golden.jsonl cannot be read.
    """
    path = Path(folder)
    contract = artefact.read_contract(path)
    checks = []
    for name, promised in contract.files.items():
        found = file_sha256(path / name) if (path / name).is_file() else "no such file"
        checks.append(Check(f"file {name}", found == promised, "as saved" if found == promised else "changed"))
    if not all(check.ok for check in checks):
        return checks
    try:
        exported = load(path)
        return [*checks, *prove(exported)]
    except ModelError as error:
        return [*checks, Check("load", False, str(error))]


def prove(exported: Exported) -> list[Check]:
    """Hold an exported model against its own golden.jsonl."""
    golden, backend = exported.golden, exported.contract.backend or {}
    table = artefact.golden_table(exported.renderer, golden.inputs)
    wrong = [i for i, digest in enumerate(table.digests()) if golden.ids[i] != f"{digest:016x}"]
    checks = [Check("golden ids", not wrong, "all equal" if not wrong else f"rows {wrong} of {GOLDEN} differ")]
    found = exported.backend.outputs(table)[:, 0]
    if not np.isfinite(found).all():
        return [*checks, Check("golden scores", False, "a score is not finite")]
    precision = exported.backend.precision
    tolerance = TOLERANCE_ACROSS if precision == "float32" else TOLERANCE_BF16
    worst = artefact.difference(golden.score, found)
    detail = f"tolerance {tolerance:g} x max(1, |s|) of {precision}, against {GOLDEN}"
    checks.append(Check("saved scores", worst <= tolerance, detail, worst))
    bound = float(backend.get("min_agreement", 1.0))
    checks += compare_golden(golden.reference, found, precision=precision, min_agreement=bound).checks
    alone = np.concatenate([exported.backend.outputs(table.take(np.array([i])))[:, 0] for i in range(len(table))])
    apart = artefact.difference(found, alone)
    within = TOLERANCE_BF16 if precision == "bf16" else TOLERANCE
    return [*checks, Check("batch size", apart <= within, "batched against one by one", apart)]
