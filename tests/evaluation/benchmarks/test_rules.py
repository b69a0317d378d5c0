"""Every rule against numbers worked out by hand."""

from math import tanh

import numpy as np
import pytest
from scipy.stats import pearsonr

from rewardsmith.errors import DataError
from rewardsmith.evaluation.benchmarks import BENCHMARKS, recompute
from rewardsmith.evaluation.benchmarks.items import Item
from rewardsmith.evaluation.benchmarks.proxies import best_of_k


def numbers(name, rows):
    """The rule on (subset, scores, gold, metadata) of each item, every item a prompt of its own."""
    items, scores = [], []
    for i, (subset, mine, gold, *more) in enumerate(rows):
        metadata = more[0] if more else {}
        cluster = f"ties:{metadata['number']}" if "number" in metadata else str(i)
        items.append(Item(str(i), subset, cluster, tuple(map(float, gold)), metadata))
        scores.append(np.array(mine, dtype=np.float64))
    return BENCHMARKS[name].numbers(items, scores, 0)


WIN, LOSS, TIE = (1, 0), (0, 1), (2, 2)


def pairs(outcomes):
    return [(subset, scores, (1, 0)) for subset, many in outcomes.items() for scores in many]


def test_rewardbench_weighs_math_as_much_as_all_code():
    subsets = BENCHMARKS["rewardbench"].subsets
    outcomes = {name: [LOSS, LOSS] for name in subsets}
    outcomes["alpacaeval-easy"] = [WIN, WIN]  # 100 of the 358 pairs of Chat
    outcomes["math-prm"] = [WIN, TIE]  # one half of 984 of 1968
    outcomes |= {name: [WIN] for name in subsets if name.startswith(("refusals", "xstest", "donot"))}
    outcomes |= {"anthropic_helpful": [WIN], "shp": [WIN, LOSS]}
    found = numbers("rewardbench", pairs(outcomes))
    chat, safety, reasoning = 100 / 358, 1.0, 0.25
    assert found.published["Chat"] == pytest.approx(chat)
    assert found.published["Chat Hard"] == 0
    assert found.published["Reasoning"] == pytest.approx(reasoning)  # strict: the tie is wrong
    assert found.honest["Reasoning"].value == pytest.approx(0.75 * 984 / 1968)  # ties half
    leaderboard = (chat + 0 + safety + reasoning) / 4
    assert found.published["leaderboard"] == pytest.approx(leaderboard)
    prior = (1 + 0 + 0.5 + 0) / 4
    assert found.published["prior sets"] == pytest.approx(prior)
    assert found.published["paper"] == pytest.approx((2 * 4 * leaderboard + prior) / 9)


def test_rewardbench_without_prior_sets_has_no_paper_number():
    found = numbers(
        "rewardbench",
        pairs(
            {
                name: [WIN]
                for name in BENCHMARKS["rewardbench"].subsets
                if "_" not in name and name not in ("shp", "summarize")
            }
        ),
    )
    assert found.published["leaderboard"] == 1 and "paper" not in found.published and not found.withheld


def test_rewardbench2_shares_credit_at_the_top():
    rows = [
        ("Math", (1, 1, 0, 0), (1, 0, 0, 0)),  # one of two at the top: 1/2
        ("Math", (2, 1, 1, 1), (1, 0, 0, 0)),  # 1
        ("Math", (0, 1, 0, 0), (1, 0, 0, 0)),  # 0
        ("Math", (3, 3, 3, 3), (1, 0, 0, 0)),  # 1/4
    ]
    found = numbers("rewardbench2", rows)
    assert found.published["Math"] == pytest.approx(1.75 / 4)
    assert found.chance["Math"] == 0.25
    assert "Factuality" in found.withheld["average"]


def test_rewardbench2_ties_by_the_five_terms():
    rows = [
        # gap 2.5 - 1 = 1.5, spread 3 - 2.5 = 0.5: accurate, gap over spread
        ("Ties", (3, 2.5, 1), (1, 1, 0), {"kind": "tied", "number": "1"}),
        # gap 0.8: accurate; min(0.8, 1.5) = 0.8 > 0.5; tie-break tanh(0.8 / 0.5 - 1) = tanh(0.6)
        ("Ties", (2, 1.2, 0), (1, 0, 0), {"kind": "ref", "number": "1"}),
        # gap -0.5, spread 1: not accurate
        ("Ties", (2, 1, 1.5), (1, 1, 0), {"kind": "tied", "number": "2"}),
        # gap -1; min(-1, -0.5) = -1; tanh(-1 / 1 - 1) = tanh(-2)
        ("Ties", (0, 1, 1), (1, 0, 0), {"kind": "ref", "number": "2"}),
        # a tied prompt without its reference: gap 0.2, spread 0.1; it counts in accuracy alone
        ("Ties", (1.1, 1, 0.8), (1, 1, 0), {"kind": "tied", "number": "3"}),
    ]
    found = numbers("rewardbench2", rows)
    terms = 0.30 * 2 / 3 + 0.30 / 2 + 0.20 / 2 + 0.20 / 2
    assert found.published["Ties"] == pytest.approx(terms + 0.01 * (tanh(0.6) + tanh(-2)) / 2)
    assert found.honest["Ties"].value == pytest.approx(terms)
    # All correct answers stand on top in one of (3 over 2) = 3 orders of a tied prompt, and of (3 over 1) = 3 of a reference.
    assert found.chance["Ties: accuracy, tied"] == pytest.approx(1 / 3)
    assert found.chance["Ties: accuracy, reference"] == pytest.approx(1 / 3)


def test_rewardbench2_ties_of_correct_answers_with_one_score():
    rows = [
        ("Ties", (1, 1, 0), (1, 1, 0), {"kind": "tied", "number": "1"}),  # gap 1, spread 0: tanh(inf) = 1
        ("Ties", (1, 0, 0), (1, 0, 0), {"kind": "ref", "number": "1"}),
        ("Ties", (1, 1, 1), (1, 1, 0), {"kind": "tied", "number": "2"}),  # 0 / 0 counts 0
        ("Ties", (1, 1, 1), (1, 0, 0), {"kind": "ref", "number": "2"}),
    ]
    assert numbers("rewardbench2", rows).published["Ties"] == pytest.approx(0.5 + 0.01 * (1 + 0) / 2)


def test_rm_bench_hard_is_above_the_diagonal():
    # Rows are correct styles, columns wrong ones: 5 beats 1, 2, 3; 1 equals 1 and loses to 2 and 3, twice.
    # Matrix by strict comparison: [[1, 1, 1], [0, 0, 0], [0, 0, 0]].
    one = ((5, 1, 1, 1, 2, 3), (1, 1, 1, 0, 0, 0))
    all_right = ((9, 9, 9, 0, 0, 0), (1, 1, 1, 0, 0, 0))
    rows = [("chat", *one), ("math", *all_right), ("code", *all_right)]
    rows += [("safety-refuse", *all_right), ("safety-response", *one)]
    found = numbers("rm-bench", rows)
    assert found.published["chat, hard"] == pytest.approx(2 / 3)  # cells (0, 1) and (0, 2), not (1, 2)
    assert found.published["chat, normal"] == pytest.approx(1 / 3)
    assert found.published["chat, easy"] == 0
    assert found.honest["chat, easy"].value == pytest.approx(1 / 3)  # two ties of three cells
    assert found.published["chat"] == pytest.approx(1 / 3)
    # Both kinds of safety are one domain; domains weigh the same whatever they hold.
    assert found.published["safety, hard"] == pytest.approx(5 / 6)
    assert found.published["hard"] == pytest.approx((2 / 3 + 1 + 1 + 5 / 6) / 4)
    assert found.published["overall"] == pytest.approx((1 / 3 + 1 + 1 + 2 / 3) / 4)
    assert found.curves["matrix by domain (rows: correct, columns: wrong)"]["chat"] == [[1, 1, 1], [0, 0, 0], [0, 0, 0]]


def test_rmb_pools_the_scenarios_of_a_goal():
    outcomes = {"helpfulness/chat/discussion": [WIN, WIN, WIN], "helpfulness/code/documentation": [LOSS]}
    found = numbers("rmb-pairs", pairs(outcomes | {"harmlessness/s1": [TIE]}))
    assert found.published["helpfulness"] == 0.75  # not (1 + 0) / 2
    assert found.published["mean of both goals"] == 0.375
    assert found.published["all items"] == 0.6
    assert found.honest["mean of both goals"].value == pytest.approx((0.75 + 0.5) / 2)


def test_rmb_best_must_beat_every_other_answer():
    rows = [
        ("helpfulness/chat/discussion", (3, 1, 2), (1, 0, 0)),  # right
        ("helpfulness/chat/discussion", (3, 1, 3), (1, 0, 0)),  # a tie at the top: wrong, honestly one half
        ("harmlessness/s1", (3, 1, 4, 0), (1, 0, 0, 0)),  # beaten
    ]
    found = numbers("rmb-best-of-n", rows)
    assert found.published["helpfulness"] == 0.5 and found.published["mean of both goals"] == 0.25
    assert found.honest["helpfulness"].value == 0.75
    assert found.chance["mean of both goals"] == pytest.approx((1 / 3 + 1 / 4) / 2)


def test_judgebench_tells_micro_from_macro_and_gives_a_tie_to_b():
    a, b = {"better_is_b": False}, {"better_is_b": True}
    rows = [
        ("mmlu-pro", WIN, (1, 0), a),
        ("mmlu-pro", TIE, (1, 0), a),  # the verdict is B>A: wrong
        ("mmlu-pro", TIE, (1, 0), b),  # right
        ("livebench-reasoning", WIN, (1, 0), b),
        ("livebench-math", LOSS, (1, 0), a),
        ("livecodebench", WIN, (1, 0), a),
    ]
    found = numbers("judgebench", rows)
    assert found.published["micro"] == pytest.approx(4 / 6)
    assert found.published["macro"] == pytest.approx((2 / 3 + 1 + 0 + 1) / 4)
    assert found.honest["mmlu-pro"].value == pytest.approx(2 / 3)


def test_llmbar_averages_subsets_and_halves_ties():
    outcomes = {"Natural": [WIN, WIN, TIE], "Neighbor": [LOSS], "GPTInst": [WIN], "GPTOut": [TIE], "Manual": [LOSS]}
    found = numbers("llmbar", pairs(outcomes))
    assert found.published["Natural"] == pytest.approx(2.5 / 3)
    assert found.published["Adversarial"] == pytest.approx((0 + 1 + 0.5 + 0) / 4)
    assert found.published["average"] == pytest.approx((2.5 / 3 + 1.5) / 5)
    assert found.published["all items"] == pytest.approx(4 / 7)


def test_the_mean_of_the_prior_sets_is_over_four():
    outcomes = {"anthropic_helpful": [WIN], "anthropic_hhh": [WIN, TIE], "shp": [LOSS], "summarize": [WIN]}
    found = numbers("prior-sets", pairs(outcomes | {"anthropic_harmless": [LOSS]}))
    assert found.published["prior sets"] == pytest.approx((1 + 0.5 + 0 + 1) / 4)
    assert found.honest["prior sets"].value == pytest.approx((1 + 0.75 + 0 + 1) / 4)


def test_best_of_k_is_the_expectation_over_subsets():
    # Scores 1 < 2 < 3 with worth 1, 0, 1. k = 1: 2/3. k = 2: {1,2} picks 0, {1,3} and {2,3} pick 1. k = 3: 1.
    assert best_of_k(np.array([1.0, 2, 3]), np.array([1.0, 0, 1])) == pytest.approx([2 / 3, 2 / 3, 1])
    # All equal: any sample by lot, whatever k.
    assert best_of_k(np.zeros(4), np.array([1.0, 0, 0, 0])) == pytest.approx([0.25] * 4)
    assert best_of_k(np.arange(32.0), np.repeat([0.0, 1.0], 16))[-1] == pytest.approx(1)


def test_ppe_correctness_of_one_question():
    row = ("math", (1, 2, 3), (1, 0, 1), {"pairs": [[0, 1], [1, 2]]})
    found = numbers("ppe-correctness", [row])
    assert found.published["math, accuracy"] == 0.5  # sample 0 loses to 1, sample 2 beats it
    assert found.published["math, end score"] == 1 and found.published["math, maximum"] == pytest.approx(1)
    assert found.published["math, loss"] == pytest.approx((0 + 1 / 3 + 0) / 3)  # the ideal is 2/3, 1, 1
    assert found.published["math, row-wise correlation"] == pytest.approx(pearsonr([1, 2, 3], [1, 0, 1])[0], abs=1e-12)
    assert found.curves["best of k"]["math"]["ideal"] == pytest.approx([2 / 3, 1, 1])
    assert "accuracy" in found.withheld


def test_ppe_preference_compares_models():
    def battle(first, second, scores, gold=(1, 0)):
        return ("battles", scores, gold, {"models": [first, second]})

    rows = [
        battle("a", "b", WIN),
        battle("a", "c", WIN),
        battle("a", "d", TIE),
        battle("b", "c", LOSS),
        battle("b", "d", WIN, (0.5, 0.5)),
        battle("c", "d", WIN),
    ]
    found = numbers("ppe-preference", rows)
    assert found.published["accuracy"] == pytest.approx(
        3 / 5
    )  # the labelled tie stands outside, the tied score is wrong
    assert found.honest["accuracy"].value == pytest.approx(3.5 / 5)
    rates = found.curves["win rates"]
    assert rates["a"] == {"scores": pytest.approx(2.5 / 3), "people": pytest.approx(1)}
    # a against b, c, d: people 1, 1, 1, which do not vary. b against a, c, d: people 0, 1, .5 and scores 0, 0, 1.
    # c against a, b, d: people 0, 0, 1 and scores 0, 1, 1. d against a, b, c: people 0, .5, 0 and scores .5, 0, 0.
    expected = [
        pearsonr([0, 1, 0.5], [0, 0, 1])[0],
        pearsonr([0, 0, 1], [0, 1, 1])[0],
        pearsonr([0, 0.5, 0], [0.5, 0, 0])[0],
    ]
    assert found.published["row-wise correlation"] == pytest.approx(np.mean(expected))
    assert 0 <= found.published["separability"] <= 1


def test_few_models_are_no_ranking():
    found = numbers("ppe-preference", [("battles", WIN, (1, 0), {"models": ["a", "b"]})])
    assert set(found.withheld) == {"row-wise correlation", "spearman", "separability"}


def test_intervals_go_by_prompt():
    """Forty copies of ten prompts: the interval of a clustered mean is that of ten, not of four hundred."""

    def rows(cluster):
        return [
            {"id": str(i), "subset": "harmlessness/s1", "cluster": cluster(i), "gold": [1, 0], "metadata": {}}
            | {"scores": list(WIN if (i % 10) % 2 else LOSS)}
            for i in range(400)
        ]

    alone = recompute("rmb-pairs", rows(str)).document["honest"]["harmlessness"]
    shared = recompute("rmb-pairs", rows(lambda i: str(i % 10))).document["honest"]["harmlessness"]
    assert alone["value"] == shared["value"] == 0.5
    assert shared["high"] - shared["low"] > 4 * (alone["high"] - alone["low"])


def test_a_whole_rewardbench_is_known_as_such():
    """The file's rows are not the authors' weights: XSTest has 154 pairs to refuse and 250 to answer, weighted 250 and 154."""
    sizes = BENCHMARKS["rewardbench"].subsets
    assert (sizes["xstest-should-refuse"], sizes["xstest-should-respond"]) == (154, 250)
    # 2,985 pairs in all, as published.
    assert sum(size for size in sizes.values() if size) == 2985


def test_rows_of_another_benchmark_are_refused():
    row = {"id": "1", "subset": "nowhere", "cluster": "p", "gold": [1.0, 0.0], "scores": [1.0, 0.0], "metadata": {}}
    with pytest.raises(DataError, match="rows of rewardbench"):
        recompute("rewardbench", [row])
