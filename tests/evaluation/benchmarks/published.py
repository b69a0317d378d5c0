"""Small files of every benchmark in the format its authors publish; a right answer begins with "right", a wrong one with "wrong"."""

import json
from pathlib import Path

import datasets

from rewardsmith.evaluation.benchmarks import BENCHMARKS
from rewardsmith.evaluation.benchmarks.rmb_scenarios import GOALS


def _write(path: Path, rows: list[dict]) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(rows) if path.suffix == ".json" else "".join(json.dumps(row) + "\n" for row in rows)
    path.write_text(text, encoding="utf-8")
    return str(path)


def _pair(number: object) -> dict:
    return {"prompt": f"p {number}", "chosen": f"right {number}", "rejected": f"wrong {number}"}


def rewardbench(folder: Path) -> str:
    subsets = BENCHMARKS["rewardbench"].subsets
    rows = [
        _pair(f"{name} {i}") | {"id": i, "subset": name, "chosen_model": "m", "rejected_model": "n"}
        for name in subsets
        for i in range(8)
    ]
    return _write(folder / "filtered.jsonl", rows)


def rewardbench2(folder: Path) -> str:
    rows = []
    for name in ("Factuality", "Precise IF", "Math", "Safety", "Focus"):
        for i in range(24):
            wrong = [f"wrong {name} {i} {k}" for k in range(3)]
            rows.append({"id": f"{len(rows)}", "prompt": f"{name} {i}", "subset": name, "num_correct": 1})
            rows[-1] |= {"chosen": [f"right {name} {i}"], "rejected": wrong, "models": ["m"] * 4}
    for i in range(20):
        for kind, count in (("ref", 1), ("tied", 3)):
            rows.append({"id": f"{kind}:{i}", "prompt": f"{kind} {i}", "subset": "Ties", "num_correct": count})
            right = [f"right {kind} {i} {k}" for k in range(count)]
            rows[-1] |= {"chosen": right, "rejected": [f"wrong {kind} {i} {k}" for k in range(3)]}
    return _write(folder / "test.jsonl", rows)


def rm_bench(folder: Path) -> str:
    rows = []
    for domain in BENCHMARKS["rm-bench"].subsets:
        for i in range(12):
            sides = {"chosen": "right", "rejected": "wrong"}
            answers = {side: [f"{word} {domain} {i} {k}" for k in range(3)] for side, word in sides.items()}
            rows.append({"id": f"{domain}/{i}", "prompt": f"{domain} {i}", "domain": domain, **answers})
    _write(folder / "rm-bench" / "chat_filtered.json", rows[:12])  # beside the whole, as in the repository
    return _write(folder / "rm-bench" / "total_dataset.json", rows) and str(folder / "rm-bench")


def _rmb(folder: Path, kind: str, count: int) -> str:
    number = 0
    for goal, names in GOALS.items():
        for name in names:
            rows = []
            path = f"{kind}/{goal.title()}/" + "/".join(part.replace("_", " ").title() for part in name.split("/")[1:])
            for i in range(count):
                number += 1
                turns = [{"role": "user", "content": f"{name} {i}", "language": "English"}]
                row = {"conversation_input": turns, "category_path": path}
                if kind == "Pairwise_set":
                    sides = {"chosen": f"right {number}", "reject": f"wrong {number}"}
                    row |= {side: {"answer": text, "llm_name": "m", "score": 7} for side, text in sides.items()}
                    row |= {"pair_uid": str(number)}
                else:
                    losers = [{"answer": f"wrong {number} {k}", "llm_name": "m"} for k in range(3)]
                    row |= {"bon_uid": str(number), "bon_best": {"answer": f"right {number}", "llm_name": "m"}}
                    row |= {"loser_list": losers}
                rows.append(row)
            _write(folder / f"{path}.json", rows)
    return str(folder / kind)


def rmb_pairs(folder: Path) -> str:
    return _rmb(folder, "Pairwise_set", 3)


def rmb_best_of_n(folder: Path) -> str:
    return _rmb(folder, "BoN_set", 3)


def judgebench(folder: Path) -> str:
    rows = []
    for source in ("mmlu-pro-law", "livebench-reasoning", "livebench-math", "livecodebench"):
        for i in range(24):
            better_is_b = i % 4 == 0  # a quarter: what a constant scorer gets
            words = ("wrong", "right") if better_is_b else ("right", "wrong")
            row = {"pair_id": f"{source}{i}", "source": source, "question": f"{source} {i}", "response_model": "gpt-4o"}
            row |= {f"response_{side}": f"{word} {source} {i}" for side, word in zip("AB", words, strict=True)}
            rows.append(row | {"label": "B>A" if better_is_b else "A>B"})
    return _write(folder / "judgebench.jsonl", rows)


def llmbar(folder: Path) -> str:
    for name in ("Natural", "Adversarial/Neighbor", "Adversarial/GPTInst", "Adversarial/GPTOut", "Adversarial/Manual"):
        rows = []
        for i in range(20):
            words = ("right", "wrong") if i % 2 else ("wrong", "right")
            outputs = {f"output_{k}": f"{word} {name} {i}" for k, word in enumerate(words, start=1)}
            rows.append({"input": f"{name} {i}", **outputs, "label": 1 if i % 2 else 2})
        _write(folder / "LLMBar" / name / "dataset.json", rows)
        _write(folder / "LLMBar" / name / "evaluators" / "GPT-4" / "result.json", rows)  # a result, not the data
    return str(folder / "LLMBar")


def ppe_correctness(folder: Path) -> str:
    for name in ("MMLU-Pro", "MATH", "GPQA", "IFEval", "MBPP-Plus"):
        rows = []
        for i in range(24):
            scores = [(i + k) % 3 == 0 for k in range(8)]
            row = {
                "question_id": str(i // 2),
                "model_name": f"m{i % 2}",
                "prompt": f"{name} {i // 2}",
                "scores": scores,
            }
            for k, mark in enumerate(scores, start=1):
                row[f"response_{k}"] = f"{'right' if mark else 'wrong'} {name} {i} {k}"
            drawn = [[a, b] for a in range(8) for b in range(8) if scores[a] != scores[b]][:5]
            rows.append(row | {"sampled_conflict_pairs": drawn})
        _write(folder / "ppe" / f"PPE-{name}-Best-of-K.jsonl", rows)
    return str(folder / "ppe")


def ppe_preference(folder: Path) -> str:
    rows = []
    models = ["alpha", "beta", "gamma", "delta"]
    for i in range(240):
        a, b = models[i % 4], models[(i % 4 + 1 + i % 3) % 4]
        if a == b:
            continue
        tie, first = i % 7 == 0, (models.index(a) < models.index(b)) == (i % 5 > 0)
        words = ("draw", "draw") if tie else ("right", "wrong") if first else ("wrong", "right")
        row = {"question_id": str(i), "model_a": a, "model_b": b, "prompt": f"battle {i}", "language": "English"}
        row |= {f"response_{k}": f"{word} {i} {k if word != 'draw' else ''}" for k, word in enumerate(words, start=1)}
        rows.append(row | {"winner": "tie" if tie else "model_a" if first else "model_b"})
    return _write(folder / "human.jsonl", rows)


def prior_sets(folder: Path) -> str:
    """A saved dataset of one split a set, as `load_dataset(...).save_to_disk` leaves it; HHH has a column `subset` of its own."""
    splits = {}
    for name in BENCHMARKS["prior-sets"].subsets:
        rows = []
        for i in range(20):
            prompt = [{"role": "user", "content": f"{name} {i}"}]
            rows.append(_pair(f"{name} {i}") | {"prompt": prompt, "id": i})
            if name == "anthropic_hhh":
                rows[-1]["subset"] = "honest"
        splits[name] = datasets.Dataset.from_list(rows)
    datasets.DatasetDict(splits).save_to_disk(str(folder / "pref-test-sets"))
    return str(folder / "pref-test-sets")


FILES = {
    "rewardbench": rewardbench,
    "rewardbench2": rewardbench2,
    "rm-bench": rm_bench,
    "rmb-pairs": rmb_pairs,
    "rmb-best-of-n": rmb_best_of_n,
    "judgebench": judgebench,
    "llmbar": llmbar,
    "ppe-correctness": ppe_correctness,
    "ppe-preference": ppe_preference,
    "prior-sets": prior_sets,
}
