"""The public surface, and that the light half stays light."""

import subprocess
import sys
import time

import rewardsmith


def in_fresh_process(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


def test_everything_public_is_there_and_sorted():
    assert list(rewardsmith.__all__) == sorted(rewardsmith.__all__)
    for name in rewardsmith.__all__:
        assert getattr(rewardsmith, name) is not None
    assert set(rewardsmith.__all__) < set(dir(rewardsmith))


def test_the_light_half_loads_no_torch():
    modules = "rewardsmith, rewardsmith.cli, rewardsmith.evaluation.pairwise, rewardsmith.data.io, rewardsmith.streaming, rewardsmith.runs"
    code = f"import sys, {modules}\nprint([m for m in ('torch', 'transformers', 'datasets') if m in sys.modules])"
    assert in_fresh_process(code).strip() == "[]"


def test_an_audit_of_a_function_loads_no_torch(tmp_path):
    file, data = tmp_path / "mine.py", tmp_path / "pairs.jsonl"
    file.write_text("def score(prompt, answer):\n    return len(answer)\n")
    row = '{{"prompt": "p {0}", "chosen": "a longer answer {0}", "rejected": "short {0}"}}\n'
    data.write_text("".join(row.format(i) for i in range(30)))
    code = (
        "import sys\nfrom rewardsmith.cli import main\n"
        f"assert main(['audit', '{file}:score', '{data}', '--probes', 'openings', '--against', '{data}']) == 0\n"
        "print([m for m in ('torch', 'transformers') if m in sys.modules])"
    )
    assert in_fresh_process(code).strip().endswith("[]")


def test_help_names_every_verb_and_loads_little():
    code = "import sys\nfrom rewardsmith.cli import main\nmain(['--help'])\nprint([m for m in ('torch', 'scipy', 'numpy') if m in sys.modules])"
    out = in_fresh_process(code)
    assert all(verb in out for verb in ("train", "score", "evaluate", "verify", "import", "demo"))
    assert out.strip().endswith("[]")
    # No assertion on seconds: the modules are what costs them. For the record, in the output of -rP:
    started = time.perf_counter()
    subprocess.run([sys.executable, "-m", "rewardsmith", "--help"], capture_output=True, check=True)
    print(f"--help took {time.perf_counter() - started:.2f} s")
