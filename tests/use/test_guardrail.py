"""A guardrail allows nothing that it is not sure of, stops good answers as often as it was told to, and is never used with another model's scores."""

import json
from dataclasses import dataclass, replace

import numpy as np
import pytest

from rewardsmith.errors import ContractError, DataError, ScoreError, SettingsError
from rewardsmith.functions import as_scorer
from rewardsmith.scores import DomainFlag, ScoreTable
from rewardsmith.stats import Estimate
from rewardsmith.use.guard_rule import BadAnswers, Rule, stored_rule
from rewardsmith.use.guardrail import Guardrail
from tests.fakes import FunctionScorer, pair

FILES = {"model.safetensors": "a" * 64}
THRESHOLD = Estimate(1.0, 0.5, 1.5, 100, "bootstrap over 50 prompts")


def told(prompt, answer):
    """The number that an answer is."""
    return float(answer)


@dataclass
class Cutting:
    """Scores by the number in the answer, and says that answers of more than five characters were cut."""

    calls: int = 0

    def table(self, pairs):
        self.calls += 1
        n, numbers = len(pairs), [float(answer[:5]) for _, answer in pairs]
        cut = np.array([len(answer) > 5 for _, answer in pairs])
        counts = np.zeros(n, np.int64)
        digest = np.zeros(n, np.uint64)
        return ScoreTable(np.array(numbers, np.float32), counts, counts, cut, counts, counts, counts, digest)

    def score(self, pairs):
        return self.table(pairs).score


class OddPrompts:
    """A detector to which prompts that hold "odd" lie outside."""

    def flags(self, pairs):
        return [DomainFlag(9.0, 0.001 if "odd" in p else 0.5, "odd" in p, "prompts") for p, _ in pairs]


def guard(rule=None, scorer=told, **more):
    return Guardrail(scorer, rule=rule or Rule(THRESHOLD), **more)


def decisions(guardrail, *answers):
    return [(one.decision, one.cause) for one in guardrail.decide([("p", answer) for answer in answers])]


def test_below_within_and_above_the_interval_of_the_threshold():
    # 0.5 and 1.5 bound the interval: below it refused, in it abstained, from its upper end on allowed.
    assert decisions(guard(), "0.49", "0.5", "1.0", "1.49", "1.5") == [
        ("refuse", "below threshold"),
        ("abstain", "within the threshold's interval"),
        ("abstain", "within the threshold's interval"),
        ("abstain", "within the threshold's interval"),
        ("allow", "above threshold"),
    ]


def test_a_threshold_given_as_a_number_has_no_interval_and_an_answer_at_it_is_allowed():
    guardrail = Guardrail(told, threshold=1.0)
    assert decisions(guardrail, "0.99", "1.0") == [("refuse", "below threshold"), ("allow", "above threshold")]
    assert guardrail.rule.evidence is None and "given as a number" in guardrail.rule.notes[0]


def test_a_value_outside_of_its_interval_widens_it():
    rule = Rule(replace(THRESHOLD, low=1.2, high=1.5))
    assert decisions(guard(rule), "0.9", "1.1") == [
        ("refuse", "below threshold"),
        ("abstain", "within the threshold's interval"),
    ]


def test_empty_answers_are_refused_unscored_and_cut_or_foreign_texts_abstained_from_whatever_their_score():
    scorer = Cutting()
    guardrail = guard(scorer=scorer, domain=OddPrompts())
    found = guardrail.decide([("p", "9"), ("p", "9.000001"), ("odd", "9"), ("p", " \n\u200b"), ("odd", "0.0000")])
    assert [one.cause for one in found] == [
        "above threshold", "truncated", "outside the domain", "empty", "truncated",
    ]  # fmt: skip
    assert [one.decision for one in found] == ["allow", "abstain", "abstain", "refuse", "abstain"]
    assert found[3].score is None and found[0].score == 9.0 and scorer.calls == 1
    assert "p = 0.001" in found[2].reason and [one.is_allowed for one in found] == [True] + [False] * 4
    assert guardrail("p", "").decision == "refuse" and scorer.calls == 1


def test_a_domain_flag_that_is_no_number_allows_nothing():
    class Broken:
        def flags(self, pairs):
            return [DomainFlag(float("nan"), float("nan"), False, "answers") for _ in pairs]

    assert decisions(guard(domain=Broken()), "9") == [("abstain", "outside the domain")]


@pytest.mark.parametrize("told", [None, np.zeros(1, np.bool_), np.zeros(2)], ids=["none", "one for all", "numbers"])
def test_flags_of_truncation_that_are_none_allow_nothing(told):
    """Numpy would take None for False, and one flag for all."""

    class Forgetful(Cutting):
        def table(self, pairs):
            return replace(super().table(pairs), truncated=told)

    with pytest.raises(ScoreError, match="2 truncation flags"):
        decisions(guard(scorer=Forgetful()), "9", "9.000001")


@pytest.mark.parametrize(
    "scorer",
    [
        FunctionScorer(lambda prompt, answer: float("nan")),
        FunctionScorer(lambda prompt, answer: 1 / 0),
        type("TooFew", (), {"score": lambda self, pairs: np.zeros(0, np.float32)})(),
        type("Nothing", (), {"score": lambda self, pairs: None})(),
    ],
)
def test_a_failing_scorer_raises_and_allows_nothing(scorer):
    with pytest.raises(ScoreError):
        Guardrail(scorer, threshold=-100.0)("p", "fine")


def test_a_failing_detector_raises_and_allows_nothing():
    class Failing:
        def flags(self, pairs):
            raise RuntimeError("broken")

    class Short:
        def flags(self, pairs):
            return []

    for domain, words in ((Failing(), "broken"), (Short(), "domain flags")):
        with pytest.raises(ScoreError, match=words):
            guard(domain=domain)("p", "9")
    with pytest.raises(DataError, match="NoneType"):
        guard()("p", None)


@pytest.mark.parametrize("bad", [{"value": np.nan}, {"low": np.nan}, {"high": np.inf}, {"low": -np.inf}])
def test_a_rule_whose_threshold_is_no_number_is_none(bad):
    """No score is below NaN, so that everything would pass."""
    with pytest.raises(ContractError, match="finite threshold"):
        Rule(replace(THRESHOLD, **bad))
    for more in ({"temperature": 0.0}, {"temperature": np.nan}, {"target_rate": np.nan}, {"target_rate": 1.0}):
        with pytest.raises(ContractError):
            Rule(THRESHOLD, **more)


def test_an_interval_whose_ends_are_swapped_is_still_abstained_in():
    swapped = Rule(replace(THRESHOLD, low=1.5, high=0.5))
    assert [one for one, _ in decisions(guard(swapped), "0.4", "0.6", "1.4", "1.6")] == [
        "refuse", "abstain", "abstain", "allow",
    ]  # fmt: skip


def test_probabilities_by_hand():
    none = Estimate(0.0, 0.0, 0.0, 0, "")
    rule = Rule(THRESHOLD, temperature=2.0, bad_answers=BadAnswers(0.5, 1.5, 0.5, none, none))
    found = guard(rule)("p", "3")
    # sigmoid((3 - 1) / 2) = sigmoid(1) = 0.7311; sigmoid(0.5 - 1.5 * 3) = sigmoid(-4) = 0.01799
    assert found.probability == pytest.approx(0.7310585786, rel=1e-9)
    assert found.bad_probability == pytest.approx(0.0179862100, rel=1e-8)
    assert guard()("p", "3").probability is None and guard()("p", "3").bad_probability is None


@dataclass
class Contract:
    """What a model folder's contract says."""

    document: dict

    def as_dict(self):
        return self.document


class Calibrated(FunctionScorer):
    """A scorer of a model with stored thresholds for two rates on raw scores and one on z-scores."""

    def __init__(self, files=FILES, asked=False):
        """`asked`: the papers must be asked for, as of a server."""
        super().__init__(told)
        one = {"false_alarms": Estimate(0.06, 0.03, 0.1, 200, "m").as_dict()}
        one |= {"caught": Estimate(0.4, 0.3, 0.5, 200, "m").as_dict()}
        stored = [("score", 0.01, 0.2), ("score", 0.05, 1.0), ("z within prompt", 0.1, -1.0)]
        thresholds = [
            {"scale": s, "wished_false_alarms": r, "threshold": replace(THRESHOLD, value=v).as_dict(), **one}
            for s, r, v in stored
        ]
        document = {"files": files, "render_sha256": "r", "temperature": 2.0, "calibration": {"thresholds": thresholds}}
        self.contract = (lambda: document) if asked else Contract(document)


@pytest.mark.parametrize("asked", [False, True], ids=["a folder", "a server"])
def test_the_stored_threshold_of_a_rate_is_taken_with_its_evidence_and_temperature(asked):
    guardrail = Guardrail(Calibrated(asked=asked), target_rate=0.05)
    assert guardrail.rule.threshold == THRESHOLD and guardrail.rule.temperature == 2.0
    assert guardrail.rule.evidence.caught.value == 0.4
    assert guardrail.rule.model == {"files": FILES, "render_sha256": "r"}
    # sigmoid((5 - 1) / 2) = sigmoid(2) = 0.8808
    assert guardrail("p", "5").probability == pytest.approx(0.8807970780, rel=1e-9)


def test_a_rate_without_a_stored_threshold_names_the_command_and_those_there_are():
    with pytest.raises(SettingsError, match=r"0.01, 0.05.*rewardsmith calibrate MODEL DATA --false-alarms 0.1"):
        Guardrail(Calibrated(), target_rate=0.1)  # 0.1 is stored for z-scores alone
    with pytest.raises(SettingsError, match="none.*rewardsmith calibrate"):
        Guardrail(told, target_rate=0.05)
    for rate in (0.0, 1.0, 5):
        with pytest.raises(SettingsError, match="between 0 and 1"):
            stored_rule({}, rate)
    with pytest.raises(ContractError, match="calibrate"):
        broken = [{"scale": "score", "wished_false_alarms": 0.05, "threshold": {"value": 1}}]
        stored_rule({"calibration": {"thresholds": broken}}, 0.05)
    for junk in ([1], {"thresholds": [{"x": 1}]}, {"thresholds": 3}):  # a server may publish anything
        with pytest.raises(ContractError, match="calibrate"):
            stored_rule({"calibration": junk}, 0.05)


def test_one_of_threshold_and_rate_and_a_finite_one():
    for more in ({}, {"threshold": 1.0, "target_rate": 0.05}):
        with pytest.raises(SettingsError, match="one of threshold and target_rate"):
            Guardrail(told, **more)
    for bad in (float("nan"), float("inf")):
        with pytest.raises(SettingsError, match="finite threshold"):
            Guardrail(told, threshold=bad)


def labelled(num_pairs, seed=0, shift=2.0):
    """Good answers score N(shift, 1), bad ones N(0, 1); one pair a prompt; the answers are their scores."""
    rng = np.random.default_rng(seed)
    good, bad = rng.normal(shift, 1, num_pairs), rng.normal(0, 1, num_pairs)
    return [
        replace(pair(i), chosen=f"{g:.6f}", rejected=f"{b:.6f}") for i, (g, b) in enumerate(zip(good, bad, strict=True))
    ]


def test_a_fitted_guardrail_keeps_its_rate_on_new_answers_and_its_probabilities_are_right():
    guardrail = Guardrail.fit(told, labelled(2000), 0.05)
    rule = guardrail.rule
    # The 5 % quantile of N(2, 1) is 2 - 1.645 = 0.355; below it lie P(Z < 0.355) = 0.639 of the bad answers.
    assert rule.threshold.low <= 0.355 <= rule.threshold.high
    assert rule.evidence.false_alarms.low <= 0.05 <= rule.evidence.false_alarms.high
    assert rule.evidence.caught.value == pytest.approx(0.639, abs=0.05)
    # What is refused or abstained from is what lies below the upper end of the interval.
    assert rule.evidence.good_refused.value < rule.evidence.false_alarms.value
    assert rule.evidence.good_refused.value + rule.evidence.good_abstained.value > rule.evidence.false_alarms.value
    assert rule.evidence.bad_refused.value > 5 * rule.evidence.good_refused.value
    # Bayes with equal shares: log-odds of bad = (s - 2)^2 / 2 - s^2 / 2 = 2 - 2 s.
    assert rule.bad_answers.intercept == pytest.approx(2.0, abs=0.3)
    assert rule.bad_answers.slope == pytest.approx(2.0, abs=0.25)
    assert rule.bad_answers.bad_share == 0.5
    assert rule.bad_answers.ece.value <= rule.bad_answers.ece_null.high
    # Of 2,000 further good answers about 5 % are refused or abstained from, the interval being narrow.
    fresh = [("p", one.chosen) for one in labelled(2000, seed=9)]
    stopped = np.mean([not one.is_allowed for one in guardrail.decide(fresh)])
    assert stopped == pytest.approx(0.05, abs=0.03)


def test_what_calibrate_keeps_in_a_model_folder_is_what_is_looked_up():
    from rewardsmith.evaluation.calibration import calibrate, without_curves

    found = calibrate(as_scorer(told), labelled(600), false_alarms=[0.05, 0.1])
    document = json.loads(json.dumps(without_curves(found.document)))
    contract = {"files": FILES, "temperature": found.temperature.value, "calibration": document}
    rule = stored_rule(contract, 0.1)
    # The 10 % quantile of N(2, 1) is 2 - 1.2816 = 0.718.
    assert rule.threshold.low <= 0.718 <= rule.threshold.high and rule.target_rate == 0.1
    assert rule.evidence.false_alarms.low <= 0.1 <= rule.evidence.false_alarms.high
    assert rule.temperature == found.temperature.value


def test_labelled_ties_and_empty_answers_are_not_fitted_on():
    pairs = labelled(400)
    noise = [replace(pair(1000 + i), chosen="-50", rejected="50", tie=True) for i in range(50)]
    noise += [replace(pair(2000 + i), chosen="-50", rejected="") for i in range(50)]
    assert Guardrail.fit(told, [*pairs, *noise], 0.05).rule == Guardrail.fit(told, pairs, 0.05).rule


def test_what_no_guardrail_can_be_made_of_is_said():
    scorer = FunctionScorer(told)
    with pytest.raises(DataError, match="needs 100 good answers"):
        Guardrail.fit(scorer, labelled(60), 0.01)
    # One prompt with all good answers: a bootstrap over it has an interval without a width, in which nothing is abstained from.
    one = [replace(each, prompt="one") if i < 90 else each for i, each in enumerate(labelled(100))]
    for few in ([], labelled(19), [replace(each, prompt=f"{i % 4}") for i, each in enumerate(labelled(200))], one):
        with pytest.raises(DataError, match="prompts"):
            Guardrail.fit(scorer, few, 0.05)
    # 71 of 100 pairs are of one prompt, which this seed puts into the fitting half: the other 29 prompts are held out.
    uneven = [replace(each, prompt="one") if i < 71 else each for i, each in enumerate(labelled(100))]
    with pytest.raises(DataError, match="in the fitting half.*got 1"):
        Guardrail.fit(scorer, uneven, 0.05, seed=38)
    assert not scorer.calls  # labels alone tell
    with pytest.raises(DataError, match="score as high or higher"):
        Guardrail.fit(lambda prompt, answer: -float(answer), labelled(400), 0.05)
    with pytest.raises(SettingsError, match="between 0 and 1"):
        Guardrail.fit(told, labelled(60), 5)
    # Without a wrong pair there is no temperature: the guardrail stands, and says so.
    sure = Guardrail.fit(told, [replace(one, chosen="9", rejected=one.rejected) for one in labelled(100)], 0.05)
    assert sure.rule.temperature is None and "no probability" in sure.rule.notes[0]
    assert np.isfinite(sure.rule.bad_answers.slope)


def test_saved_and_loaded_it_decides_alike(tmp_path):
    path = tmp_path / "guardrail.json"
    for made in (
        Guardrail.fit(told, labelled(400), 0.05, files=FILES),
        Guardrail(told, threshold=0.3, files=FILES),
        Guardrail(Calibrated(), target_rate=0.05),
    ):
        made.save(path)
        scorer = made.scorer if isinstance(made.scorer, Calibrated) else told
        loaded = Guardrail.load(path, scorer, files=None if scorer is not told else FILES)
        assert loaded.rule == made.rule
        assert decisions(loaded, "-1", "0.3", "2") == decisions(made, "-1", "0.3", "2")


def test_a_guardrail_of_another_model_is_refused(tmp_path):
    path = tmp_path / "guardrail.json"
    Guardrail(Calibrated(), target_rate=0.05).save(path)
    with pytest.raises(ContractError, match=r"another one \(model.safetensors\)"):
        Guardrail.load(path, Calibrated(files={"model.safetensors": "b" * 64}))
    with pytest.raises(ContractError, match="another one"):
        Guardrail.load(path, told)  # nobody knows what it is
    other_template = Calibrated()
    other_template.contract.document["render_sha256"] = "s"
    with pytest.raises(ContractError, match="reads texts in another way"):
        Guardrail.load(path, other_template)
    with pytest.raises(ContractError, match="another one"):
        Guardrail(told, rule=Rule.load(path))
    with pytest.raises(SettingsError, match="hashes of the model's files"):
        Guardrail(told, threshold=1.0).save(tmp_path / "none.json")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"format_version": 2}, "version 2"),
        ({"threshold": None}, "cannot be read"),
        ({"threshold": {"value": None, "low": 0, "high": 0, "n": 1, "method": ""}}, "cannot be read"),
        ({"threshold": {"value": "nan", "low": 0, "high": 0, "n": 1, "method": ""}}, "cannot be read"),
        ({"threshold": {"value": 1, "low": 0, "high": float("inf"), "n": 1, "method": ""}}, "cannot be read"),
        ({"temperature": -1.0}, "temperature above 0"),
        ({"target_rate": float("nan")}, "rate between 0 and 1"),
        ({"model": {"files": "abc"}}, "cannot be read"),
        ({"evidence": {}}, "cannot be read"),
        ({"bad_answers": {"intercept": 0, "slope": -1, "bad_share": 0.5, "ece": {}, "ece_null": {}}}, "cannot be read"),
    ],
)
def test_a_broken_file_is_refused(tmp_path, change, words):
    path = tmp_path / "guardrail.json"
    Guardrail(told, threshold=1.0, files=FILES).save(path)
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(ContractError, match=words):
        Rule.load(path)
    path.write_text("{")
    with pytest.raises(ContractError, match="readable guardrail"):
        Rule.load(path)


def test_the_document_is_json_with_all_numbers():
    document = json.loads(json.dumps(Guardrail.fit(told, labelled(400), 0.05).as_dict(), allow_nan=False))
    assert document["target_rate"] == 0.05 and document["evidence"]["caught"]["n"] == 200
    one = Guardrail(told, threshold=1.0)("p", "2").as_dict()
    assert one["decision"] == "allow" and one["threshold"]["value"] == 1.0
