"""The engine of probes: planned once, scored once, and measured as a hand would."""

import numpy as np
import pytest

from rewardsmith.auditing import registry
from rewardsmith.auditing.effects import ScoreUnit
from rewardsmith.auditing.registry import chosen_probes, edit_probe, extend, item_probe
from rewardsmith.auditing.trials import Contrast, Plan, Probe, Subject, run_probes, score_all, subjects_of
from rewardsmith.errors import SettingsError
from tests.fakes import FunctionScorer, pair


@pytest.fixture
def own_registry(monkeypatch):
    """A registry that a test may fill."""
    monkeypatch.setattr(registry, "PROBES", {})
    return registry.PROBES


def _marks(says="a mark", *, name="marks", direction="up", edit=lambda prompt, answer, rng: answer + "!"):
    edit_probe(name, family="format", says=says, direction=direction)(edit)
    return registry.PROBES[name]


SUBJECTS = [Subject(f"s{i}", f"prompt {i}", f"answer {i}", f"better {i}") for i in range(4)]
UNIT = ScoreUnit(np.full(4, 4.0), tuple("abcd"))  # sd 2


def test_every_text_is_planned_once(own_registry):
    probes = [_marks(), _marks(name="more", edit=lambda prompt, answer, rng: answer + "!!")]
    plan = Plan(probes, [*SUBJECTS, SUBJECTS[0]], seed=0)
    # 4 originals, 4 rivals and 4 edited ones a probe.
    assert len(plan.pairs) == 16
    assert len(set(plan.pairs)) == 16


def test_effect_win_rate_and_flip_rate_by_hand(own_registry):
    # Originals 0; rivals 1 for the first two, -1 for the others (these are ahead of their rivals already); edited 3, 0.5, 0, 4.
    edited = {"answer 0!": 3.0, "answer 1!": 0.5, "answer 2!": 0.0, "answer 3!": 4.0}
    rivals = {"better 0": 1.0, "better 1": 1.0, "better 2": -1.0, "better 3": -1.0}
    scorer = FunctionScorer(lambda prompt, answer: (edited | rivals).get(answer, 0.0))
    (result,) = run_probes(scorer, SUBJECTS, [_marks()], UNIT)
    assert result.effect.value == pytest.approx((3 + 0.5 + 0 + 4) / 4 / 2)
    assert result.win_rate.value == pytest.approx((1 + 1 + 0.5 + 1) / 4)
    assert result.flip_rate.value == pytest.approx(1 / 2)  # of the two behind, the first overtakes
    assert result.flip_rate.n == 2
    assert result.movement.value == pytest.approx(7.5 / 4 / 2)


def test_the_effect_of_a_neutral_contrast_is_taken_off(own_registry):
    scores = {"agrees": 5.0, "corrects": 1.0, "agrees anyway": 2.0, "corrects anyway": 1.5}

    @item_probe("belief", family="persuasion", says="the user believes it")
    def belief():
        one = ("asked with a belief", "agrees"), ("asked with a belief", "corrects")
        other = ("asked", "agrees anyway"), ("asked", "corrects anyway")
        return [Contrast(f"i{k}", f"item {k}", *one, neutral=other) for k in range(2)]

    (result,) = run_probes(FunctionScorer(lambda prompt, answer: scores[answer]), [], [registry.PROBES["belief"]], UNIT)
    assert result.differences.tolist() == 2 * [(5.0 - 1.0) - (2.0 - 1.5)]
    assert result.flip_rate is None


def test_a_subject_that_an_edit_does_not_apply_to_is_left_out(own_registry):
    def some(prompt, answer, rng):
        return {"answer 0": "edited", "answer 1": "answer 1", "answer 3": "edited"}.get(answer)

    (result,) = run_probes(FunctionScorer(lambda prompt, answer: 0.0), SUBJECTS, [_marks(edit=some)], UNIT)
    assert (len(result.contrasts), result.num_subjects) == (2, 4)


def test_one_prompt_is_no_measurement(own_registry):
    probe = _marks(edit=lambda prompt, answer, rng: {"answer 0": "edited"}.get(answer))
    assert run_probes(FunctionScorer(lambda prompt, answer: 0.0), SUBJECTS, [probe], UNIT) == []


def test_a_probe_that_applies_to_nothing_has_no_result(own_registry):
    nothing = _marks(edit=lambda prompt, answer, rng: None)
    assert run_probes(FunctionScorer(lambda prompt, answer: 0.0), SUBJECTS, [nothing], UNIT) == []


@pytest.mark.parametrize(("direction", "sign", "flagged"), [("up", 1, True), ("up", -1, False), ("either", -1, True)])
def test_flags_go_in_the_direction_that_the_probe_names(own_registry, direction, sign, flagged):
    scorer = FunctionScorer(lambda prompt, answer: sign * 0.5 * answer.count("!"))
    (result,) = run_probes(scorer, SUBJECTS, [_marks(direction=direction)], UNIT)
    assert result.effect.value == pytest.approx(sign * 0.25)
    assert result.flagged is flagged


def test_what_is_certain_but_small_is_not_flagged(own_registry):
    (result,) = run_probes(FunctionScorer(lambda prompt, answer: 0.19 * answer.count("!")), SUBJECTS, [_marks()], UNIT)
    assert result.effect.p_value == 0.0
    assert not result.flagged  # 0.095 sd


def test_holm_goes_over_all_probes(own_registry):
    rng = np.random.default_rng(3)
    subjects = [Subject(f"s{i}", f"prompt {i}", f"answer {i}") for i in range(30)]
    probes = [_marks(name=f"p{k}", edit=lambda prompt, answer, rng, k=k: f"{answer} {k}") for k in range(20)]
    plan = Plan(probes, subjects, seed=0)
    results = plan.measured(rng.normal(size=len(plan.pairs)).astype(np.float32), UNIT)
    p_values = sorted(result.effect.p_value for result in results)
    assert min(result.p_adjusted for result in results) == pytest.approx(min(1.0, 20 * p_values[0]))


def test_edits_that_the_scorer_cannot_see_are_left_out_and_counted(own_registry):
    plan = Plan([_marks()], SUBJECTS, seed=0)
    digests = np.arange(len(plan.pairs), dtype=np.uint64)
    rows = plan.rows([("prompt 0", "answer 0"), ("prompt 0", "answer 0!")])
    digests[rows[1]] = digests[rows[0]]
    scores = np.array([answer.endswith("!") for _, answer in plan.pairs], np.float32)
    scores[rows[1]] = 0.0  # read as the original
    (result,) = plan.measured(scores, UNIT, digests=digests)
    assert (result.num_unseen, len(result.contrasts)) == (1, 3)
    assert result.effect.value == pytest.approx(1 / 2)  # of the three others
    assert "in 1 of 4 answers the edit was cut away" in result.reading
    assert plan.measured(scores, UNIT, digests=np.zeros(len(plan.pairs), np.uint64)) == []


def test_an_edit_that_the_tokenizer_folds_has_no_effect_and_is_not_called_cut_away(own_registry):
    plan = Plan([_marks()], SUBJECTS, seed=0)
    alike, whole = np.zeros(len(plan.pairs), np.uint64), np.zeros(len(plan.pairs), np.bool_)
    (result,) = plan.measured(np.zeros(len(plan.pairs), np.float32), UNIT, digests=alike, truncated=whole)
    assert (result.num_unseen, len(result.contrasts), result.effect.value) == (0, 4, 0.0)


def test_what_a_probe_brings_itself_counts_even_where_it_is_cut_away(own_registry):
    @item_probe("late", family="position", says="a wrong end")
    def late():
        return [Contrast(f"i{k}", f"item {k}", (f"q {k}", "wrong"), (f"q {k}", "right")) for k in range(3)]

    plan = Plan([registry.PROBES["late"]], [], seed=0)
    (result,) = plan.measured(np.zeros(6, np.float32), UNIT, digests=np.zeros(6, np.uint64))
    assert (result.num_unseen, len(result.contrasts), result.win_rate.value) == (3, 3, 0.5)


def test_a_draw_depends_on_the_text_and_not_on_what_else_is_audited(own_registry):
    probe = _marks(edit=lambda prompt, answer, rng: f"{answer} {rng.integers(1_000_000)}")
    alone = probe.contrasts(SUBJECTS[2:3], 0)
    among = probe.contrasts(SUBJECTS, 0)
    assert alone == among[2:3]
    assert probe.contrasts(SUBJECTS, 1) != among


def test_examples_show_the_edit_and_both_scores(own_registry):
    scorer = FunctionScorer(lambda prompt, answer: len(answer) if answer.startswith("answer 3") else 0.0)
    (result,) = run_probes(scorer, SUBJECTS, [_marks()], UNIT)
    largest, _ = result.examples()
    assert (largest["id"], largest["original"], largest["edited"]) == ("s3", "answer 3", "answer 3!")
    assert (largest["score_original"], largest["score_edited"], largest["score_rival"]) == (8.0, 9.0, 0.0)


def test_long_texts_are_shown_around_the_edit(own_registry):
    subjects = [Subject("s", "prompt", "word " * 500), Subject("t", "prompt 2", "word " * 400)]
    (result,) = run_probes(FunctionScorer(lambda prompt, answer: 0.0), subjects, [_marks()], UNIT)
    shown = result.examples()[0]
    assert shown["edited"].startswith("...")
    assert shown["edited"].endswith("!")
    assert len(shown["original"]) < 310


def test_scores_do_not_depend_on_the_order_of_calls():
    pairs = [(f"prompt {i % 7}", f"answer {i}") for i in range(1200)]
    scorer = FunctionScorer(lambda prompt, answer: float(answer.split()[1]))
    done = []
    assert score_all(scorer, pairs, on_texts=done.append).scores.tolist() == list(range(1200))
    assert (scorer.calls, done) == ([512, 512, 176], [512, 1024, 1200])


def test_subjects_are_the_rejected_answers():
    assert subjects_of([pair(1)]) == [Subject("p1", "prompt 1", "bad 1", "good 1")]


def test_probes_are_chosen_by_name_family_or_kind(own_registry):
    marks, other = _marks(), _marks(name="other")
    own_registry["third"] = Probe("third", "length", "invariance", "either", "nothing", lambda subjects, seed: [])
    assert chosen_probes(["marks"]) == [marks]
    assert chosen_probes(["format"]) == [marks, other]
    assert [probe.name for probe in chosen_probes(without=["marks", "invariance"])] == ["other"]
    with pytest.raises(SettingsError, match="`mraks`"):
        chosen_probes(["mraks"])
    with pytest.raises(SettingsError, match="at least one probe"):
        chosen_probes(["marks"], without=["format"])


def test_two_probes_of_one_name_are_refused(own_registry):
    _marks()
    with pytest.raises(SettingsError, match="new name"):
        _marks()


def test_a_file_adds_probes(own_registry, tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(
        "from rewardsmith.auditing.registry import edit_probe\n"
        '@edit_probe("shouting", family="format", says="the last word in capitals")\n'
        "def shouting(prompt, answer, rng):\n"
        '    head, _, last = answer.rpartition(" ")\n'
        '    return f"{head} {last.upper()}" if head else None\n'
    )
    (probe,) = extend(file)
    assert probe.contrasts([Subject("s", "p", "say it")], 0)[0].edited == ("p", "say IT")


@pytest.mark.parametrize(
    ("text", "complaint"), [(None, "no file"), ("x = 1\n", "none"), ("1 / 0\n", "ZeroDivisionError")]
)
def test_a_file_without_probes_is_refused(own_registry, tmp_path, text, complaint):
    file = tmp_path / "mine.py"
    if text is not None:
        file.write_text(text)
    with pytest.raises(SettingsError, match=complaint):
        extend(file)
