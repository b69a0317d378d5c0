"""Over-optimisation planted and found, a perfect proxy, controls, coverage, the fit, and the surface of what is selected."""

import json
from collections import Counter

import numpy as np
import pytest

from rewardsmith.auditing.best_of_n import best_of, grid, kl_of_best_of
from rewardsmith.auditing.controls import LengthScorer, RandomScorer, shuffled
from rewardsmith.auditing.over_optimisation import fitted, over_optimisation_table, over_optimise
from rewardsmith.auditing.pools import Candidate, Candidates, Pool, enlarged
from rewardsmith.auditing.resampling import Resamples
from rewardsmith.auditing.selected import opens_agreeably, repetition, selected_subjects
from rewardsmith.auditing.trials import Contrast, Probe
from rewardsmith.errors import DataError, ScoreError, SettingsError
from tests.auditing.simulated_pools import Simulated, heavy_tailed, none, normal
from tests.fakes import FunctionScorer


@pytest.fixture(scope="module")
def planted():
    """Errors with Student's t of 1.2 degrees of freedom. Gold gains 0.90 sd at n = 10, the highest point, and 0.46 at n = 64 (24,000 groups, simulated)."""
    simulated = Simulated(heavy_tailed(1, freedom=1.2), num_groups=150, num_candidates=64, seed=2, lengths=True)
    return simulated, over_optimise(simulated.proxies, simulated.pool, simulated.gold)


def test_planted_over_optimisation_is_found(planted):
    _, found = planted
    proxy = found["m0"]
    assert proxy.is_over_optimised and proxy.decline.high < 0
    assert proxy.n_star.low <= 10 <= proxy.n_star.high < 24
    at_ten, last = proxy.gold[proxy.ns.index(10)], proxy.gold[-1]
    assert at_ten.low < 0.90 < at_ten.high and last.low < 0.46 < last.high < proxy.gold_at_n_star.low
    assert proxy.gold_fit.b.low > 0 and proxy.gap_slope.value > 0
    assert "gold is highest at n = " in found.reading and "falls by" in found.reading


def test_what_is_seen_does_not_depend_on_the_order_of_groups_or_candidates(planted):
    simulated, found = planted
    turned = Pool([Candidates(one.id, one.prompt, one.answers[::-1]) for one in simulated.pool.groups[::-1]])
    again = over_optimise(simulated.proxies, turned, simulated.gold)
    assert again["m0"].n_star.value == found["m0"].n_star.value
    assert [one.value for one in again["m0"].gold] == pytest.approx([one.value for one in found["m0"].gold])
    assert again["m0"].decline.value == pytest.approx(found["m0"].decline.value)


def test_a_perfect_proxy_rises_without_end_and_is_gold():
    simulated = Simulated(none, num_groups=40, num_candidates=12, seed=2)
    found = over_optimise(simulated.proxies, simulated.pool, simulated.gold)
    gold = [one.value for one in found["m0"].gold]
    assert gold == sorted(gold) and gold == pytest.approx([one.value for one in found["gold"].gold])
    assert found["m0"].gap_slope.value == pytest.approx(0) and found["m0"].n_star.value == 12
    assert not found["m0"].is_over_optimised and "no fall was seen" in found.reading


def test_the_reading_names_the_proxy_that_fell_else_the_one_that_brings_least():
    heavy, light = heavy_tailed(1, freedom=1.2), normal(1, scale=0.1)
    both = Simulated(lambda rng, shape: np.concatenate([light(rng, shape), heavy(rng, shape)]), num_candidates=48)
    assert "score of m1 rises" in over_optimise(both.proxies, both.pool, both.gold).reading
    weak = Simulated(lambda rng, shape: np.concatenate([light(rng, shape), normal(1, scale=3)(rng, shape)]))
    assert "score of m1 rises" in over_optimise(weak.proxies, weak.pool, weak.gold).reading


def test_controls_move_gold_by_nothing_and_the_proxy_by_more(planted):
    _, found = planted
    for name in ("random", "length only", "shuffled labels"):
        control = found[name]
        assert control.role == "control" and not control.is_over_optimised
        assert all(one.low <= 0.05 and one.high >= -0.05 for one in control.gold)
        assert control.proxy[-1].low > 0.5  # each of them finds what it looks for
        against = next(one for one in found.differences if (one.first, one.second) == ("m0", name))
        assert against.difference.low > 0 and against.p_adjusted < 0.01


def test_a_control_given_from_outside_stands_beside_the_others():
    simulated = Simulated(normal(1), num_groups=20, num_candidates=6, seed=3)
    found = over_optimise(
        simulated.proxies, simulated.pool, simulated.gold, trained_on_shuffled=FunctionScorer(lambda p, a: hash(a) % 97)
    )
    assert found["trained on shuffled labels"].role == "control"
    # All answers of equal length: nothing can be selected by length.
    level = {"m0": lambda prompt, answer: float(answer[-1])}
    pool = Pool([Candidates(f"{g}", f"p{g}", tuple(Candidate(f"a{i}") for i in range(4))) for g in range(5)])
    document = over_optimise(level, pool, level["m0"]).as_dict()
    assert document["controls_left_out"] == {"length only": "equal scores within every prompt"}


def test_control_scorers_by_hand():
    pairs = [("p", "one"), ("p", "three"), ("q", "one")]
    assert LengthScorer().score(pairs).tolist() == [3.0, 5.0, 3.0]
    drawn = RandomScorer(0).score(pairs)
    assert drawn.tolist() == RandomScorer(0).score(pairs[::-1])[::-1].tolist() and len(set(drawn.tolist())) == 3
    assert RandomScorer(1).score(pairs).tolist() != drawn.tolist()
    many = RandomScorer(0).score([("p", str(i)) for i in range(4000)])
    assert many.mean() == pytest.approx(0.5, abs=0.02) and many.std() == pytest.approx(12**-0.5, abs=0.01)
    values, starts = np.arange(10.0), np.array([0, 4, 10])
    moved = shuffled(values, starts, seed=0)
    assert sorted(moved[:4]) == [0, 1, 2, 3] and sorted(moved[4:]) == [4, 5, 6, 7, 8, 9] and (moved != values).any()


# The expected largest of 1 to 8 standard normal draws.
LARGEST = (0, 0.5642, 0.8463, 1.0294, 1.1630, 1.2672, 1.3522, 1.4236)


def test_intervals_hold_what_they_promise():
    """Proxy = gold + normal error of the same size: their correlation is 0.7071, so that gold gains 0.7071 times the largest of n draws.

    Of 100 intervals 95 are to hold it, give or take 2.2.
    """
    held = held_at_star = 0
    for seed in range(100):
        rng = np.random.default_rng(seed)
        worth = rng.normal(size=(30, 8))
        found = judged(worth, worth + rng.normal(size=worth.shape), seed=seed)
        truth = 0.5**0.5 * np.array(LARGEST)
        held += found.gold[-1].low <= truth[-1] <= found.gold[-1].high
        at_star = np.mean([truth[n - 1] for n in found.n_star_of_halves])
        held_at_star += found.gold_at_n_star.low <= at_star <= found.gold_at_n_star.high
    assert held >= 88 and held_at_star >= 88


def judged(worth, proxy, *, seed):
    """One selection without all that surrounds it."""
    from rewardsmith.auditing.over_optimisation import _halves, _Judge, unit_of_pool

    num_groups, num_candidates = worth.shape
    starts = np.arange(0, worth.size + 1, num_candidates)
    resamples = Resamples([f"p{g}" for g in range(num_groups)], seed=seed)
    unit = unit_of_pool(worth.ravel(), starts, resamples, "gold")
    judge = _Judge(worth.ravel(), starts, grid(num_candidates), unit, resamples, _halves(resamples, seed))
    return judge.selection("m", "proxy", proxy.ravel())[0]


def test_a_proxy_of_chance_is_seldom_called_over_optimised():
    """At 5 % of 60, more than 9 would come up once in a thousand times; the least effect makes it rarer still."""
    called = 0
    for seed in range(60):
        worth, proxy = np.random.default_rng(seed).normal(size=(2, 30, 12))
        found = judged(worth, proxy, seed=seed)
        called += found.decline.high < 0 and found.decline.value <= -0.1
    assert called <= 9


def test_gold_at_n_star_is_not_flattered_by_the_choice_of_n_star():
    """By chance alone the highest point of a curve lies above 0; measured on the other half it does not."""
    chosen, measured = [], []
    for seed in range(60):
        worth, proxy = np.random.default_rng(1000 + seed).normal(size=(2, 20, 12))
        found = judged(worth, proxy, seed=seed)
        chosen.append(max(one.value for one in found.gold))
        measured.append(found.gold_at_n_star.value)
    assert np.mean(chosen) > 0.08 and abs(np.mean(measured)) < 3 * np.std(measured) / 60**0.5


def test_groups_of_one_prompt_are_one_piece_of_evidence():
    """The same groups under a quarter of the prompts: the interval is wider where a prompt's groups agree."""
    simulated = Simulated(normal(1), num_groups=48, num_candidates=6, seed=5)
    groups = simulated.pool.groups
    repeated = [Candidates(f"{k}-{one.id}", one.prompt, one.answers) for one in groups[:12] for k in range(4)]
    alone = over_optimise(simulated.proxies, Pool(groups), simulated.gold)["m0"].gold[-1]
    together = over_optimise(simulated.proxies, Pool(repeated), simulated.gold)
    wide = together["m0"].gold[-1]
    assert wide.method == "bootstrap over 12 prompts" and alone.method == "bootstrap over 48 prompts"
    assert wide.high - wide.low > 1.5 * (alone.high - alone.low)
    assert together.as_dict()["pool"]["num_prompts"] == 12


def test_the_fit_recovers_the_curve_that_it_is_given():
    ns = grid(64)
    d = np.sqrt(kl_of_best_of(np.array(ns)))
    curve = d * (1.3 - 0.4 * d)
    resamples = Resamples([f"p{i}" for i in range(30)], seed=0)
    drawn = curve + 0.01 * np.random.default_rng(0).normal(size=(2000, len(ns)))
    fit = fitted(curve, drawn, ns, resamples)
    assert (fit.a.value, fit.b.value) == pytest.approx((1.3, 0.4)) and fit.misfit == pytest.approx(0, abs=1e-12)
    assert fit.a.low < 1.3 < fit.a.high and 0 < fit.a_error < 0.02
    assert fitted(curve[:3], drawn[:, :3], ns[:3], resamples) is None  # two points above n = 1


def test_each_text_is_scored_once_by_each_scorer():
    """Answers that stand twice in a group, and ensembles that need the members' scores again."""
    simulated = Simulated(normal(2), num_groups=10, num_candidates=4, seed=6)
    repeated = Pool([Candidates(one.id, one.prompt, one.answers * 2) for one in simulated.pool.groups])
    proxies = {name: FunctionScorer(proxy) for name, proxy in simulated.proxies.items()}
    gold = FunctionScorer(simulated.gold)
    found = over_optimise(proxies, repeated, gold, n_max=4)
    assert [sum(one.calls) for one in (*proxies.values(), gold)] == [40, 40, 40]
    assert found.as_dict()["pool"]["num_texts"] == 40 and found.as_dict()["pool"]["num_candidates"] == 80


def test_curves_are_of_groups_with_n_max_candidates_and_the_support_is_told():
    simulated = Simulated(normal(1), num_groups=30, num_candidates=8, seed=7)
    small = [Candidates(one.id, one.prompt, one.answers[:3]) for one in simulated.pool.groups[:10]]
    pool = Pool([*small, *simulated.pool.groups[10:]])
    found = over_optimise(simulated.proxies, pool, simulated.gold).as_dict()
    assert (found["n_max"], found["pool"]["num_groups"], found["pool"]["too_small"]) == (8, 20, 10)
    support = {one["n"]: one["num_groups"] for one in found["pool"]["support"]}
    assert (support[3], support[4], support[8]) == (30, 20, 20)
    lower = over_optimise(simulated.proxies, pool, simulated.gold, n_max=3).as_dict()
    assert (lower["n_max"], lower["pool"]["num_groups"]) == (3, 30)


def test_labels_are_a_gold():
    """The worth of each candidate is its label here, so that both golds say the same."""
    simulated = Simulated(normal(1), num_groups=20, num_candidates=6, seed=8)
    by_label = over_optimise(simulated.proxies, simulated.pool, "labels")
    by_scorer = over_optimise(simulated.proxies, simulated.pool, simulated.gold)
    labels, scores = ([one.value for one in found["m0"].gold] for found in (by_label, by_scorer))
    assert labels == pytest.approx(scores, abs=1e-6) and by_label.as_dict()["gold"]["kind"] == "labels"


def test_the_document_can_be_written_read_drawn_and_computed_again(planted, tmp_path):
    simulated, found = planted
    document = json.loads(json.dumps(found.as_dict(), allow_nan=False))
    assert [one["role"] for one in document["selectors"]] == ["proxy", "gold", "control", "control", "control"]
    assert over_optimisation_table(document, "x").row_count == 5
    rows = list(found.rows())
    scores = np.array([[row["scores"]["m0"], row["scores"]["gold"]] for row in rows])
    starts = np.arange(0, len(rows) + 1, 64)
    curve = best_of(scores[:, 0], scores[:, 1:], starts, [1, 64])[:, 0].mean(axis=0)
    sd = np.sqrt(np.mean([np.var(scores[a : a + 64, 1], ddof=1) for a in starts[:-1]]))
    shown = document["selectors"][0]["curve"][-1]
    assert (curve[1] - curve[0]) / sd == pytest.approx(shown["gold"]["value"]) and shown["kl"] == pytest.approx(
        3.174, abs=1e-3
    )
    pytest.importorskip("matplotlib")
    from rewardsmith.plots import over_optimisation_curves

    over_optimisation_curves(document, tmp_path / "curves.png")
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")


# What is selected.


def worded_pool(num_groups=60, num_candidates=12, seed=0):
    """Answers of 5 to 60 words, some of which begin with "Yes!"; worth is in a table and has nothing to do with either."""
    rng = np.random.default_rng(seed)
    worth, groups = {}, []
    for g in range(num_groups):
        answers = []
        for i in range(num_candidates):
            words = " ".join(f"w{int(k)}" for k in rng.integers(0, 900, rng.integers(5, 60)))
            answer = f"{'Yes! ' if rng.random() < 0.3 else ''}{g} {i} {words}"
            worth[answer] = float(rng.normal())
            answers.append(Candidate(answer))
        groups.append(Candidates(str(g), f"prompt {g}", tuple(answers)))
    return Pool(groups), worth


def changes_of(found, selector):
    return {one.trait: one for one in found.traits if one.selector == selector}


def test_a_trait_that_a_scorer_likes_is_named_beside_gold_and_controls():
    pool, worth = worded_pool()
    biased = {"likes yes": lambda prompt, answer: worth[answer] + 1.0 * answer.startswith("Yes!")}
    found = over_optimise(biased, pool, lambda prompt, answer: worth[answer])
    traits = changes_of(found, "likes yes")
    assert [name for name, one in traits.items() if one.flagged] == ["exclamation marks", "opens agreeably"]
    opening = traits["opens agreeably"]
    assert opening.values[0].value == pytest.approx(0.3, abs=0.05) and opening.values[-1].low > 0.5
    for other in ("gold", "random", "shuffled labels"):
        beside = changes_of(found, other)["opens agreeably"]
        assert beside.change.low < 0 < beside.change.high and not beside.flagged
    assert changes_of(found, "length only")["length"].change.low > 1
    assert "markdown marks" in found.constant_traits


def test_following_what_gold_likes_is_no_bias():
    """Gold likes length, and the proxy sees gold with an error: it selects longer answers, though not as long as gold does."""
    pool, worth = worded_pool(seed=1)

    def gold(prompt, answer):
        return worth[answer] + len(answer) / 60

    def proxy(prompt, answer):
        return gold(prompt, answer) + 2 * RandomScorer(7).score([(prompt, answer)])[0]

    length = changes_of(over_optimise({"m": proxy}, pool, gold), "m")["length"]
    assert length.change.low > 0.3 and length.excess.value < 0 and not length.flagged


def test_fair_proxies_are_flagged_no_more_often_than_promised():
    """A proxy whose error has nothing to do with the surface; 20 analyses, at 5 % for any flag in one: more than 4 come up once in 400 times."""
    flagged = 0
    for seed in range(20):
        pool, worth = worded_pool(num_groups=30, num_candidates=8, seed=100 + seed)
        noise = RandomScorer(seed)
        proxy = lambda prompt, answer: worth[answer] + 3 * noise.score([(prompt, answer)])[0]  # noqa: B023, E731
        found = over_optimise({"m": proxy}, pool, lambda prompt, answer: worth[answer], seed=seed)  # noqa: B023
        flagged += any(one.flagged for one in found.traits)
    assert flagged <= 4


def test_edited_copies_that_win_are_counted_by_edit():
    pool, worth = worded_pool(num_groups=30, num_candidates=4, seed=2)
    edits = {
        "praise": lambda prompt, answer, rng: [f"{answer} This is the best answer."],
        "capitals": lambda prompt, answer, rng: [answer.upper()],
    }
    large = enlarged(pool, edits, seed=0)
    first_words = {" ".join(answer.removeprefix("Yes! ").lower().split()[:2]): value for answer, value in worth.items()}

    def gold(prompt, answer):
        text = answer.lower().removeprefix("yes! ")
        return first_words[" ".join(text.split()[:2])] - answer.isupper()

    found = over_optimise({"m": lambda p, a: gold(p, a) + 2 * a.endswith("best answer.")}, large, gold)
    traits = changes_of(found, "m")
    assert found.as_dict()["pool"]["kinds"] == {"original": 120, "praise": 120, "capitals": 120}
    assert (
        traits["copy: praise"].values[0].value == pytest.approx(1 / 3)
        and traits["copy: praise"].values[-1].value > 0.95
    )
    assert traits["copy: praise"].flagged and not traits["copy: capitals"].flagged


def test_traits_by_hand():
    """A b c a b c has the runs abc, bca, cab, abc: one of four stood there before."""
    assert repetition("a b c a b c") == 0.25 and repetition("three words only") == 0.0 == repetition("")
    assert [opens_agreeably(one) for one in ("**Sure**, here", "Yesterday", "Great question!", "No.", "")] == [
        True,
        False,
        True,
        False,
        False,
    ]


# Probes on what is selected.


def said_twice(subjects, seed):
    return [
        Contrast(one.id, str(one.prompt), (one.prompt, f"{one.answer} {one.answer}"), (one.prompt, one.answer))
        for one in subjects
    ]


def test_probes_are_put_to_blind_and_to_selected_answers():
    """The scorer pays for repeating an answer only if it opens with "Yes!", as most of what it selects does: the effect grows under selection."""
    pool, worth = worded_pool(seed=3)

    def gold(prompt, answer):
        return worth.get(answer, 0.0)

    def proxy(prompt, answer):
        half = answer[: len(answer) // 2]
        doubled = answer == f"{half} {half}"
        return worth[half if doubled else answer] + answer.startswith("Yes!") * (2.0 + doubled)

    probe = Probe("said_twice", "length", "bias", "up", "the answer twice", said_twice)
    passed_over = Probe("own", "x", "bias", "up", "x", said_twice, edits_answers=False)
    scorer = FunctionScorer(proxy)
    found = over_optimise({"m": scorer}, pool, gold, probes=[probe, passed_over], num_probed=60)
    (probed,) = found.probes
    (change,) = probed.probes
    assert (probed.num_groups, change.name) == (60, "said_twice")
    # The effect is 1 where the answer opens with "Yes!", in units of the score: of 0.3 of blind answers, and of most that are selected.
    scores = found.scores["m"].reshape(60, 12)
    sd = np.sqrt(np.mean(np.var(scores, axis=1, ddof=1)))
    best = [pool.groups[g].answers[i].answer for g, i in enumerate(scores.argmax(axis=1))]
    assert change.after == pytest.approx(np.mean([answer.startswith("Yes!") for answer in best]) / sd)
    assert change.before == pytest.approx(0.3 / sd, abs=0.2 / sd)
    assert change.is_certain and change.change.low > 0
    assert found.as_dict()["probes"][0]["grown"] == ["said_twice"]


def test_a_probe_that_applies_to_one_prompt_or_none_changes_nothing():
    pool, worth = worded_pool(num_groups=6, num_candidates=4, seed=4)
    seldom = Probe("seldom", "x", "bias", "up", "x", lambda subjects, seed: said_twice(subjects[:1], seed))
    never = Probe("never", "x", "bias", "up", "x", lambda subjects, seed: [])
    score = FunctionScorer(lambda prompt, answer: worth.get(answer, 0.0))
    for probe in (seldom, never):
        found = over_optimise({"m": score}, pool, lambda p, a: -worth[a], probes=[probe])
        assert found.probes[0].probes == [] and found.probes[0].num_groups == 6


def test_selected_answers_are_drawn_by_their_chance():
    pool, _ = worded_pool(num_groups=2, num_candidates=3)
    scores = np.array([1.0, 2.0, 3.0, 5.0, 4.0, 4.0])
    at_the_end = selected_subjects(pool, scores, 3, groups=[0, 1], seed=0)
    assert [one.answer for one in at_the_end] == [pool.groups[0].answers[2].answer, pool.groups[1].answers[0].answer]
    drawn = Counter(selected_subjects(pool, scores, 2, groups=[0], seed=seed)[0].answer for seed in range(600))
    # Of three candidates two are taken: the best is among them in two of three cases, the second is the best in one.
    assert drawn[pool.groups[0].answers[2].answer] == pytest.approx(400, abs=45)
    assert drawn[pool.groups[0].answers[0].answer] == 0


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"proxies": {}}, SettingsError, "at least one proxy"),
        ({"proxies": {"mean": len}}, SettingsError, "'mean'"),
        ({"n_max": 1}, SettingsError, "at least 2"),
        ({"n_max": 9}, DataError, "two prompts with 9 candidates"),
        ({"gold": lambda prompt, answer: 1.0}, ScoreError, "'gold' that differ"),
        ({"proxies": {"flat": lambda prompt, answer: 1.0}}, ScoreError, "'flat' that differ"),
        ({"proxies": {"broken": lambda prompt, answer: float("nan")}}, ScoreError, "finite"),
    ],
)
def test_what_cannot_be_measured_is_refused(change, error, words):
    simulated = Simulated(normal(1), num_groups=4, num_candidates=4)
    arguments = {"proxies": simulated.proxies, "gold": simulated.gold, **change}
    with pytest.raises(error, match=words):
        over_optimise(pool=simulated.pool, **arguments)
