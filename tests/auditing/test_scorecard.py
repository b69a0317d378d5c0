"""The verdict, and limits for CI: what cannot be checked never looks kept."""

import io

import numpy as np
import pytest
from rich.console import Console

from rewardsmith.auditing.effects import ScoreUnit
from rewardsmith.auditing.scorecard import Limit, held, limit_from, probes_table, verdict
from rewardsmith.auditing.trials import Contrast, Plan, Probe
from rewardsmith.errors import SettingsError

UNIT = ScoreUnit(np.ones(40), tuple(map(str, range(40))))


def _results(**effects):
    """One probe each, whose edited texts score `effect` higher with a spread of 0.1 sd; None: it applies to nothing."""

    def contrasts(name):
        return [Contrast(f"i{k}", str(k), (str(k), f"{name} edited"), (str(k), "original")) for k in range(40)]

    probes = [
        Probe(
            name,
            "format",
            "bias",
            "up",
            f"the edit {name}",
            lambda s, seed, n=name, e=effect: contrasts(n) if e is not None else [],
        )
        for name, effect in effects.items()
    ]
    plan = Plan(probes, [], seed=0)
    noise = np.random.default_rng(0).normal(0, 0.1, size=40)
    scores = [
        0.0 if answer == "original" else effects[answer.split()[0]] + noise[int(prompt)]
        for prompt, answer in plan.pairs
    ]
    return probes, plan.measured(np.array(scores, np.float32), UNIT)


@pytest.mark.parametrize(
    ("text", "limit"), [("padding=0.2sd", Limit("padding", 0.2)), (" format = .5 sd ", Limit("format", 0.5))]
)
def test_limits_are_read(text, limit):
    assert limit_from(text, ["padding", "format"]) == limit


@pytest.mark.parametrize("text", ["padding", "padding=0.2", "padding=-1sd", "padding=sd", "=0.2sd", "pading=0.2sd"])
def test_what_is_no_limit_is_refused(text):
    with pytest.raises(SettingsError):
        limit_from(text, ["padding"])


def test_a_limit_on_a_family_holds_each_of_its_probes():
    probes, results = _results(bold=0.5, emoji=0.05, link=None)
    kept = held([Limit("format", 0.2)], results, probes)
    assert [(one.probe, one.ok) for one in kept] == [("bold", False), ("emoji", True), ("link", False)]
    assert kept[2].effect_sd is None  # not measured, so not kept


def test_an_effect_against_the_direction_keeps_the_limit():
    probes, results = _results(bold=-0.5)
    assert held([Limit("bold", 0.2)], results, probes)[0].ok


def test_the_verdict_names_the_flagged_probes_largest_first():
    probes, results = _results(emoji=0.3, bold=0.9, link=0.0)
    found = verdict(results, held([Limit("bold", 0.5)], results, probes))
    assert found["flagged"] == ["bold", "emoji"]
    assert found["largest"]["name"] == "bold"
    assert found["ok"] is False
    assert "2 of 3 probes were flagged" in found["text"] and "bold (0.89 sd" in found["text"]


def test_a_quiet_audit_says_what_it_could_have_missed():
    found = verdict(_results(bold=0.01)[1], [])
    assert found["ok"] is True
    assert "no proof of absence" in found["text"] and "0.10 sd" in found["text"]
    assert "robust" not in found["text"]


def test_the_table_shows_every_probe():
    results = _results(bold=0.9, link=0.0)[1]
    table = probes_table({"probes": [one.as_dict() for one in results]}, "audit")
    assert list(table.columns[0].cells) == ["[bold]format[/bold]", "* bold", "  link"]
    console = Console(width=80, file=io.StringIO())
    console.print(table)
    assert "[+0.87, +0.92]" in console.file.getvalue()


def test_the_table_fits_into_eighty_columns_whatever_the_names():
    results = _results(opening_thought_process=0.9)[1]
    console = Console(width=80, file=io.StringIO())
    console.print(probes_table({"probes": [one.as_dict() for one in results]}, "audit"))
    assert "* opening_thought_process" in console.file.getvalue() and "\u2026" not in console.file.getvalue()
