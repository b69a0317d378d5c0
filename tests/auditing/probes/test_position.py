"""Probes of where a decisive sentence stands: what they write, what a scorer that stops reading shows, and the habits that they flag."""

import zlib
from dataclasses import dataclass

import numpy as np
import pytest

from rewardsmith.auditing.probes.facts import FACTS
from rewardsmith.auditing.probes.position import ITEMS, NUM_WORDS, PLACES, answered, num_words
from rewardsmith.auditing.registry import PROBES
from rewardsmith.auditing.trials import run_probes, unit_of
from rewardsmith.scores import ScoreTable
from tests.auditing.habits import STRENGTHS, assert_found, noise, number_of, pairs_of, put, with_habit


def test_one_sentence_stands_where_it_should_and_nothing_else_differs():
    assert len(ITEMS) == 40 and set(ITEMS) <= set(FACTS)
    for item, fact in enumerate(ITEMS):
        sentences = {f"{fact.said(fact.right)}.": fact.right, f"{fact.said(fact.wrong)}.": fact.wrong}
        rests = set()
        for place in PLACES:
            for sentence, answer in sentences.items():
                prompt, text = answered(item, place, answer)
                assert prompt.startswith(fact.question) and text.count(sentence) == 1
                before, after = (len(part.split()) for part in text.split(sentence))
                # A sentence of the rest has up to 25 words, so that the place is off by half of that.
                assert abs(before - place / 100 * (before + after)) <= 12.5
                assert num_words(item) <= before + after <= num_words(item) + 25
                rests.add(" ".join(text.replace(sentence, "").split()))
        assert len(rests) == 1
        assert fact.right not in rests.pop()


def test_no_neutral_sentence_stands_twice_in_an_answer():
    _, text = answered(3, 50, "x")
    sentences = [sentence for sentence in text.replace("\n\n", " ").split(". ") if "x" != sentence]
    assert num_words(3) == max(NUM_WORDS) and len(set(sentences)) == len(sentences) > 80


def _mistaken(answer):
    return next((fact for fact in ITEMS if f"{fact.said(fact.wrong)}." in answer), None)


@pytest.mark.parametrize("strength", STRENGTHS)
@pytest.mark.parametrize("place", PLACES)
def test_a_scorer_that_prefers_mistakes_is_found(place, strength):
    # Quality is that of the question: both answers to it have the same.
    scorer = with_habit(lambda prompt, answer: _mistaken(answer) is not None, strength, of=lambda answer: 0.0)
    # In its pairs there are no mistakes: their scores are noise.
    noisy = with_habit(lambda prompt, answer: noise(answer), 1.0, of=lambda answer: 0.0)
    (result,) = run_probes(scorer, [], [PROBES[f"decisive_at_{place}"]], unit_of(noisy, pairs_of()))
    assert_found(result, strength)
    assert result.win_rate.value == 1.0


@pytest.mark.parametrize("strength", STRENGTHS)
def test_a_scorer_that_minds_mistakes_only_at_the_beginning_is_found(strength):
    """At 10 % a mistake costs the strength and at 90 % nothing: the effect of the difference is the strength."""

    def minds(prompt, answer):
        fact = _mistaken(answer)
        return fact is not None and answer.index(fact.said(fact.wrong)) < len(answer) / 2

    scorer = with_habit(minds, -strength, of=lambda answer: noise(answer) if number_of(answer) else 0.0)
    assert_found(put("late_mistake", scorer), strength)
    early, late = put("decisive_at_10", scorer), put("decisive_at_90", scorer)
    assert early.win_rate.value == 0.0 and not early.flagged
    assert late.win_rate.value == 0.5 and not late.flagged


def test_a_scorer_that_minds_mistakes_wherever_they_are_is_left_alone():
    scorer = with_habit(lambda prompt, answer: _mistaken(answer) is not None, -2.0, of=lambda answer: 0.0)
    unit = unit_of(with_habit(lambda prompt, answer: noise(answer), 1.0, of=lambda answer: 0.0), pairs_of())
    results = run_probes(scorer, [], [probe for probe in PROBES.values() if probe.family == "position"], unit)
    assert len(results) == 4 and not any(result.flagged for result in results)


@dataclass
class StopsReading:
    """Reads the first words of an answer, tells so, and minds mistakes among them."""

    num_words: int

    def score(self, pairs):
        return self.table(pairs).score

    def table(self, pairs):
        read = [" ".join(answer.split()[: self.num_words]) for _, answer in pairs]
        mistakes = [any(f"{fact.said(fact.wrong)}." in text for fact in ITEMS) for text in read]
        full = np.array([len(answer.split()) for _, answer in pairs])
        tokens, zeros = np.minimum(full, self.num_words), np.zeros(len(pairs), np.int64)
        return ScoreTable(
            score=np.array([-2.0 * mistake for mistake in mistakes], np.float32),
            tokens=tokens,
            full_tokens=full,
            truncated=full > tokens,
            prompt_cut=zeros,
            answer_cut=full - tokens,
            special_strings=zeros,
            digest=np.array([zlib.crc32(text.encode()) for text in read], np.uint64),
        )


def test_what_is_cut_away_is_a_tie_and_counted():
    """400 words: at 90 % the answers of 700 and 1600 words lose the sentence (630, 1440), at 50 % those of 1600 (800), at 10 % none (160): 20, 10 and 0 of 40."""
    unit = unit_of(with_habit(lambda prompt, answer: 0.0, 0.0), pairs_of())
    probes = [probe for probe in PROBES.values() if probe.family == "position"]
    at = {result.probe.name: result for result in run_probes(StopsReading(400), [], probes, unit)}
    unseen = [at[f"decisive_at_{place}"].num_unseen for place in PLACES]
    assert unseen == [0, 10, 20]
    # A mistake that is seen never wins, one that is not is half a win.
    assert [at[f"decisive_at_{place}"].win_rate.value for place in PLACES] == [0.0, 10 / 2 / 40, 20 / 2 / 40]
    assert at["late_mistake"].flagged
    assert at["late_mistake"].differences.sum() == pytest.approx(2.0 * 20)
