"""The words of the hardest pairs: which pairs, and that what is written adds up."""

import pytest

from rewardsmith.evaluation.occlusion import Occlusion
from rewardsmith.evaluation.pairwise import evaluate
from rewardsmith.evaluation.token_view import attribute_lowest
from tests.fakes import FunctionScorer, pair


def likes_thanks():
    """One point for every "thanks", which some rejected answers are full of."""
    return FunctionScorer(lambda prompt, answer: float(answer.count("thanks")) + len(answer) / 1000)


def test_the_lowest_margins_are_shared_out_and_labelled_ties_are_not():
    pairs = [pair(i, "good one", "bad " + "thanks " * i) for i in range(6)]
    pairs.append(pair(9, "good", "bad " + "thanks " * 20, tie=True))
    scorer, done = likes_thanks(), []
    scores = evaluate(scorer, pairs).scores
    found = attribute_lowest(Occlusion(scorer), scores, 2, on_pair=done.append)
    assert sorted(found) == [4, 5] and done == [1, 2]
    for row, sides in found.items():
        for side in ("chosen", "rejected"):
            one = sides[side]
            assert one["score"] == pytest.approx(getattr(scores, side)[row])
            assert one["score"] == pytest.approx(one["baseline"] + one["sum"] + one["gap"])
            assert "".join(text for text, _ in one["tokens"]) == getattr(pairs[row], side)
    worth = [value for text, value in found[5]["rejected"]["tokens"] if "thanks" in text]
    assert worth == pytest.approx([1.007] * 5)


def test_rows_carry_what_was_asked_for_and_nothing_else():
    from dataclasses import replace

    pairs = [pair(i) for i in range(3)]
    found = evaluate(likes_thanks(), pairs)
    rows = replace(found, attributions=attribute_lowest(Occlusion(likes_thanks()), found.scores, 1)).rows()
    assert sum("attributions" in row for row in rows) == 1
    assert all("attributions" not in row for row in found.rows())
