"""How other engines are started on a model folder, and with which route the result is held against the folder. Plain facts.

Which architecture an engine takes is read from their sources and documentation (vLLM's registry of sequence classifiers, the classifiers of Text Embeddings Inference); neither
engine is run by this project's tests. `rewardsmith verify --against` is the proof on the user's own machine.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from rewardsmith.model.pooling import reads_left_to_right

_VLLM_ENCODERS = {"bert", "roberta", "xlm-roberta", "modernbert"}
_TEI_ENCODERS = {"bert", "roberta", "xlm-roberta", "distilbert", "deberta-v2"}


@dataclass(frozen=True)
class Engine:
    """One engine and one folder.

    Args:
        name: of the engine.
        command: that starts it, with FOLDER for the folder; None where it cannot read the model.
        check: holds its scores against the folder's; None likewise.
        note: why not, or what to know.
    """

    name: str
    command: str | None
    check: str | None
    note: str

    def as_dict(self) -> dict[str, Any]:
        """For documents."""
        return {"name": self.name, "command": self.command, "check": self.check, "note": self.note}


def engines(*, model_type: str, own_class: bool, encoding: str, max_length: int) -> list[Engine]:
    """How vLLM and Text Embeddings Inference are started on a model folder.

    Args:
        model_type: of the backbone, "bert".
        own_class: whether the folder is of rewardsmith's class, which neither engine has.
        encoding: "text", "chat" or "pair".
        max_length: tokens of one input.
    """
    if own_class:
        note = "the pooling of this model is no class of transformers; serve it with rewardsmith, or train with pooling native"
        return [Engine(name, None, None, note) for name in ("vLLM", "TEI")]
    decoder = reads_left_to_right(model_type)
    return [_vllm(model_type, decoder, encoding, max_length), _tei(model_type, decoder, encoding, max_length)]


def _vllm(model_type: str, decoder: bool, encoding: str, max_length: int) -> Engine:
    if not decoder and model_type not in _VLLM_ENCODERS:
        return Engine("vLLM", None, None, f"no {model_type} classifier in its releases as far as is known here")
    route = "score" if encoding == "pair" else "classify"
    return Engine(
        "vLLM",
        f"vllm serve FOLDER --runner pooling --dtype float32 --max-model-len {max_length}",
        f"rewardsmith verify FOLDER --against http://127.0.0.1:8000/{route}",
        "without --dtype float32 it computes in bf16: add --precision bf16 to the check",
    )


def _tei(model_type: str, decoder: bool, encoding: str, max_length: int) -> Engine:
    if decoder or model_type not in _TEI_ENCODERS:
        what = "decoder classifiers" if decoder else f"{model_type} classifier"
        return Engine("TEI", None, None, f"no {what} in it as far as is known here")
    route = "rerank" if encoding == "pair" else "predict"
    cut = f"it cuts on the right at its own limit, this model at {max_length} tokens by its own policy"
    cpu = "; on a GPU it refuses DistilBERT classifiers in fp16" if model_type == "distilbert" else ""
    return Engine(
        "TEI",
        "text-embeddings-router --model-id FOLDER --dtype float32 --port 8080",
        f"rewardsmith verify FOLDER --against http://127.0.0.1:8080/{route}",
        f"ask for raw_scores, else scores are squashed; {cut}{cpu}",
    )


def engine_section(found: list[Engine]) -> str:
    """What a README says of them, in Markdown."""
    lines = [
        "## Serve it elsewhere",
        "",
        "Where a check passes, the engine gives this folder's scores for texts that fit. `rewardsmith serve FOLDER` gives them for all.",
        "",
    ]
    for engine in found:
        if engine.command is None:
            lines.append(f"- {engine.name}: {engine.note}.")
        else:
            lines.append(
                f"- {engine.name}: `{engine.command}`, then `{engine.check}`. {engine.note[0].upper()}{engine.note[1:]}."
            )
    return "\n".join(lines) + "\n"
