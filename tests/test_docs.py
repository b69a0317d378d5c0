"""Every command block of the documentation runs: with a tiny model by default, to the letter with the real one in the slow tests."""

import contextlib
import json
import re
import shlex
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

from rewardsmith.cli import main

ROOT = Path(__file__).resolve().parents[1]
PAGES = (
    "README.md",
    "docs/guide.md",
    "docs/data.md",
    "docs/formats.md",
    "docs/lint.md",
    "docs/commands.md",
    "docs/losses.md",
    "docs/sweep.md",
    "docs/frozen.md",
    "docs/speed.md",
    "docs/export.md",
    "docs/bulk.md",
    "docs/serve.md",
    "docs/evaluating.md",
    "docs/attributions.md",
    "docs/learning_curve.md",
    "docs/public_benchmarks.md",
    "docs/report.md",
    "docs/audit.md",
    "docs/attack_search.md",
    "docs/over_optimisation.md",
    "docs/prompt_use.md",
    "docs/shift.md",
    "docs/rewards.md",
    "docs/best_of_n.md",
    "docs/win_rates.md",
    "docs/guardrail.md",
    "docs/watch.md",
    "docs/ppo.md",
    "docs/scale.md",
    "docs/reproduce.md",
    "docs/cluster.md",
    "docs/streaming.md",
    "docs/rl_runs.md",
)
# Several trainings each, or a Ray of their own: `make test-all` runs them.
LONG = ("docs/bulk.md", "docs/learning_curve.md", "docs/ppo.md", "docs/reproduce.md", "docs/sweep.md")
_BLOCK = re.compile(r"^```(bash|python)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(page):
    return _BLOCK.findall((ROOT / page).read_text(encoding="utf-8"))


def quick(words, tiny):
    """The same command with a tiny model and one epoch."""
    words = [tiny if word == "minilm" else word for word in words]
    if words[0] == "reproduce":
        words += ["--model", tiny]
    if words[0] in ("demo", "train"):
        words += ["--set", "epochs=1", "--set", "max_length=64"]
    if words[0] == "demo":
        words += ["--model", tiny, "--set", "learning_rate=0.003"]  # at the usual rate so small a model learns nothing
    return words


@contextlib.contextmanager
def served(words):
    """A server that a page starts, until the page ends."""
    command = [sys.executable, "-m", "rewardsmith", *words, "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None and process.stderr is not None
            line = process.stdout.readline()
            assert line, process.stderr.read()
            url = json.loads(line)["url"]
            while httpx.get(f"{url}/ready").status_code != 200:
                time.sleep(0.1)
            yield
        finally:
            process.terminate()
            process.communicate(timeout=60)


def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def run_page(page, change):
    port = str(free_port())
    with contextlib.ExitStack() as servers:
        for language, text in blocks(page):
            text = text.replace("8000", port)
            if language == "python":
                found = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, check=False)
                assert found.returncode == 0, f"{page}: {text}\n{found.stderr}"
                continue
            for line in text.splitlines():
                words = shlex.split(line)
                if words[:2] == ["rewardsmith", "serve"]:
                    servers.enter_context(served(words[1:]))
                elif words[0] == "rewardsmith":
                    assert main(change(words[1:])) == 0, f"{page}: {line}"
                else:
                    subprocess.run(line, shell=True, check=True, capture_output=True)


@pytest.mark.parametrize(
    "page", [pytest.param(page, marks=pytest.mark.slow if page in LONG else ()) for page in PAGES if blocks(page)]
)
def test_every_block_runs(page, tiny, in_folder, capsys):
    model = tiny("bert")
    run_page(page, lambda words: quick(words, model))


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page)])
def test_every_block_runs_as_it_stands(page, minilm, in_folder, capsys):
    run_page(page, lambda words: words)


def test_links_between_pages_lead_somewhere():
    for page in [*PAGES, "CONTRIBUTING.md", "docs/results.md", "docs/benchmarks.md", "docs/design/decisions.md"]:
        text = (ROOT / page).read_text(encoding="utf-8")
        for target in re.findall(r"\]\((?!http)([^)#]+)\)", text):
            assert ((ROOT / page).parent / target).exists(), f"{page} -> {target}"


def test_every_verb_is_documented():
    from typer.main import get_command

    from rewardsmith.cli import app

    page = (ROOT / "docs/commands.md").read_text(encoding="utf-8")
    for verb in get_command(app).commands:  # type: ignore[attr-defined]
        assert f"`{verb} " in page, verb
