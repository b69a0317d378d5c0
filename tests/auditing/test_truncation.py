"""What a limit of length costs: cuts counted by hand, decisive places, other limits paired with the own one, and the advice that the numbers give."""

import zlib
from dataclasses import dataclass, field

import numpy as np
import pytest

from rewardsmith.auditing.probes.position import ITEMS, PLACES
from rewardsmith.auditing.registry import PROBES
from rewardsmith.auditing.trials import Plan, run_probes, unit_of
from rewardsmith.auditing.truncation import measure_truncation
from rewardsmith.data.schema import Preference
from rewardsmith.errors import DataError, LengthError, SettingsError
from rewardsmith.scores import LengthLimited, ScoreTable, TableScorer
from tests.auditing.habits import pairs_of
from tests.fakes import FunctionScorer, constant, pair


@dataclass
class WordLimit:
    """Reads the prompt and then the answer up to so many words, and pays for "right" and against "wrong" among what it reads; a mistaken fact is wrong, too."""

    max_length: int
    longest: int = 100_000
    least: int = 1
    read: list[tuple[int, int]] = field(default_factory=list)

    def at_max_length(self, tokens):
        if tokens > self.longest:
            raise SettingsError("a lower limit", str(tokens), "Lower it.")
        if tokens < self.least:
            raise LengthError(f"at least {self.least} words", str(tokens), "Raise it.")
        return WordLimit(tokens, self.longest, self.least, read=self.read)

    def score(self, pairs):
        return self.table(pairs).score

    def table(self, pairs):
        self.read.append((self.max_length, len(pairs)))
        rows = [(prompt.split(), answer.split()) for prompt, answer in pairs]
        texts, prompt_cut, answer_cut = [], [], []
        for prompt, answer in rows:
            kept = (prompt + answer)[: self.max_length]
            texts.append(" ".join(kept))
            prompt_cut.append(max(0, len(prompt) - self.max_length))
            answer_cut.append(len(prompt) + len(answer) - len(kept) - prompt_cut[-1])
        lengths = np.array([len(text.split()) for text in texts])
        cuts = np.array(prompt_cut), np.array(answer_cut)
        scores = [text.split().count("right") - text.split().count("wrong") - _mistakes(text) for text in texts]
        return ScoreTable(
            score=np.array(scores, np.float32),
            tokens=lengths,
            full_tokens=lengths + cuts[0] + cuts[1],
            truncated=cuts[0] + cuts[1] > 0,
            prompt_cut=cuts[0],
            answer_cut=cuts[1],
            special_strings=np.zeros(len(pairs), np.int64),
            digest=np.array([zlib.crc32(text.encode()) for text in texts], np.uint64),
        )


def _mistakes(text):
    return sum(f"{fact.said(fact.wrong)}." in text for fact in ITEMS)


def _ticking(step):
    """A clock that goes on by `step` seconds a reading."""
    now = iter(np.arange(0, 10_000, step).tolist())
    return lambda: next(now)


def _long(number, at, length=60):
    """A pair whose sides differ in one word, `at` words into answers of `length` words; the prompt has two words."""
    words = [f"w{k}" for k in range(length)]
    chosen, rejected = ([*words[:at], word, *words[at + 1 :]] for word in ("right", "wrong"))
    return Preference(f"p{number}", f"Prompt {number}", " ".join(chosen), " ".join(rejected))


PAIRS = [
    *(_long(i, 5) for i in range(12)),
    *(_long(i + 12, 50) for i in range(12)),
    *(_long(i + 24, 3, 10) for i in range(12)),
]


def test_cuts_by_hand():
    """Limit 42: of 36 pairs the 24 with 60 words (62 with the prompt) are cut by 20 words a text, 12 of these to the same text."""
    found = measure_truncation(WordLimit(42), PAIRS)
    cuts = found.cuts
    assert (cuts.cut.value, cuts.collapsed.value, cuts.cut.n) == (24 / 36, 12 / 36, 36)
    assert cuts.answer_tokens.value == 20 and cuts.answer_tokens.n == 48
    assert cuts.prompt_tokens.value == 0
    assert cuts.tokens_removed.value == pytest.approx(48 * 20 / (48 * 62 + 24 * 12))
    assert cuts.accuracy_cut.value == 0.75 and cuts.accuracy_uncut.value == 1.0
    assert cuts.difference.value == pytest.approx(-0.25) and cuts.difference.high < 0
    assert found.limits == [] and "other limits" in found.not_measured["limits"]
    assert found.max_length is None


def test_nothing_cut_is_said_with_its_interval():
    cuts = measure_truncation(WordLimit(500), PAIRS).cuts
    assert cuts.cut.value == 0 and cuts.cut.high > 0
    assert cuts.prompt_tokens is cuts.answer_tokens is cuts.accuracy_cut is cuts.difference is None


def test_a_scorer_that_tells_nothing_is_still_asked_where_it_reads():
    scorer = FunctionScorer(lambda prompt, answer: -float(_mistakes(answer)))
    found = measure_truncation(scorer, PAIRS)
    assert found.cuts is None and set(found.not_measured) == {"cuts", "limits"}
    assert {place: estimate.value for place, estimate in found.decisive.places.items()} == {10: 1.0, 50: 1.0, 90: 1.0}
    assert found.decisive.unseen == {10: None, 50: None, 90: None}
    assert scorer.calls == [40 * 3 * 2]
    assert found.advice == [
        "No loss at the end is seen: 1.00 [0.91, 1.00] right at 90 % of a long answer, 1.00 [0.91, 1.00] at 10 % "
        "(difference +0.000 [+0.000, +0.000])."
    ]


def test_what_is_cut_away_no_longer_decides():
    """400 words with a prompt of about 15: at 90 % the sentence is gone from answers of 700 and 1,600 words, at 50 % from those of 1,600."""
    found = measure_truncation(WordLimit(400), PAIRS).decisive
    assert {place: estimate.value for place, estimate in found.places.items()} == {10: 1.0, 50: 0.875, 90: 0.75}
    assert found.unseen == {10: 0, 50: 10, 90: 20}
    assert found.difference.value == -0.25 and found.difference.high < 0
    by_words = {words: {place: one.value for place, one in places.items()} for words, places in found.by_words.items()}
    assert by_words == {
        120: {10: 1.0, 50: 1.0, 90: 1.0},
        300: {10: 1.0, 50: 1.0, 90: 1.0},
        700: {10: 1.0, 50: 1.0, 90: 0.5},
        1600: {10: 1.0, 50: 0.5, 90: 0.5},
    }
    advice = measure_truncation(WordLimit(400), PAIRS).advice
    assert advice[-1].startswith("What stands late counts for less: 0.75 [")
    assert "in 20 of 40 items the sentence was cut away" in advice[-1]


def test_probes_that_were_put_are_not_put_again():
    scorer = WordLimit(400)
    probes = [PROBES[f"decisive_at_{place}"] for place in PLACES]
    results = run_probes(scorer, [], probes, unit_of(FunctionScorer(lambda p, a: float("good" in a)), pairs_of(20)))
    scorer.read.clear()
    found = measure_truncation(scorer, PAIRS, results=results)
    assert scorer.read == [(400, 72)]
    assert found.decisive == measure_truncation(scorer, PAIRS).decisive


def test_other_limits_are_paired_with_the_own_one():
    """Own limit 42: 12 pairs are ties. At 70 these are right, at 30 nothing changes, at 6 all but the 12 short ones (word 3 + 2 prompt words = place 5) are ties."""
    scorer = WordLimit(42)
    assert isinstance(scorer, LengthLimited) and isinstance(scorer, TableScorer)
    found = measure_truncation(scorer, PAIRS, limited=scorer, limits=(6, 30, 70), clock=_ticking(0.5))
    rows = {one.max_length: one for one in found.limits}
    assert list(rows) == [6, 30, 42, 70]
    assert {limit: one.accuracy.value for limit, one in rows.items()} == pytest.approx(
        {6: 24 / 36, 30: 30 / 36, 42: 30 / 36, 70: 1.0}
    )
    assert {limit: one.difference.value for limit, one in rows.items()} == pytest.approx(
        {6: -6 / 36, 30: 0.0, 42: 0.0, 70: 6 / 36}
    )
    assert {limit: one.cut.value for limit, one in rows.items()} == {6: 1.0, 30: 24 / 36, 42: 24 / 36, 70: 0.0}
    assert {limit: one.collapsed.value for limit, one in rows.items()} == pytest.approx(
        {6: 24 / 36, 30: 12 / 36, 42: 12 / 36, 70: 0.0}
    )
    assert [one.own for one in found.limits] == [False, False, True, False]
    # Half a second a block of four pairs.
    assert rows[6].seconds_per_pair.value == pytest.approx(0.125) and rows[6].relative_time.value == pytest.approx(1.0)
    assert rows[6].seconds_per_pair.n == 24
    assert found.advice[0].startswith("At 70 tokens accuracy is higher than at 42 (difference +0.167 [+0.")


def test_a_text_that_a_limit_does_not_touch_is_not_scored_again():
    scorer = WordLimit(42)
    measure_truncation(scorer, PAIRS, limited=scorer, limits=(30,), results=_put(scorer))
    whole = [count for limit, count in scorer.read if limit == 30 and count > 8]
    assert whole == [48]  # the 24 pairs of 60 words; the others have 12


def _put(scorer):
    probes = [PROBES[f"decisive_at_{place}"] for place in PLACES]
    return run_probes(scorer, [], probes, unit_of(FunctionScorer(lambda p, a: float("good" in a)), pairs_of(20)))


def test_limits_that_would_change_nothing_or_cannot_be_are_named():
    scorer = WordLimit(200, longest=400, least=5)
    found = measure_truncation(scorer, PAIRS, limited=scorer, limits=(3, 50, 100, 300, 500))
    assert [one.max_length for one in found.limits] == [50, 200]
    assert found.not_measured == {
        "max_length 3": "it leaves no room beside the template: at least 5 words",
        "max_length 100": "no text is longer than 62 tokens",
        "max_length 300": "no text is longer than 62 tokens",
        "max_length 500": "the model reads at most 400 tokens",
    }


def test_advice_names_a_shorter_limit_that_loses_nothing_seen():
    scorer = WordLimit(42)
    found = measure_truncation(scorer, PAIRS, limited=scorer, limits=(10, 20, 30), clock=_ticking(1.0))
    # At 10 words the early word (place 7 with the prompt) is still read; the difference is exactly 0.
    assert found.advice[0] == (
        "At 10 tokens accuracy is not distinguishable from 42 (difference +0.000 [+0.000, +0.000]) at 1.00 of the time."
    )


def test_advice_says_which_loss_is_not_excluded_and_stops_at_the_first_limit_that_loses():
    """Own limit 60. At 40, one of 40 pairs becomes a tie: the interval reaches beyond 2 points. At 5 and 8 all do."""
    pairs = [*(_long(i, 20) for i in range(39)), _long(40, 50)]
    scorer = WordLimit(60)
    found = measure_truncation(scorer, pairs, limited=scorer, limits=(5, 40), clock=_ticking(1.0))
    at = {one.max_length: one.difference for one in found.limits}
    assert at[40].value == -0.5 / 40 and at[5].high < 0
    assert found.advice[0].startswith("At 40 tokens accuracy is not distinguishable from 60 (difference -0.013 [")
    assert found.advice[0].endswith(f"; a loss of {-at[40].low:.3f} is not excluded.")
    # At 55 nothing is lost: of the two, that is the limit to be sure of.
    sure = measure_truncation(scorer, pairs, limited=scorer, limits=(5, 40, 55), clock=_ticking(1.0))
    assert sure.advice[0].startswith("At 55 tokens accuracy is not distinguishable from 60 (difference +0.000")
    assert "not excluded" not in sure.advice[0]
    costly = measure_truncation(scorer, pairs, limited=scorer, limits=(5, 8), clock=_ticking(1.0))
    assert costly.advice[0].startswith(
        "Every shorter limit that was tried costs accuracy: 8 tokens against 60 a difference of -0.5"
    )


def test_without_other_limits_advice_is_about_pairs_that_became_one_text():
    found = measure_truncation(WordLimit(42), PAIRS)
    assert found.advice[0].startswith("33.3% of the pairs [") and len(found.advice) == 2


def test_a_scorer_that_knows_no_facts_is_not_called_a_reader():
    found = measure_truncation(constant(), PAIRS)
    assert "does not tell right from wrong" in found.advice[0] and "do not show how far it reads" in found.advice[0]


def test_time_is_not_taken_on_a_handful_of_pairs():
    scorer = WordLimit(42)
    found = measure_truncation(scorer, PAIRS[:7], limited=scorer, limits=(20,))
    assert found.limits[0].seconds_per_pair is None
    assert found.not_measured["seconds_per_pair"] == "fewer than 8 pairs"


def test_what_cannot_be_judged_is_left_out_and_counted():
    pairs = [*PAIRS[:3], pair(90, tie=True), Preference("e", "How?", "", "bad")]
    found = measure_truncation(WordLimit(42), pairs)
    assert (found.num_pairs, found.left_out) == (3, {"labelled_tie": 1, "empty_answer": 1})
    with pytest.raises(DataError, match="at least one decided pair"):
        measure_truncation(WordLimit(42), pairs[3:])


def test_the_document_is_plain():
    import json

    scorer = WordLimit(42)
    document = measure_truncation(scorer, PAIRS, limited=scorer, limits=(6, 70)).as_dict()
    assert json.loads(json.dumps(document, allow_nan=False)) == document
    assert set(document) == {
        "num_pairs", "left_out", "max_length", "cuts", "decisive", "limits", "not_measured", "advice",
    }  # fmt: skip
    assert set(document["decisive"]) == {"places", "unseen", "difference", "by_words"}
    assert document["limits"][0]["difference"]["n"] == 36
    assert len(Plan([PROBES["decisive_at_10"]], [], seed=0).pairs) == 80
