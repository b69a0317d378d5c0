"""A Python function is a scorer like any other."""

import json

import numpy as np
import pytest

from rewardsmith.config import ScoringSettings
from rewardsmith.errors import ScoreError, SettingsError
from rewardsmith.functions import FunctionScorer, as_scorer, is_function, load_function
from rewardsmith.loading import load_source
from rewardsmith.scores import Scorer, TableScorer
from tests.fakes import likes_long_answers


def test_a_function_scores_each_pair():
    scorer = FunctionScorer(lambda prompt, answer: len(answer) - len(prompt))
    scores = scorer.score([("ab", "abc"), ("abcd", "")])
    assert scores.tolist() == [1.0, -4.0]
    assert scores.dtype == np.float32
    assert isinstance(scorer, Scorer) and not isinstance(scorer, TableScorer)


@pytest.mark.parametrize("function", [lambda prompt, answer: 1 / 0, lambda prompt, answer: None, lambda prompt: 1.0])
def test_a_function_that_returns_no_number_is_named(function):
    with pytest.raises(ScoreError, match="a function of \\(prompt, answer\\)"):
        FunctionScorer(function).score([("a", "b")])


def test_nan_is_no_score():
    with pytest.raises(ScoreError, match="finite"):
        FunctionScorer(lambda prompt, answer: float("nan")).score([("a", "b")])


def test_scorers_stay_as_they_are_and_functions_become_scorers():
    scorer = likes_long_answers()
    assert as_scorer(scorer) is scorer
    assert as_scorer(lambda prompt, answer: 2.0).score([("a", "b")]).tolist() == [2.0]
    with pytest.raises(SettingsError, match="int"):
        as_scorer(7)


def test_a_file_and_a_name_are_a_model(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(
        "import math\n\ndef half(x):\n    return math.ceil(x / 2)\n\ndef score(prompt, answer):\n    return half(2 * len(answer))\n"
    )
    scorer, files = load_function(f"{file}:score")
    assert scorer.score([("a", "bcd")]).tolist() == [3.0]
    assert list(files) == ["mine.py"]
    source = load_source(f"{file}:score", ScoringSettings(), threads=None, seed=0)
    assert (source.name, source.files) == ("score", files)
    assert is_function(f"{file}:score") and not is_function(str(tmp_path)) and not is_function("http://host.py:80")


@pytest.mark.parametrize(
    ("text", "name", "complaint"),
    [(None, "score", "no file"), ("x = 1\n", "score", "none of this name"), ("1 / 0\n", "score", "ZeroDivisionError")],
)
def test_a_place_without_a_function_is_refused(tmp_path, text, name, complaint):
    file = tmp_path / "mine.py"
    if text is not None:
        file.write_text(text)
    with pytest.raises(SettingsError, match=complaint):
        load_function(f"{file}:{name}")


def test_every_verb_that_needs_only_scores_takes_a_function(cli, write_rows, tmp_path):
    file = tmp_path / "mine.py"
    file.write_text("def score(prompt, answer):\n    return len(answer)\n")
    data = write_rows([{"prompt": f"p {i}", "chosen": "long answer", "rejected": "short"} for i in range(3)])
    code, out, err = cli("evaluate", f"{file}:score", data, "--json")
    assert code == 0, err
    document = json.loads(out)
    assert document["accuracy"]["value"] == 1.0
    assert list(document["model"]["files"]) == ["mine.py"]
