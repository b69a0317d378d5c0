"""Win rates against counts by hand, and what becomes of answers that do not match."""

import json

import numpy as np
import pytest
from sklearn.metrics import cohen_kappa_score

from rewardsmith.data.schema import Single
from rewardsmith.errors import DataError, RowError
from rewardsmith.scores import DomainFlag, Drawn, Generator, ScoreTable
from rewardsmith.stats import wilson
from rewardsmith.use.answers_matched import draw_answers, match_answers, read_answers, read_prompts_with_columns
from rewardsmith.use.judges import agreements, winner
from rewardsmith.use.win_rates import outside_domain, share, sign_test, win_rates, win_rates_table
from tests.fakes import ForgetfulScorer, FunctionScorer, by_table, constant, likes_long_answers


def rows(answers, **columns):
    """Rows of {prompt: answers}; `columns` are {name: {prompt: value}}."""
    return [
        Single(f"{prompt}{i}", prompt, answer, {name: values[prompt] for name, values in columns.items()})
        for prompt, some in answers.items()
        for i, answer in enumerate(some)
    ]


def random_sides(num_prompts=40, *, seed=0, most=3):
    """Answers of random lengths, one to `most` a side."""
    rng = np.random.default_rng(seed)
    sides = []
    for side in "ab":
        answers = {}
        for i in range(num_prompts):
            lengths = rng.integers(1, 60, size=rng.integers(1, most + 1))
            answers[f"prompt {i}"] = [side + "x" * int(length) for length in lengths]
        sides.append(rows(answers))
    return sides


def test_all_comparisons_of_a_prompt_are_averaged_and_every_prompt_counts_once():
    """p: A's 3 and 1 against B's 2, 2 and 1: 3 beats all three, 1 loses twice and ties: 3.5 of 6. q: 1 of 1. Win rate (3.5 / 6 + 1) / 2 = 19 / 24.

    Ties: one of six, and none of one: 1 / 12. Margins: p (3 * 4 - 2 * 5) / 6 = 1 / 3, q 4: mean 13 / 6.
    """
    scorer = by_table({"a3": 3, "a1": 1, "b2": 2, "b2'": 2, "b1": 1, "a5": 5, "b0": 1})
    matched = match_answers(rows({"p": ["a3", "a1"], "q": ["a5"]}), rows({"p": ["b2", "b2'", "b1"], "q": ["b0"]}))
    found = win_rates(scorer, matched)
    assert found.win_rate.value == pytest.approx(19 / 24) and found.win_rate.n == 2
    assert found.ties.value == pytest.approx(1 / 12)
    assert found.mean_margin.value == pytest.approx(13 / 6)
    assert found.outcomes.tolist() == pytest.approx([3.5 / 6, 1])
    assert scorer.calls == [7]  # every text once
    first, second = found.rows()
    assert first["answers_a"] == ["a3", "a1"] and first["scores_a"] == [3, 1] and first["scores_b"] == [2, 2, 1]
    assert second == {
        "prompt": "q", "answers_a": ["a5"], "answers_b": ["b0"], "scores_a": [5], "scores_b": [1], "outcome": 1, "metadata": {},
    }  # fmt: skip


def test_exchanged_policies_have_exchanged_results():
    """To the last digits that sums in another order leave; intervals, ties, slices and the model of lengths with them."""
    a, b = random_sides()
    scorer = by_table({row.answer: (len(row.answer) * 37) % 11 + len(row.answer) / 40 for row in [*a, *b]})
    one = win_rates(scorer, match_answers(a, b), temperature=2.0, seed=3)
    other = win_rates(scorer, match_answers(b[::-1], a[::-1]), temperature=2.0, seed=3)
    for first, second in (
        (one.win_rate, other.win_rate),
        (one.expected, other.expected),
        (one.length_controlled.win_rate, other.length_controlled.win_rate),
        (one.length_controlled_expected.win_rate, other.length_controlled_expected.win_rate),
        (one.length_matched, other.length_matched),
        (one.longer, other.longer),
    ):
        mirrored = [1 - second.value, 1 - second.high, 1 - second.low]
        assert [first.value, first.low, first.high] == pytest.approx(mirrored, abs=1e-9)
    assert one.ties.value == pytest.approx(other.ties.value, abs=1e-12)
    assert one.longer_wins.value == pytest.approx(other.longer_wins.value, abs=1e-12)
    assert one.p_value == other.p_value
    assert one.length_controlled.effect.value == pytest.approx(other.length_controlled.effect.value, abs=1e-6)


class ByPlace:
    """Scores up and down with the place in the call."""

    def score(self, pairs):
        return np.sin(np.arange(len(pairs), dtype=np.float32))


def test_the_order_in_which_texts_are_scored_does_not_depend_on_who_is_called_a():
    """A scorer that goes by position: only if both calls ask in one order are the outcomes exchanged, prompt by prompt."""
    a, b = random_sides(20)
    one, other = (win_rates(ByPlace(), match_answers(*sides)).outcomes for sides in ((a, b), (b[::-1], a[::-1])))
    assert one == pytest.approx(1 - other) and 0 < one.mean() < 1


def test_a_prompt_of_many_answers_weighs_no_more_at_equal_length():
    """Answers repeated once to four times, by prompt, change neither the rate at equal length nor its interval (but for the n - 1 of the deviation)."""
    rng = np.random.default_rng(1)
    lengths = rng.integers(10, 90, size=(50, 2))
    a, b = (
        {f"p{i}": [side + "x" * int(n)] for i, n in enumerate(column)}
        for side, column in zip("ab", lengths.T, strict=True)
    )
    better = {f"p{i}" for i in range(50) if rng.random() < 0.35 + 0.5 * (lengths[i, 0] > lengths[i, 1])}
    scorer = FunctionScorer(lambda prompt, answer: float((prompt in better) == (answer[0] == "a")))
    # Prompts that A loses get most copies: without weights the rate would fall.
    copies = {prompt: 1 if prompt in better else 4 for prompt in a}
    many = {prompt: some * copies[prompt] for prompt, some in a.items()}
    once = win_rates(scorer, match_answers(rows(a), rows(b))).length_controlled.win_rate
    often = win_rates(scorer, match_answers(rows(many), rows(b))).length_controlled.win_rate
    assert [often.value, often.low, often.high] == pytest.approx([once.value, once.low, once.high], abs=5e-3)


def test_one_answer_a_prompt_has_wilsons_interval_and_the_sign_test():
    """Nine prompts: seven won, one lost, one even. 7.5 of 9; sign test 2 * (1 + 8) / 2^8 = 0.0703125."""
    scores = {f"a{i}": 1 for i in range(7)} | {"a7": -1, "a8": 0} | {f"b{i}": 0 for i in range(9)}
    matched = match_answers(rows({f"p{i}": [f"a{i}"] for i in range(9)}), rows({f"p{i}": [f"b{i}"] for i in range(9)}))
    found = win_rates(by_table(scores), matched)
    assert found.win_rate == wilson(7.5, 9)
    assert (found.p_value, found.test) == (pytest.approx(18 / 256), "exact sign test")
    # Of so few prompts Wilson's interval, [0.507, 0.960], and the exact test may differ: a winner needs both.
    assert found.win_rate.low > 0.5 and found.winner == "undecided"


def test_means_of_several_comparisons_are_drawn_anew_by_prompt():
    outcomes = np.tile([0.25, 0.75, 0.5, 0.6], 15)
    found = share(outcomes)
    assert "bootstrap over 60 prompts" in found.method
    assert found.high - found.low < wilson(outcomes.sum(), 60).high - wilson(outcomes.sum(), 60).low
    assert sign_test(outcomes)[1] == "sign flips over prompts"
    assert sign_test(np.full(30, 0.75))[0] < 0.001 < 0.5 < sign_test(np.tile([0.25, 0.75], 15))[0]


def test_a_text_ties_with_itself_whatever_the_scorer_does():
    """A scorer that goes by position gives every text that it is asked another score; a text is asked once."""
    answers = {f"p{i}": [f"answer {i}"] for i in range(12)}
    found = win_rates(ForgetfulScorer(), match_answers(rows(answers), rows(answers)))
    assert found.ties.value == 1 and found.win_rate.value == 0.5 and found.p_value == 1
    assert found.matched.counts["same_answers"] == 12
    assert any("100.0 % of the comparisons are ties" in line for line in found.warnings)


class ShortSighted:
    """Reads ten characters; what it reads alike still gets scores of its own, as the company of a batch may."""

    def table(self, pairs):
        table = ScoreTable.empty()
        n = len(pairs)
        digests = np.array([hash((prompt, answer[:10])) % 2**63 for prompt, answer in pairs], dtype=np.uint64)
        cut = np.array([len(answer) > 10 for _, answer in pairs])
        scores = np.array([len(answer[:10]) + 1e-6 * i for i, (_, answer) in enumerate(pairs)], dtype=np.float32)
        zeros = np.zeros(n, np.int64)
        return type(table)(scores, zeros, zeros, cut, zeros, zeros, zeros, digests)

    def score(self, pairs):
        return self.table(pairs).score


def test_answers_that_are_cut_to_the_same_are_ties_and_counted():
    a = {"p": ["0123456789 and more"], "q": ["short"], "r": ["0123456789 b"]}
    b = {"p": ["0123456789 or less"], "q": ["a bit longer"], "r": ["x"]}
    found = win_rates(ShortSighted(), match_answers(rows(a), rows(b)))
    assert found.outcomes.tolist() == [0.5, 0.0, 1.0]
    assert (found.comparisons.collapsed, found.comparisons.truncated) == (1, 4)
    assert any("4 of 6 texts were cut" in line for line in found.warnings)
    assert any("1 comparisons are of answers that are the same after the cut" in line for line in found.warnings)


def test_what_does_not_match_is_counted():
    a = rows({"both": ["x", "x", " "], "only a": ["y"]})
    b = [
        Single("0", [{"role": "user", "content": "both"}], "x"),  # the same conversation as the text
        Single("1", [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "both"}], "z"),
    ]
    matched = match_answers(a, b)
    assert matched.prompts == ["both"] and matched.a == [("x", "x", " ")] and matched.b == [("x",)]
    assert matched.counts == {
        "answers_a": 3, "prompts_only_a": 1, "empty_a": 1, "repeated_a": 1,
        "answers_b": 1, "prompts_only_b": 1, "empty_b": 0, "repeated_b": 0, "same_answers": 2,
    }  # fmt: skip
    said = " ".join(win_rates(constant(), matched).warnings)
    assert "1 answers of A are empty" in said and "1 prompts that B alone" in said and "1 answers of A repeat" in said
    with pytest.raises(DataError, match="none in common"):
        match_answers(rows({"p": ["x"]}), rows({"q": ["x"]}))


def test_rows_of_other_kinds_and_malformed_ones_are_refused(write_rows):
    good = {"prompt": "p", "answer": "x", "topic": "t"}
    pairs = write_rows([good, {"prompt": "p", "chosen": "x", "rejected": "y"}], "pairs.jsonl")
    with pytest.raises(DataError, match="a pair"):
        read_answers(pairs)
    bad = write_rows([good, {"prompt": "p", "answer": 3}], "bad.jsonl")
    with pytest.raises(RowError):
        read_answers(bad)
    found, skipped = read_answers(bad, skip_bad=True)
    assert [row.metadata for row in found] == [{"topic": "t"}] and skipped == 1


def test_calibrated_probabilities_are_averaged():
    """Margins 2 ln 3 and 0 at temperature 2: (0.75 + 0.5) / 2."""
    matched = match_answers(rows({"p": ["a"], "q": ["c"]}), rows({"p": ["b"], "q": ["d"]}))
    found = win_rates(by_table({"a": 2 * np.log(3), "b": 0, "c": 1, "d": 1}), matched, temperature=2.0)
    assert found.expected.value == pytest.approx(0.625)
    assert win_rates(constant(), matched).expected is None


def test_like_lengths_differ_by_less_than_a_tenth():
    """100 against 91 is like, 100 against 90 is not; of the two prompts of like length A wins one."""
    a = {"p": ["a" * 100], "q": ["b" * 91], "r": ["c" * 100]}
    b = {"p": ["d" * 91], "q": ["e" * 100], "r": ["f" * 90]}
    found = win_rates(likes_long_answers(), match_answers(rows(a), rows(b)))
    assert (found.length_matched.value, found.length_matched.n) == (0.5, 2)
    assert any("2 prompts have answers of like length" in line for line in found.warnings)
    assert found.win_rate.value == pytest.approx(2 / 3) and found.longer_wins.value == 1
    none = win_rates(constant(), match_answers(rows({"p": ["long answer"]}), rows({"p": ["x"]})))
    assert none.length_matched is None and none.as_dict()["length_matched_win_rate"] is None


def test_slices_go_by_what_all_rows_of_a_prompt_agree_on():
    """Topic u is won 12 of 12, topic v 6 of 12; the prompt with two topics is in neither."""
    prompts = [f"p{i:02}" for i in range(24)]
    topics = {prompt: "u" if i < 12 else "v" for i, prompt in enumerate(prompts)}
    a = rows({prompt: [f"a{prompt}"] for prompt in prompts}, topic=topics)
    a += [Single("x", "mixed", "am", {"topic": "u"}), Single("y", "mixed", "an", {"topic": "v"})]
    b = rows({prompt: [f"b{prompt}"] for prompt in [*prompts, "mixed"]})
    wins = set(prompts[:18])
    scorer = by_table(
        {row.answer: float(row.answer[0] == "a" and row.prompt in wins) for row in a} | {row.answer: 0.5 for row in b}
    )
    found = win_rates(scorer, match_answers(a, b), by=["topic"])
    assert {one.value: (one.win_rate.value, one.win_rate.n) for one in found.slices} == {"u": (1, 12), "v": (0.5, 12)}
    first, second = found.slices
    assert first.p_value == pytest.approx(2 / 2**12) and second.p_value == 1
    assert first.p_adjusted == pytest.approx(2 * first.p_value)  # Holm: two tests
    assert found.as_dict()["by"]["topic"]["u"]["value"] == 1
    fresh = by_table({})
    with pytest.raises(DataError, match="colour"):
        win_rates(fresh, match_answers(a, b), by=["colour"])
    assert fresh.calls == []


def test_the_verdict_says_what_length_does_to_it():
    """A wins by length alone: 55 of 60 where it is longer, 2 of 20 where it is shorter; at equal length about half."""
    rng = np.random.default_rng(0)
    a, b, scores = {}, {}, {}
    for i in range(80):
        longer, wins = i < 60, i < 55 or i >= 78
        a[f"p{i}"] = ["a" * int(rng.integers(50, 60) + 30 * longer) + str(i)]
        b[f"p{i}"] = ["b" * int(rng.integers(50, 60) + 30 * (not longer)) + str(i)]
        scores |= {a[f"p{i}"][0]: float(wins), b[f"p{i}"][0]: 0.5}
    found = win_rates(by_table(scores), match_answers(rows(a), rows(b)))
    assert found.winner == "A" and winner(found.length_controlled.win_rate) == "undecided"
    assert "length may be all there is to it" in found.verdict()
    even = win_rates(constant(), match_answers(rows(a), rows(b)))
    assert even.verdict().startswith("This scorer does not tell the policies apart")
    titles = [column.header for column in win_rates_table(found.as_dict(), "t").columns]
    assert titles == ["", "value", "95 % interval", "n"]


def test_the_verdict_claims_nothing_of_equal_length_where_nothing_was_fitted():
    """A wins all 30, by ten characters each time: the plain rate stands in the place of the controlled one."""
    a, b = ({f"p{i}": [side * (length + i)] for i in range(30)} for side, length in (("a", 20), ("b", 10)))
    matched = match_answers(rows(a), rows(b))
    found = win_rates(likes_long_answers(), matched)
    assert found.winner == "A" and found.length_controlled.note is not None
    assert (
        found.verdict().endswith("what it would be at equal length cannot be told.") and "still" not in found.verdict()
    )
    even = win_rates(constant(), matched)
    assert even.verdict().endswith("what it would be at equal length cannot be told.")


def test_one_sided_lengths_are_an_extrapolation():
    a = {f"p{i}": ["a" * (20 + i)] for i in range(30)}
    b = {f"p{i}": ["b" * (10 + i % 7)] for i in range(30)}
    scores = {text: float(len(text) * 13 % 5) for side in (a, b) for some in side.values() for text in some}
    found = win_rates(by_table(scores), match_answers(rows(a), rows(b)))
    assert any("A's answer is the longer one in 100 %" in line and "extrapolated" in line for line in found.warnings)


class FlagsShouting:
    """Outside of the domain: whatever has an exclamation mark."""

    def flags(self, pairs):
        return [DomainFlag(1.0, 0.01, "!" in answer, "answers") for _, answer in pairs]


def test_texts_outside_of_the_domain_are_counted_by_side_and_warned_of():
    """A shouts on 10 of 20 prompts, B never. Inside of the domain B wins all; A wins where it shouts."""
    a = rows({f"p{i}": [f"a{'!' if i < 10 else ''}{i}"] for i in range(20)})
    b = rows({f"p{i}": [f"b{i}"] for i in range(20)})
    scorer = by_table({row.answer: float("!" in row.answer) for row in a} | {row.answer: 0.5 for row in b})
    rates = win_rates(scorer, match_answers(a, b))
    found = outside_domain(FlagsShouting(), rates, level=0.05)
    assert (found.share_a.value, found.share_b.value) == (0.5, 0)
    assert (found.win_rate_inside.value, found.win_rate_inside.n, rates.win_rate.value) == (0, 10, 0.5)
    assert len(found.warnings) == 1 and found.warnings[0].startswith("50 % of A's answers")


def test_kappa_is_that_of_scikit_learn():
    rng = np.random.default_rng(0)
    first = rng.choice([0.0, 0.5, 1.0], size=80, p=[0.5, 0.1, 0.4])
    second = np.where(rng.random(80) < 0.7, first, rng.choice([0.0, 0.5, 1.0], size=80))
    (found,) = agreements({"one": first, "other": second})
    assert found.kappa.value == pytest.approx(cohen_kappa_score(np.sign(first - 0.5), np.sign(second - 0.5)))
    assert found.kappa.low < found.kappa.value < found.kappa.high
    assert found.share.value == pytest.approx((first == second).mean())
    (alone,) = agreements({"one": np.ones(12), "other": np.ones(12)})
    assert alone.share.value == 1 and alone.kappa is None
    assert winner(wilson(18, 20)) == "A" and winner(wilson(2, 20)) == "B" and winner(wilson(11, 20)) == "undecided"


class Counting:
    """Answers with the number of the answer and the seed; the second answer is cut."""

    def draw(self, prompts, num_answers, *, seed):
        return [
            [Drawn(f"a {j} {seed}", is_cut=j == 1, prompt_cut=int(prompt == "q")) for j in range(num_answers)]
            for prompt in prompts
        ]


def test_drawn_answers_keep_columns_and_say_what_was_cut(write_rows):
    data = write_rows(
        [
            {"prompt": "p", "topic": "t"},
            {"prompt": "p", "topic": "again"},
            {"prompt": "q", "chosen": "x", "rejected": "y", "topic": "u"},
        ]
    )
    prompts = read_prompts_with_columns(data)
    assert prompts == {"p": ("p", {"topic": "t"}), "q": ("q", {"topic": "u"})}
    policy = Counting()
    assert isinstance(policy, Generator)
    drawn = draw_answers(policy, prompts, num_answers=2, seed=5)
    assert [row.answer for row in drawn.rows] == ["a 0 5", "a 1 5"] * 2
    assert [row.metadata for row in drawn.rows][1:3] == [
        {"topic": "t", "is_cut": True},
        {"topic": "u", "is_cut": False},
    ]
    assert (drawn.num_cut, drawn.num_prompts_cut) == (2, 1)
    with pytest.raises(RowError):
        read_prompts_with_columns(write_rows([{"prompt": 3}], "bad.jsonl"))


def test_the_document_is_json():
    a, b = random_sides(12)
    document = win_rates(likes_long_answers(), match_answers(a, b), temperature=1.0).as_dict()
    assert json.loads(json.dumps(document, allow_nan=False)) == document
    for name in ("win_rate", "length_controlled_win_rate", "ties", "mean_margin", "expected_win_rate"):
        assert set(document[name]) == {"value", "low", "high", "n", "method"}
