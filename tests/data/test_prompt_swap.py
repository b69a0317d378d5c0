"""Extra pairs from other prompts: who borrows from whom, how often, and what is never lent."""

from collections import Counter

import pytest

from rewardsmith.data.prompt_swap import swapped_pairs
from rewardsmith.data.schema import Preference
from rewardsmith.errors import DataError


def pair(number, prompt=None, **more):
    """Pair i answers the prompt p<i> with good<i> over bad<i>."""
    texts = {"chosen": f"good{number}", "rejected": f"bad{number}"} | more
    return Preference(f"id{number}", f"p{number}" if prompt is None else prompt, **texts)


SIX = [pair(i) for i in range(6)]


def lenders(extra):
    return [int(text.removeprefix("good").removeprefix("bad")) for text in (extra.chosen, extra.rejected)]


@pytest.mark.parametrize("seed", range(20))
def test_an_off_topic_pair_sets_the_chosen_answer_over_one_of_another_prompt(seed):
    extras = swapped_pairs(SIX, off_topic=1.0, neutral=0.0, seed=seed)
    assert sorted(extra.id for extra in extras) == [f"id{i}~off_topic1" for i in range(6)]
    for extra in extras:
        borrower, lender = lenders(extra)
        assert extra.prompt == f"p{borrower}" and extra.chosen == f"good{borrower}" and lender != borrower
        assert not extra.tie and extra.metadata == {"augmented": "off_topic"}
    # Six borrowers and six lenders: each pair lends one of its two answers.
    assert sorted(lenders(extra)[1] for extra in extras) == list(range(6))


@pytest.mark.parametrize("seed", range(20))
def test_a_neutral_pair_is_a_tie_of_two_other_prompts(seed):
    extras = swapped_pairs(SIX, off_topic=0.0, neutral=1.0, seed=seed)
    assert sorted(extra.id for extra in extras) == [f"id{i}~neutral1" for i in range(6)]
    for extra in extras:
        assert len({extra.prompt, *(f"p{lender}" for lender in lenders(extra))}) == 3
        assert extra.tie and extra.metadata == {"augmented": "neutral"}
    # Six pairs of two answers: each of the twelve answers is lent once.
    lent = Counter(text for extra in extras for text in (extra.chosen, extra.rejected))
    assert set(lent.values()) == {1} and len(lent) == 12


def test_every_answer_is_lent_once_before_any_is_lent_twice():
    for rounds in (1, 2, 3, 4):
        lent = Counter(extra.rejected for extra in swapped_pairs(SIX, off_topic=rounds, neutral=0, seed=3))
        # 6 x rounds pairs over 12 answers: counts differ by at most one.
        counts = [lent[f"{side}{i}"] for side in ("good", "bad") for i in range(6)]
        assert sum(counts) == 6 * rounds and max(counts) - min(counts) <= 1
        assert (max(counts) == min(counts)) == (rounds % 2 == 0)


def test_chosen_and_rejected_answers_are_lent_about_evenly():
    extras = swapped_pairs([pair(i) for i in range(1000)], off_topic=1.0, neutral=1.0, seed=0)
    off_topic, neutral = extras[:1000], extras[1000:]
    # A thousand coins: 500 heads, give or take 16.
    assert 430 < sum(extra.rejected.startswith("good") for extra in off_topic) < 570
    assert 430 < sum(extra.chosen.startswith("good") for extra in neutral) < 570


def test_ratios_are_of_the_pairs_that_borrow():
    # 0.5 x 6 = 3 and 1.5 x 6 = 9; half of a round lends three different answers to three different prompts.
    extras = swapped_pairs(SIX, off_topic=0.5, neutral=1.5, seed=0)
    kinds = Counter(extra.metadata["augmented"] for extra in extras)
    assert kinds == {"off_topic": 3, "neutral": 9}
    assert len({extra.prompt for extra in extras[:3]}) == len({extra.rejected for extra in extras[:3]}) == 3
    assert len({extra.id for extra in extras}) == 12


def test_part_of_a_round_borrows_for_single_pairs_and_not_for_whole_prompts():
    two_each = [pair(i, f"q{i // 2}") for i in range(200)]
    borrowers = Counter(extra.prompt for extra in swapped_pairs(two_each, off_topic=0.5, neutral=0, seed=0))
    # Each of the 200 pairs borrows with a chance of one half: about half of the 100 prompts have one of their two pairs among them.
    assert 30 < sum(count == 1 for count in borrowers.values()) < 70


@pytest.mark.parametrize("seed", range(20))
def test_pairs_of_one_prompt_never_lend_to_each_other(seed):
    # The prompt "q" has half of the pairs, in both of its written forms; for neutral pairs at most a third may be of one prompt.
    message = [{"role": "user", "content": "q"}]
    half = [pair(0, "q"), pair(1), pair(2, message), pair(3)]
    third = [*half, pair(4), pair(5)]
    for extra in swapped_pairs(half, off_topic=2, neutral=0, seed=seed):
        borrower, lender = lenders(extra)
        assert {borrower, lender} != {0, 2} and borrower != lender
    for extra in swapped_pairs(third, off_topic=0, neutral=2, seed=seed):
        borrower = int(extra.id.removeprefix("id").partition("~")[0])
        three = ["q" if i in (0, 2) else i for i in (borrower, *lenders(extra))]
        assert len(set(three)) == 3


def test_labels_of_the_source_do_not_travel():
    labelled = [pair(i, group="g", margin=2.0, weight=3.0, votes=(4, 1), metadata={"topic": "t"}) for i in range(3)]
    for extra in swapped_pairs(labelled, off_topic=1, neutral=1, seed=0):
        assert (extra.group, extra.margin, extra.weight, extra.votes) == (None, None, None, None)
        assert set(extra.metadata) == {"augmented"}


def test_ties_and_faulty_pairs_neither_borrow_nor_lend():
    others = [
        pair(10, tie=True),
        pair(11, rejected_prompt="another"),
        pair(12, chosen=" "),
        pair(13, rejected="good13"),
    ]
    mixed = [others[0], *SIX[:3], *others[1:], *SIX[3:]]
    for seed in range(5):
        arguments = {"off_topic": 2, "neutral": 2, "seed": seed}
        assert swapped_pairs(mixed, **arguments) == swapped_pairs(SIX, **arguments)


@pytest.mark.parametrize("seed", range(20))
def test_an_answer_that_is_the_prompts_own_is_not_lent_to_it(seed):
    # "I do not know." is chosen for the first two prompts, with other white space, and rejected for the third.
    pairs = [
        pair(0, chosen="I do not know."),
        pair(1, chosen="I  do not know.\n"),
        pair(2, rejected="I do not know."),
        *(pair(i) for i in range(3, 7)),
    ]
    unknown = {"I do not know.", "I  do not know.\n"}
    extras = swapped_pairs(pairs, off_topic=4, neutral=4, seed=seed)
    assert len(extras) == 56
    for extra in extras:
        if not extra.tie:
            assert not {extra.chosen, extra.rejected} <= unknown
        else:
            # Neither the borrower's own answer nor the same answer twice.
            assert len(unknown & {extra.chosen, extra.rejected}) <= (0 if extra.prompt in ("p0", "p1", "p2") else 1)


def test_the_same_seed_and_order_give_the_same_pairs_and_others_give_others():
    def ids_and_answers(pairs, **more):
        extras = swapped_pairs(pairs, **({"off_topic": 1, "neutral": 1, "seed": 0} | more))
        return [(extra.id, extra.chosen, extra.rejected) for extra in extras]

    many = [pair(i) for i in range(50)]
    assert ids_and_answers(many) == ids_and_answers(list(many))
    assert ids_and_answers(many) != ids_and_answers(many, seed=1)
    # The neutral pairs do not change with the number of off-topic ones.
    assert ids_and_answers(many)[50:] == ids_and_answers(many, off_topic=0)
    assert ids_and_answers(many)[:50] == ids_and_answers(many, neutral=0)


def test_nothing_asked_for_is_nothing_made():
    assert swapped_pairs(SIX[:1], off_topic=0, neutral=0, seed=0) == []


@pytest.mark.parametrize("kind", ["off_topic", "neutral"])
def test_fewer_than_three_prompts_are_refused(kind):
    asked = {"off_topic": 0, "neutral": 0, "seed": 0} | {kind: 1}
    with pytest.raises(DataError, match="three prompts.*2 prompts"):
        swapped_pairs([pair(0, "q"), pair(1, "q"), pair(2), pair(3, tie=True)], **asked)


def test_a_prompt_that_holds_most_of_the_pairs_is_refused():
    three_of_five = [pair(0, "q"), pair(1, "q"), pair(2, "q"), pair(3), pair(4)]
    with pytest.raises(DataError, match="more than half.*3 of 5"):
        swapped_pairs(three_of_five, off_topic=1, neutral=0, seed=0)
    two_of_four = three_of_five[1:]
    assert len(swapped_pairs(two_of_four, off_topic=1, neutral=0, seed=0)) == 4
    with pytest.raises(DataError, match="more than a third.*2 of 4"):
        swapped_pairs(two_of_four, off_topic=0, neutral=1, seed=0)


def test_answers_that_do_not_depend_on_the_prompt_are_refused():
    verdicts = [pair(i, chosen="Yes.", rejected="No.") for i in range(6)]
    # "Yes." over the "No." of another prompt is right; a tie of two other answers cannot be made from these two.
    assert {extra.rejected for extra in swapped_pairs(verdicts, off_topic=1, neutral=0, seed=0)} == {"No."}
    with pytest.raises(DataError, match="differ from prompt to prompt.*0 after 11 rounds"):
        swapped_pairs(verdicts, off_topic=0, neutral=1, seed=0)
