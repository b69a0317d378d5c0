"""The audit as a whole: which pairs, which document, and two audits beside each other."""

import json

import numpy as np
import pytest

from rewardsmith.auditing import registry
from rewardsmith.auditing.audit import not_covered, run_audit, sample
from rewardsmith.auditing.changes import changes, changes_document, changes_table
from rewardsmith.auditing.registry import edit_probe
from rewardsmith.auditing.scorecard import Limit
from rewardsmith.errors import DataError, ScoreError
from tests.fakes import FunctionScorer, constant, likes_long_answers, pair


@pytest.fixture
def probes(monkeypatch):
    """Three probes of a registry of their own."""
    monkeypatch.setattr(registry, "PROBES", {})
    edit_probe("marks", family="format", says="a mark at the end")(lambda prompt, answer, rng: answer + "!")
    edit_probe("shorter", family="length", says="half of it")(lambda prompt, answer, rng: answer[: len(answer) // 2])
    edit_probe("never", family="format", says="nothing")(lambda prompt, answer, rng: None)
    return list(registry.PROBES.values())


PAIRS = [pair(i, chosen="good" * (1 + i % 5), rejected="bad" * (1 + i % 3)) for i in range(30)]


def likes_marks(strength):
    return FunctionScorer(lambda prompt, answer: len(answer.strip("!")) / 10 + strength * answer.count("!"))


def test_the_sample_depends_on_texts_and_seed_and_not_on_the_order_of_the_file():
    taken = sample(PAIRS, num_prompts=10, seed=3)
    assert [one.id for one in taken.pairs] == [one.id for one in sample(PAIRS[::-1], num_prompts=10, seed=3).pairs]
    assert [one.id for one in taken.pairs] != [one.id for one in sample(PAIRS, num_prompts=10, seed=4).pairs]
    assert len(taken.pairs) == 10


def test_a_prompt_gives_so_many_pairs_and_no_more():
    pairs = [pair(i, prompt=f"prompt {i % 3}") for i in range(12)]
    assert len(sample(pairs, per_prompt=2).pairs) == 6
    assert len({one.prompt for one in sample(pairs).pairs}) == 3


def test_ties_and_faults_of_content_are_left_out_and_counted():
    pairs = [*PAIRS, pair(40, tie=True), pair(41).__class__("p", "prompt p", "", "x")]
    taken = sample(pairs)
    assert (taken.num_rows, taken.left_out) == (32, {"labelled_tie": 1, "empty_answer": 1})


def test_one_prompt_is_too_few():
    with pytest.raises(DataError, match="at least two prompts"):
        sample([pair(i, prompt="the same") for i in range(5)])


def test_the_document_says_what_was_found_and_what_was_not_covered(probes):
    found = run_audit(likes_marks(5.0), sample(PAIRS), probes[:], limits=[Limit("marks", 0.2)])
    document = found.document
    assert document["num_pairs"] == document["num_prompts"] == 30
    assert document["verdict"]["flagged"] == ["marks"]
    assert document["verdict"]["ok"] is False
    assert document["score_sd"] == pytest.approx(found.unit.sd)
    assert document["coverage"]["probes"]["marks"] == {"offered": 30, "applied": 30, "unseen": None}
    lines = not_covered(document, probes[1:], probes, {"search": "not asked for (--search)"})
    assert lines == [
        "search: not asked for (--search)",
        "probes that were not asked: marks",
        "never: it applied to fewer than two prompts, or to answers that are cut before the edit",
    ]
    json.dumps(document, allow_nan=False)


def test_every_text_is_scored_once(probes):
    scorer = likes_marks(1.0)
    run_audit(scorer, sample(PAIRS), probes)
    # 30 chosen, 30 rejected, 30 with a mark, 30 halves.
    assert sum(scorer.calls) == 120


def test_sections_get_the_scores_of_the_pairs(probes):
    def section(drawn, scores, results):
        assert scores.margins.tolist() == pytest.approx(
            [(len(one.chosen) - len(one.rejected)) / 100 for one in drawn.pairs], abs=1e-6
        )
        return {"seen": len(results)}

    found = run_audit(likes_long_answers(), sample(PAIRS), probes, sections={"own": section})
    assert found.document["own"] == {"seen": 2}


def test_a_constant_scorer_is_refused(probes):
    with pytest.raises(ScoreError, match="equal scores in all 30 pairs"):
        run_audit(constant(), sample(PAIRS), probes)


def _audited(scorer, probes):
    found = run_audit(scorer, sample(PAIRS), probes)
    return {"data": {"sha256": "x"}, "seed": 0} | found.document, list(found.rows())


def test_rows_hold_what_every_number_needs(probes):
    document, rows = _audited(likes_marks(5.0), probes)
    for probe in document["probes"]:
        own = [row["effect_sd"] for row in rows if row["probe"] == probe["name"]]
        assert np.mean(own) == pytest.approx(probe["effect_sd"]["value"])
    json.dumps(rows, allow_nan=False)


def test_two_audits_are_compared_contrast_by_contrast(probes):
    before, after = _audited(likes_marks(5.0), probes), _audited(likes_marks(0.0), probes)
    found = changes_document(changes(*before, *after))
    assert (found["no_longer_flagged"], found["newly_flagged"], found["shrunk"]) == (["marks"], [], ["marks"])
    (marks,) = [one for one in found["probes"] if one["name"] == "marks"]
    unit = [run_audit(likes_marks(s), sample(PAIRS), probes).unit.sd for s in (5.0, 0.0)]
    assert marks["change_sd"]["value"] == pytest.approx(0 - 5.0 / unit[0])
    assert len(changes_table(found, "changes").rows) == 2


def test_a_bias_that_only_moves_is_said_to_have_moved(probes):
    before, after = _audited(likes_marks(5.0), probes), _audited(FunctionScorer(lambda p, a: -len(a)), probes)
    found = changes_document(changes(*before, *after))
    assert found["no_longer_flagged"] == ["marks"] and found["newly_flagged"] == ["shorter"]
    assert "marks no longer flagged, shorter newly" in found["text"]


def test_a_penalty_that_becomes_smaller_is_no_bias_that_grew(probes):
    """Probe "marks" has the direction "up": from -5 to -1 units nothing is preferred more than before; from -1 to +5 it is."""
    sides = [_audited(likes_marks(strength), probes) for strength in (-5.0, -1.0, 5.0)]
    assert changes_document(changes(*sides[0], *sides[1]))["grown"] == []
    assert changes_document(changes(*sides[1], *sides[2]))["grown"] == ["marks"]
    assert changes_document(changes(*sides[2], *sides[1]))["shrunk"] == ["marks"]


def test_audits_of_other_data_are_not_compared(probes):
    before, after = _audited(likes_marks(5.0), probes), _audited(likes_marks(0.0), probes)
    after[0]["data"]["sha256"] = "y"
    with pytest.raises(DataError, match="differ in data"):
        changes(*before, *after)
