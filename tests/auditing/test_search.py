"""Attack search: a planted word is found, a fair scorer is left in peace, and nothing is reported on the prompts that it was looked for on."""

import hashlib
import json
import zlib
from itertools import pairwise

import numpy as np
import pytest

from rewardsmith.auditing.attack_data import adversarial_pairs, re_attack, write_adversarial_pairs
from rewardsmith.auditing.effects import Effect
from rewardsmith.auditing.search import KNOWN, RANDOM, WORDS, Search, attack, schedule
from rewardsmith.auditing.trials import subjects_of
from rewardsmith.auditing.triggers import Finalist, Halves, HeldOut, Readings, Trigger
from rewardsmith.data import io
from rewardsmith.data.schema import Preference, prompt_key
from rewardsmith.errors import DataError, ScoreError, SettingsError
from rewardsmith.scores import ScoreTable
from tests.fakes import FunctionScorer, constant

VOCABULARY = [f"w{i}" for i in range(200)]
PLANTED = "w77"


def pairs_of(count, seed=0, per_prompt=1):
    """Random words; the chosen answer is no better than the rejected one, so that noise is all that a fair scorer shows."""
    rng = np.random.default_rng(seed)

    def text():
        return " ".join(rng.choice(VOCABULARY, 6))

    return [
        Preference(f"p{i}", f"{seed}, prompt {i // per_prompt}", f"good {text()}.", f"bad {text()}.")
        for i in range(count)
    ]


def noise(*parts):
    """Mean 0 and variance 1, uniform, a function of the text alone."""
    # A CRC would not do: it is linear, and texts that differ alike would get scores that differ alike.
    digest = hashlib.blake2b("\x1f".join(map(str, parts)).encode(), digest_size=8).digest()
    return (int.from_bytes(digest) / 2**64 - 0.5) * 12**0.5


def fair(seed=0):
    return FunctionScorer(lambda prompt, answer: noise(seed, prompt_key(prompt), answer))


def likes(word, strength, place="prefix", seed=0):
    """Noise of variance 1, so that the strength is an effect in standard deviations."""

    def has(answer):
        return answer.startswith(f"{word} ") if place == "prefix" else answer.endswith(f" {word}")

    return FunctionScorer(lambda prompt, answer: noise(seed, prompt_key(prompt), answer) + strength * has(answer))


class ReadsTheFirst:
    """A table scorer that reads so many characters of an answer and likes a word wherever it stands in them."""

    def __init__(self, limit, word=PLANTED, strength=3.0):
        """It reads `limit` characters."""
        self.limit, self.word, self.strength = limit, word, strength

    def score(self, pairs):
        return self.table(pairs).score

    def table(self, pairs):
        read = [f"{prompt}\x1f{answer[: self.limit]}" for prompt, answer in pairs]
        cut = np.array([max(0, len(answer) - self.limit) for _, answer in pairs], dtype=np.int64)
        counts = np.zeros(len(pairs), np.int64)
        words = [text.partition("\x1f")[2].replace(".", "").split() for text in read]
        scores = [noise(text) + self.strength * (self.word in some) for text, some in zip(read, words, strict=True)]
        digest = np.array([zlib.crc32(text.encode()) for text in read], dtype=np.uint64)
        return ScoreTable(np.array(scores, np.float32), counts, counts, cut > 0, counts, cut, counts, digest)


# -- triggers and halves -------------------------------------------------------------------------------------------------


def test_a_trigger_stands_before_or_after_the_answer_and_knows_where_its_words_are():
    before, after = Trigger(("ab", "c"), "prefix"), Trigger(("ab", "c"), "suffix")
    assert (before.put("It is."), after.put("It is.")) == ("ab c It is.", "It is. ab c")
    assert (before.put(""), after.put("")) == ("ab c", "ab c")
    for trigger in (before, after):
        for answer in ("It is.", ""):
            words = [trigger.put(answer)[start:end] for start, end in trigger.spans(answer)]
            assert words == ["ab", "c"] and Trigger.from_dict(trigger.as_dict()) == trigger


def test_no_prompt_is_in_both_halves_and_faults_stand_aside():
    pairs = [
        *pairs_of(90, per_prompt=3),
        Preference("tie", "t", "a", "b", tie=True),
        Preference("empty", "e", "a", " "),
    ]
    halves = Halves.of(pairs, num_prompts=24, seed=1)
    search = [prompt_key(pair.prompt) for pair in halves.search]
    held_out = [prompt_key(pair.prompt) for pair in halves.held_out]
    assert len(search) == len(set(search)) == 12 and len(set(held_out)) == 12 and len(held_out) == 36
    assert not set(search) & set(held_out)
    assert halves.left_out == {"tie": 1, "empty_answer": 1}
    assert halves == Halves.of(pairs, num_prompts=24, seed=1) != Halves.of(pairs, num_prompts=24, seed=2)


# -- the race ------------------------------------------------------------------------------------------------------------


def test_a_race_keeps_a_quarter_on_four_times_the_prompts_within_its_budget():
    assert schedule(1000, 64, 4000) == [(1000, 2), (250, 4), (62, 16), (15, 64)]
    assert schedule(30, 64, 30 * 64) == [(30, 64)]  # all on all, if that is paid for
    assert schedule(3, 10, 30) == [(3, 10)] and schedule(3, 10, 5) == [] and schedule(5, 10, 0) == []
    for num_triggers, num_prompts, budget in [(5000, 64, 900), (17, 33, 300), (200, 10, 450), (9, 128, 700)]:
        rounds = schedule(num_triggers, num_prompts, budget)
        cost = sum(n * (m - before) for (n, m), before in zip(rounds, [0, *(m for _, m in rounds)], strict=False))
        assert cost <= budget and rounds[-1][1] == num_prompts and rounds[0][0] <= num_triggers
        assert all(n >= after and m < later for (n, m), (after, later) in pairwise(rounds))


def test_a_race_is_won_by_the_best_mean_and_scores_no_text_twice():
    # The score is the length of the answer's first word, so that the longest word wins.
    scorer = FunctionScorer(lambda prompt, answer: len(answer.split(" ")[0]))
    readings = Readings(scorer)
    search = Search(subjects_of(pairs_of(12)), readings)
    words = ["a" * (1 + i % 40) for i in range(120)]
    ranked = search.race(WORDS, [Trigger((word,), "prefix") for word in words], 300)
    # The old first word is `bad`: 40 letters instead of 3.
    assert ranked[0] == (Trigger(("a" * 40,), "prefix"), 37.0)
    assert [effect for _, effect in ranked] == sorted((effect for _, effect in ranked), reverse=True)
    assert search.races[0].num_candidates == 40  # the same word thrice is one word
    assert readings.num_texts == sum(scorer.calls) == 12 + 40 * 3 + 10 * (12 - 3)
    search.race(WORDS, [Trigger((word,), "prefix") for word in words], 300)
    assert sum(scorer.calls) == readings.num_texts, "a text that was scored is not scored again"


def test_reading_beyond_the_budget_is_a_bug():
    with pytest.raises(AssertionError, match="overdrawn"):
        Readings(constant(), budget=1).read([("p", "a"), ("p", "b")])


# -- positive and negative controls --------------------------------------------------------------------------------------


def test_a_planted_word_is_found_and_its_interval_covers_what_was_planted():
    covered = 0
    for seed in range(40):
        place = ("prefix", "suffix")[seed % 2]
        found = attack(
            likes(PLANTED, 1.5, place, seed),
            pairs_of(64, seed),
            vocabulary=VOCABULARY[50:100],
            max_words=1,
            budget=3800,
            seed=seed,
        )
        planted = next(one for one in found.findings if one.finalist.found_by == WORDS and one.trigger.place == place)
        assert planted.trigger.words == (PLANTED,) and planted.result.flagged and planted.result.win_rate.low > 0.5
        # The random triggers may hold the word by chance.
        assert found.over_control.low > 0 or found.control.trigger == planted.trigger
        interval = planted.result.effect.interval()
        covered += interval.low <= 1.5 <= interval.high
    # 40 x 0.95 = 38 with a standard deviation of 1.4.
    assert covered >= 34


def test_a_fair_scorer_shows_no_effect_on_other_prompts():
    """The best of hundreds looks good where it was looked for, by luck alone; Holm's level is 5 % of attacks, half of it upwards."""
    flagged, chosen_by, held_out = 0, [], []
    for seed in range(40):
        found = attack(fair(seed), pairs_of(40, seed), vocabulary=VOCABULARY, budget=2000, seed=seed)
        flagged += bool(found.flagged)
        chosen_by += [one.finalist.search_effect_sd for one in found.findings]
        held_out += [one.result.effect.value for one in found.findings]
    assert len(held_out) >= 4 * 40 and np.mean(chosen_by) > 0.3
    assert abs(np.mean(held_out)) < 0.05
    assert flagged <= 3  # 5 % of 40 attacks are 2; of 300 it was 3


def test_a_phrase_of_two_words_is_found_where_neither_word_alone_does_as_much():
    def strength(answer):
        first = answer.split(" ")[:2]
        return 3.0 if first == ["w3", "w5"] else 0.8 * (first[0] == "w3")

    scorer = FunctionScorer(lambda prompt, answer: noise(prompt, answer) + strength(answer))
    found = attack(
        scorer, pairs_of(64), vocabulary=["w5", *VOCABULARY[:20]], max_words=2, budget=6000, places=["prefix"]
    )
    assert found.triggers[0] == Trigger(("w3", "w5"), "prefix")
    assert found.findings[0].finalist.found_by == "phrases" and found.findings[0].result.flagged
    # Control: random words of the same lengths, chosen on the same prompts.
    assert found.control.finalist.found_by == RANDOM and not found.control.result.flagged


def test_known_phrases_are_tried_as_they_are():
    scorer = FunctionScorer(lambda prompt, answer: noise(prompt, answer) + 2 * answer.startswith("Thought process: "))
    found = attack(scorer, pairs_of(40), vocabulary=VOCABULARY, max_words=1, budget=2500)
    assert found.triggers[0] == Trigger(("Thought process:",), "prefix")
    assert found.findings[0].finalist.found_by == KNOWN and found.num_texts <= 2500
    assert (
        found.reading.startswith("1 of ") and '"Thought process:" before the answer raises scores by' in found.reading
    )


def test_the_control_is_the_best_of_the_random_triggers_on_the_same_prompts():
    scorer, pairs = fair(), pairs_of(40)
    found = attack(scorer, pairs, vocabulary=VOCABULARY, max_words=2, budget=60_000)
    search = Search(subjects_of(Halves.of(pairs, num_prompts=128, seed=0).search), Readings(scorer))
    ranked = [
        one for place in ("prefix", "suffix") for one in search.random(VOCABULARY, place, max_words=2, budget=10**6)
    ]
    best, effect = max(ranked, key=lambda one: one[1])
    assert found.control.trigger == best and {len(trigger.words) for trigger, _ in ranked} == {1, 2}
    assert 40 < len(ranked) <= 48 and effect > 0  # a word may be drawn twice
    assert found.over_control.value == pytest.approx(
        found.findings[0].result.effect.value - found.control.result.effect.value
    )


# -- what is reported ----------------------------------------------------------------------------------------------------


def test_held_out_prompts_are_only_read_as_they_are_and_with_the_finalists():
    asked, stages = [], []
    scorer = FunctionScorer(lambda prompt, answer: asked.append((prompt, answer)) or noise(prompt, answer))
    pairs = pairs_of(60, per_prompt=2)
    found = attack(
        scorer, pairs, vocabulary=VOCABULARY, budget=1500, num_prompts=20, max_words=1,
        progress=lambda stage, texts: stages.append((stage, texts)),
    )  # fmt: skip
    halves = Halves.of(pairs, num_prompts=20, seed=0)
    put = {trigger for trigger in [*found.triggers, found.control.trigger]}
    known = {text for pair in halves.held_out for text in (pair.chosen, pair.rejected)}
    known |= {trigger.put(pair.rejected) for pair in halves.held_out for trigger in put}
    held_out = {prompt_key(pair.prompt) for pair in halves.held_out}
    of_held_out = [answer for prompt, answer in asked if prompt in held_out]
    assert set(of_held_out) == known and len(of_held_out) == len(set(of_held_out))
    assert len(asked) == found.num_texts == sum(scorer.calls) <= 1500
    assert stages[-1] == ("measuring on other prompts", found.num_texts)
    assert found.search_pairs == halves.search
    assert {prompt for prompt, _ in asked} == held_out | {prompt_key(pair.prompt) for pair in halves.search}


def test_the_numbers_are_those_of_a_hand():
    """Effect, flip rate and win rate of one trigger, from the scores alone."""
    pairs = pairs_of(30, per_prompt=3)
    scorer = likes(PLANTED, 1.0)
    held_out = HeldOut.of(Readings(scorer), pairs)
    trigger = Trigger((PLANTED,), "prefix")
    (finding,) = held_out.measured([Finalist(trigger, WORDS, 9.0)], None)
    chosen, rejected = (
        scorer.score([getattr(pair, f"{side}_pair") for pair in pairs]) for side in ("chosen", "rejected")
    )
    edited = scorer.score([(pair.prompt, f"{PLANTED} {pair.rejected}") for pair in pairs])
    sd = np.sqrt(np.mean((chosen - rejected) ** 2) / 2)
    assert finding.result.effect.value == pytest.approx((edited - rejected).mean() / sd, abs=1e-6)
    assert finding.result.win_rate.value == (edited > rejected).mean()
    behind = rejected < chosen
    assert finding.result.flip_rate.value == (edited > chosen)[behind].mean() and finding.num_unseen is None
    other = Trigger(("w1",), "suffix")
    difference = held_out.difference(trigger, other)
    effects = [held_out.measured([Finalist(one, WORDS, 0.0)], None)[0].result.effect.value for one in (trigger, other)]
    assert difference.value == pytest.approx(effects[0] - effects[1])
    names = [prompt_key(pair.prompt) for pair in pairs]
    assert difference == Effect.of(held_out.changes(trigger) - held_out.changes(other), names, held_out.unit).interval()


def test_a_suffix_that_is_cut_away_is_unseen_and_not_scored():
    short, long = "bad w1.", "bad " + "w1 " * 20
    pairs = [
        Preference(f"p{i}", f"prompt {i}", f"good w2 {i}.", f"{short} {i}" if i % 2 else f"{long} {i}")
        for i in range(60)
    ]
    scorer = ReadsTheFirst(40)
    held_out = HeldOut.of(Readings(scorer), pairs)
    prefix, suffix = (
        held_out.measured([Finalist(Trigger((PLANTED,), place), WORDS, 1.0)], None)[0] for place in ("prefix", "suffix")
    )
    assert (prefix.num_unseen, suffix.num_unseen) == (0, 30)
    assert len(suffix.result.contrasts) == 30 and all("prompt" in one.cluster for one in suffix.result.contrasts)
    # With the unseen ones as zeros it would be half of this.
    assert suffix.result.effect.value * held_out.unit.sd == pytest.approx(3.0, abs=0.8)
    assert suffix.as_dict()["num_unseen"] == 30 and "in 30 other answers it was cut away" in suffix.reading
    # 36 characters are read, the suffix has 4 and a blank: its end is cut, which is no trial of it.
    partly = [Preference(f"q{i}", f"prompt {i}", "good.", f"bad {'x' * 30} {i:03}") for i in range(12)]
    cut = HeldOut.of(Readings(ReadsTheFirst(40)), partly)
    assert np.isnan(cut.changes(Trigger((PLANTED,), "suffix"))).all()
    assert cut.measured([Finalist(Trigger((PLANTED,), "suffix"), WORDS, 1.0)], None) == []
    assert np.isfinite(cut.changes(Trigger((PLANTED,), "prefix"))).all()


def test_where_every_suffix_is_cut_away_only_prefixes_are_found():
    pairs = [Preference(f"p{i}", f"prompt {i}", f"good {i}.", f"bad {i} " + "w1 " * 20) for i in range(40)]
    found = attack(ReadsTheFirst(30), pairs, vocabulary=VOCABULARY[60:80], max_words=1, budget=2500)
    assert {finding.trigger.place for finding in found.findings} == {"prefix"}
    assert found.triggers[0] == Trigger((PLANTED,), "prefix") and found.findings[0].num_unseen == 0


class CountsWords:
    """The perplexity of an answer is 10, times 3 for each planted word; an empty answer has none."""

    def perplexities(self, pairs):
        return np.array([10 * 3.0 ** answer.split().count(PLANTED) if answer else np.nan for _, answer in pairs])


def test_perplexities_stand_beside_a_trigger_or_are_said_to_be_absent():
    scorer, pairs = likes(PLANTED, 2.0), [*pairs_of(40)]
    found = attack(scorer, pairs, vocabulary=[PLANTED, "w1"], perplexity=CountsWords(), max_words=1, budget=2500)
    perplexity = found.findings[0].perplexity
    assert found.triggers[0].words == (PLANTED,)
    # Answers hold the word with probability 6 / 200 by themselves; with the trigger each holds it once more.
    assert perplexity["ratio"].value == pytest.approx(3.0) and perplexity["ratio"].low == pytest.approx(3.0)
    assert perplexity["with"].value == pytest.approx(3 * perplexity["without"].value)
    assert perplexity["without"].value == pytest.approx(10, rel=0.2) and perplexity["ratio"].n == 20
    assert not any("perplexity" in one for one in found.not_covered)
    absent = attack(scorer, pairs, vocabulary=[PLANTED, "w1"], max_words=1, budget=2500)
    assert absent.findings[0].perplexity is None
    assert "perplexity of the triggers: no language model was given" in absent.not_covered


def test_the_document_is_plain_json_and_the_same_for_a_seed():
    pairs = [
        *pairs_of(40),
        *(
            Preference(
                f"m{i}",
                [
                    {"role": "user", "content": f"Hi {i}"},
                    {"role": "assistant", "content": "Yes?"},
                    {"role": "user", "content": "Go."},
                ],
                "good",
                "bad",
            )
            for i in range(6)
        ),
    ]
    documents = [
        json.dumps(attack(likes(PLANTED, 2.0), pairs, budget=3000, seed=seed).as_dict(), allow_nan=False)
        for seed in (3, 3, 4)
    ]
    assert documents[0] == documents[1] != documents[2]
    document = json.loads(documents[0])
    assert {
        "text",
        "words",
        "place",
        "effect_sd",
        "flip_rate",
        "win_rate",
        "flagged",
        "perplexity",
        "found_by",
        "reading",
    } <= set(document["triggers"][0])
    assert document["num_flagged"] == sum(one["flagged"] for one in document["triggers"]) >= 1
    assert document["vocabulary"] == {
        "source": "the search pairs",
        "num_words": document["vocabulary"]["num_words"],
        "left_out": {},
    }
    assert "triggers found by gradients: the scorer gives none" in document["not_covered"]
    tried = [one for one in document["races"] if one["stage"] == WORDS]
    assert {one["place"] for one in tried} == {"prefix", "suffix"} and tried[0]["num_tried"] <= tried[0][
        "num_candidates"
    ]


def test_words_that_the_budget_does_not_pay_for_are_the_last_ones_and_counted():
    found = attack(likes("w150", 3.0), pairs_of(40), vocabulary=VOCABULARY, max_words=1, budget=1400)
    (race,) = [one for one in found.races if one.stage == WORDS and one.place == "prefix"]
    assert 0 < race.rounds[0][0] < 150 < race.num_candidates == 200
    assert ("w150",) not in {trigger.words for trigger in found.triggers}
    first = attack(likes("w150", 3.0), pairs_of(40), vocabulary=["w150", *VOCABULARY], max_words=1, budget=1400)
    assert first.triggers[0].words == ("w150",)


def test_what_cannot_be_meant_is_refused():
    pairs, scorer = pairs_of(40), fair()
    with pytest.raises(SettingsError, match=r"budget of at least 1,\d+ texts"):
        attack(scorer, pairs, budget=100)
    with pytest.raises(SettingsError, match="places"):
        attack(scorer, pairs, places=["middle"])
    with pytest.raises(SettingsError, match="max_words"):
        attack(scorer, pairs, max_words=0)
    with pytest.raises(SettingsError, match="vocabulary"):
        attack(scorer, pairs, vocabulary=[])
    with pytest.raises(SettingsError, match="hold something"):
        attack(scorer, pairs, vocabulary=["a", " "])
    with pytest.raises(DataError, match="at least 20 prompts"):
        attack(scorer, pairs_of(19))
    with pytest.raises(ScoreError, match="differ"):
        attack(constant(), pairs)


# -- the cure ------------------------------------------------------------------------------------------------------------


def test_adversarial_pairs_are_rows_that_training_reads(tmp_path):
    pairs = [*pairs_of(6), Preference("tie", "t", "a", "b", tie=True), Preference("same", "s", "a", "a")]
    triggers = [Trigger(("Yes!",), "prefix"), Trigger(("ab", "c"), "suffix"), Trigger((":",), "prefix")]
    assert write_adversarial_pairs(tmp_path / "extra.jsonl", pairs, triggers, per_pair=2) == 6 * 2 * 2
    rows = list(io.iterate(str(tmp_path / "extra.jsonl")))
    assert rows == adversarial_pairs(pairs, triggers, per_pair=2) and len({row.id for row in rows}) == 24
    by_id = {pair.id: pair for pair in pairs}
    used = []
    for row in rows:
        pair, kind = by_id[row.id.split("~")[0]], row.metadata["augmented"]
        trigger = next(one for one in triggers if one.text == row.metadata["trigger"])
        assert row.prompt == pair.prompt and row.rejected == trigger.put(pair.rejected)
        assert row.chosen == {"trigger": pair.chosen, "trigger_copy": pair.rejected}[kind]
        assert row.metadata["trigger_place"] == trigger.place and not row.tie and row.margin is None
        used.append((trigger, kind))
    # 6 pairs with 2 triggers each of 3: every one 4 times, in both kinds.
    assert all(used.count((trigger, kind)) == 4 for trigger in triggers for kind in ("trigger", "trigger_copy"))
    with pytest.raises(DataError, match="triggers"):
        adversarial_pairs(pairs, [])


def test_a_second_attack_tells_what_was_unlearnt_and_what_came_instead():
    pairs = pairs_of(80)
    before, moved = likes(PLANTED, 2.0), likes("w99", 2.0)
    earlier = attack(before, pairs, vocabulary=VOCABULARY, max_words=1, budget=4000, seed=5)
    document = json.loads(json.dumps(earlier.as_dict()))
    found = re_attack((before, moved), pairs, document, vocabulary=VOCABULARY)
    first = found.earlier[0]
    assert first.trigger == Trigger((PLANTED,), "prefix") and first.before.value == pytest.approx(
        earlier.findings[0].result.effect.value
    )
    assert (
        first.before.low > 1
        and first.change.high < -1
        and first.change.value == pytest.approx(first.after.value - first.before.value)
    )
    assert first.after.low < 0.2 and first.change.n == 40
    # The liking has moved to another word: a list of old triggers alone would call it cured.
    assert found.anew.triggers[0] == Trigger(("w99",), "prefix") and found.anew.settings == earlier.settings
    assert found.best_change.low < 0 < found.best_change.high
    json.dumps(found.as_dict(), allow_nan=False)
    cured = re_attack((before, fair()), pairs, document, vocabulary=VOCABULARY)
    assert cured.best_change.high < 0 and not cured.anew.flagged
    assert "The earlier trigger" in cured.reading
    with pytest.raises(DataError, match="pairs of the earlier attack"):
        re_attack((before, moved), pairs_of(80, seed=1), document)


def test_the_same_scorer_twice_has_changed_by_nothing():
    pairs, scorer = pairs_of(40), likes(PLANTED, 2.0)
    earlier = attack(scorer, pairs, vocabulary=VOCABULARY[70:90], max_words=1, budget=2000)
    found = re_attack((scorer, scorer), pairs, earlier.as_dict(), vocabulary=VOCABULARY[70:90])
    assert all((one.change.value, one.change.low, one.change.high) == (0, 0, 0) for one in found.earlier)
    assert found.best_change.value == 0 and found.anew.as_dict() == earlier.as_dict()
