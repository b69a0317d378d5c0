"""Does a reward model reproduce, from answers alone, which language model beats which? Checked against labels.

The data are labelled pairs with the columns `chosen_model` and `rejected_model`, as in RMB (docs/data.md). For the most frequent pairs of language models, whichever of the two was
chosen, their answers become two files of `{"prompt", "answer"}`; the reward model's win rate stands beside that of the labels and that of "the longer answer wins".

    python examples/win_rates_rmb.py DATA MODEL [--pairs 10] [--write DIR]

DATA must not be what MODEL was trained on. Which answers were paired for a label is the data's choice: a win rate here is one over these comparisons, not over all prompts.
"""

import argparse
import json
import sys
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np

from rewardsmith.config import ScoringSettings
from rewardsmith.data import io
from rewardsmith.data.schema import Single, as_row, prompt_key
from rewardsmith.errors import DataError, RewardsmithError, SettingsError
from rewardsmith.loading import load_source
from rewardsmith.stats import mean
from rewardsmith.use.answers_matched import match_answers
from rewardsmith.use.judges import winner
from rewardsmith.use.win_rates import share, win_rates

MODELS = ("chosen_model", "rejected_model")


def frequent(pairs, count):
    """The pairs of each of the most frequent two models, {(model A, model B): pairs}, the first in the alphabet being A."""
    found = defaultdict(list)
    for pair in pairs:
        models = [pair.metadata.get(name) for name in MODELS]
        if None not in models and models[0] != models[1] and not pair.tie:
            found[tuple(sorted(models))].append(pair)
    if not found:
        raise DataError("pairs with `chosen_model` and `rejected_model`", "none", "Give data that have both columns.")
    most = Counter({models: len(some) for models, some in found.items()}).most_common(count)
    return {models: found[models] for models, _ in most}


def sides(pairs, model_a):
    """(answers of A, answers of B, {prompt: 1 where A was chosen}); of several rows of one prompt the first."""
    rows_a, rows_b, labels = [], [], {}
    for pair in pairs:
        key = prompt_key(pair.prompt)
        if key in labels:
            continue
        a_won = pair.metadata["chosen_model"] == model_a
        a, b = (pair.chosen, pair.rejected) if a_won else (pair.rejected, pair.chosen)
        columns = {name: value for name, value in pair.metadata.items() if name not in MODELS} | {"label": float(a_won)}
        rows_a.append(Single(pair.id, pair.prompt, a, columns))
        rows_b.append(Single(pair.id, pair.prompt, b, columns))
        labels[key] = float(a_won)
    return rows_a, rows_b, labels


def compared(pairs, models, scorer, *, temperature, seed, folder=None):
    """One row of the table: two models, by labels, by the scorer and by length."""
    rows_a, rows_b, labels = sides(pairs, models[0])
    if folder is not None:
        for side, rows in (("a", rows_a), ("b", rows_b)):
            name = f"{models[0]}_{models[1]}.{side}.jsonl".replace("/", "-")  # hub names hold slashes
            io.write_rows(folder / name, map(as_row, rows))
    matched = match_answers(rows_a, rows_b)
    by_labels = np.array([labels[prompt_key(prompt)] for prompt in matched.prompts])
    judged = win_rates(scorer, matched, temperature=temperature, seed=seed)
    longer = win_rates(lambda prompt, answer: len(answer), matched, seed=seed)
    label_rate = share(by_labels, seed=seed)
    rate = judged.win_rate
    differences = judged.outcomes - by_labels
    return {
        "model_a": models[0],
        "model_b": models[1],
        "num_prompts": rate.n,
        "rows_left_out": len(pairs) - rate.n,
        "labels": label_rate.as_dict(),
        "win_rate": rate.as_dict(),
        "length_controlled_win_rate": judged.length_controlled.win_rate.as_dict(),
        "longer_answer": longer.win_rate.as_dict(),
        "agrees_with_labels": share(1 - np.abs(differences), seed=seed).as_dict(),
        "minus_labels": mean(differences, np.arange(rate.n), seed=seed).as_dict(),
        "winner_by_labels": winner(label_rate),
        "winner": judged.winner,
        "same_side": bool((rate.value - 0.5) * (label_rate.value - 0.5) > 0),
        "labels_within_interval": bool(rate.low <= label_rate.value <= rate.high),
        "longer_same_side": bool((longer.win_rate.value - 0.5) * (label_rate.value - 0.5) > 0),
    }


def main(words=None):
    """The exit code; prints one JSON document."""
    try:
        print(json.dumps(run(words)))
    except RewardsmithError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def run(words):
    """The document."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", help="labelled pairs with chosen_model and rejected_model")
    parser.add_argument("model", help="a folder, the URL of a server, or FILE.py:FUNCTION")
    parser.add_argument("--pairs", type=int, default=10, help="of models, the most frequent ones")
    parser.add_argument("--write", type=Path, help="folder for the files of answers, for `rewardsmith winrate`")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args(words)
    if asked.pairs < 1:
        raise SettingsError("--pairs of at least 1", f"{asked.pairs}", "Raise it.")
    pairs = io.preferences(io.read(asked.data).rows, asked.data)
    chosen = frequent(pairs, asked.pairs)
    source = load_source(asked.model, ScoringSettings(), threads=asked.threads, seed=asked.seed)
    table = []
    for models, some in chosen.items():
        row = compared(some, models, source.scorer, temperature=source.temperature, seed=asked.seed, folder=asked.write)
        table.append(row)
        print(f"{' against '.join(models)}: {row['win_rate']['value']:.3f}", file=sys.stderr)
    return {
        "data": io.source_name(asked.data),
        "model": source.name,
        "num_pairs": len(pairs),
        "same_side": sum(row["same_side"] for row in table),
        "labels_within_interval": sum(row["labels_within_interval"] for row in table),
        "longer_same_side": sum(row["longer_same_side"] for row in table),
        "rows": table,
    }


if __name__ == "__main__":
    sys.exit(main())
