"""Words are taken out: the values are the differences, exactly; what was not read has none."""

from dataclasses import dataclass

import numpy as np
import pytest

from rewardsmith.data.schema import Pair
from rewardsmith.data.words import prompt_text, word_spans
from rewardsmith.errors import ScoreError
from rewardsmith.evaluation.occlusion import Occlusion, choose, without
from rewardsmith.scores import Attribution, Attributions, ScoreTable
from tests.fakes import FunctionScorer, constant, likes_long_answers

TEXTS = [
    "It's fine, isn't it?",
    "\u6771\u4eac\u3067\u3059\u3002 Tokyo\u3067\u3059",
    "\U0001f44d\U0001f3fd\U0001f469\u200d\U0001f680 done",
    "```python\nfor item in items:\n    print(item)\n```\n",
    "  a \n\n b  ",
    "e\u0301te\u0301 \u0928\u092e\u0938\u094d\u0924\u0947 \u0e2a\u0e27\u0e31\u0e2a\u0e14\u0e35",
    "\u0301 alone",
    " ",
    "",
]


def planted(values):
    """The sum of the values of the words that an answer holds, each as often as it is there, over 1.0 for the prompt's sake."""
    return FunctionScorer(lambda prompt, answer: 1.0 + sum(v * answer.lower().count(w) for w, v in values.items()))


@pytest.mark.parametrize("text", TEXTS)
def test_words_cover_the_text(text):
    spans = word_spans(text)
    assert "".join(text[start:end] for start, end in spans) == text
    assert all(start < end for start, end in spans)
    if text.strip():  # no piece of white space alone
        assert all(text[start:end].strip() for start, end in spans)


def test_words_are_what_a_person_would_point_at():
    def words(text):
        return [text[start:end] for start, end in word_spans(text)]

    assert words("It's 5 pm, so\n\ngo. ") == ["It's", " 5", " pm", ",", " so", "\n\ngo", ". "]
    assert words("\u6771\u4eac\u3067 ok") == ["\u6771", "\u4eac", "\u3067", " ok"]
    # Accents and joiners stay with their letter: e + acute, woman + joiner + rocket.
    assert words("e\u0301te \U0001f469\u200d\U0001f680") == ["e\u0301te", " \U0001f469\u200d\U0001f680"]
    assert words("'quoted'") == ["'", "quoted", "'"]
    assert prompt_text([{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]) == "a\n\nb"


def test_a_planted_word_is_found_with_its_exact_value_and_nothing_is_left_over():
    scorer = planted({"gladly": 2.0, "stupid": -3.0})
    (found,) = Occlusion(scorer).attribute([("p", "Gladly, that is a stupid thing.")])
    # Score 1 + 2 - 3 = 0; the empty answer has 1. Without "Gladly" -2, so 0 - (-2) = 2; without "stupid" 3, so 0 - 3 = -3.
    assert (found.score, found.baseline) == (0.0, 1.0)
    assert [piece for piece in found.tokens if piece[1]] == [("Gladly", 2.0), (" stupid", -3.0)]
    assert (found.sum, found.gap) == (-1.0, 0.0)
    assert found.method == "occlusion, a word at a time, against the empty answer"
    assert found.prompt_tokens == [("p", None)] and found.frame == 0


def test_words_that_do_each_others_work_leave_a_gap_that_is_shown():
    scorer = FunctionScorer(lambda prompt, answer: float("sorry" in answer or "regret" in answer))
    (found,) = Occlusion(scorer).attribute([("p", "sorry, I regret it")])
    # Either word alone keeps the score at 1: all values are 0, and the whole difference to the empty answer is gap.
    assert found.sum == 0.0 and found.gap == 1.0 and found.as_dict()["gap"] == 1.0
    # Words that are needed together are each worth all of it: 1 + 1 - 1 = 1 too much.
    both = FunctionScorer(lambda prompt, answer: float("sorry" in answer and "regret" in answer))
    (found,) = Occlusion(both).attribute([("p", "sorry, I regret it")])
    assert found.sum == 2.0 and found.gap == -1.0


@pytest.mark.parametrize("text", TEXTS)
def test_pieces_give_back_the_text_and_values_add_up(text):
    prompt = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": text or "x"}]
    (found,) = Occlusion(likes_long_answers()).attribute([(prompt, text)])
    assert "".join(piece for piece, _ in found.tokens) == text
    assert "".join(piece for piece, _ in found.prompt_tokens) == f"Be kind.\n\n{text or 'x'}"
    assert found.baseline + found.sum + found.gap == pytest.approx(found.score, abs=1e-12)
    assert found.as_dict()["tokens"] == [list(piece) for piece in found.tokens]


def test_all_texts_are_scored_in_one_call_and_in_their_order():
    scorer = planted({"good": 1.0})
    found = Occlusion(scorer).attribute([("p", "good good"), ("q", ""), ("r", "bad")])
    # 2 + 2 words, 2 + 0, 2 + 1.
    assert scorer.calls == [4 + 2 + 3] and [one.num_readings for one in found] == [4, 2, 3]
    assert [one.score for one in found] == [3.0, 1.0, 1.0] and found[1].tokens == []
    assert found[0].tokens == [("good", 1.0), (" good", 1.0)]
    assert Occlusion(scorer).attribute([]) == []


def test_a_long_answer_loses_several_words_at_a_time_and_says_so():
    scorer = planted({"good": 1.0})
    answer = " ".join(["good", "bad"] * 50)
    (found,) = Occlusion(scorer, max_pieces=30).attribute([("p", answer)])
    # 100 words in at most 30 pieces: 4 words a piece, 25 pieces, two of each four are good.
    assert found.method == "occlusion, 4 words at a time, against the empty answer"
    assert [value for _, value in found.tokens] == [2.0] * 25 and found.gap == 0
    assert "".join(piece for piece, _ in found.tokens) == answer


def test_what_becomes_the_beginning_loses_its_white_space():
    assert without("Gladly I go", 0, 6) == "I go" and without("Gladly I go", 6, 8) == "Gladly go"


@dataclass
class ReadsFewWords:
    """A scorer with a table, which reads the first `limit` words and likes long ones."""

    limit: int

    def score(self, pairs: list[Pair]):
        return self.table(pairs).score

    def table(self, pairs: list[Pair]) -> ScoreTable:
        read = [" ".join(answer.split()[: self.limit]) for _, answer in pairs]
        counts = np.array([len(text) for text in read])
        zeros = np.zeros(len(read), np.int64)
        digest = np.array([abs(hash(text)) for text in read], np.uint64)
        return ScoreTable(counts.astype(np.float32), counts, counts, zeros > 0, zeros, zeros, zeros, digest)


def test_what_was_cut_has_no_value():
    (found,) = Occlusion(ReadsFewWords(2)).attribute([("p", "one three seven four")])
    # "one three" is 9 characters; without "one" it reads "three seven" (11), without "three" "one seven" (9), behind that nothing changes.
    assert found.tokens == [("one", -2.0), (" three", 0.0), (" seven", None), (" four", None)]
    assert found.score == 9 and found.sum == -2 and found.gap == 9 - 0 + 2


def test_the_scorers_own_way_is_taken_where_it_has_one():
    class Knows(FunctionScorer):
        def attribute(self, pairs):
            return [Attribution("by heart", 1.0, 0.0, [("all", 1.0)], []) for _ in pairs]

    class Has(FunctionScorer):
        attributions = Knows(lambda prompt, answer: 1.0)

    knows, has = Knows(lambda prompt, answer: 1.0), Has(lambda prompt, answer: 1.0)
    assert isinstance(knows, Attributions) and choose(knows)[0] is knows and choose(has)[0] is has.attributions
    method, reason = choose(constant())
    assert isinstance(method, Occlusion) and isinstance(method, Attributions) and "nothing is known" in reason


def test_a_scorer_that_returns_nan_is_refused():
    with pytest.raises(ScoreError):
        Occlusion(FunctionScorer(lambda prompt, answer: float("nan") if not answer else 1.0)).attribute([("p", "a b")])
