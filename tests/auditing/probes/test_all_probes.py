"""All probes of the registry in one audit: quiet where nothing is planted."""

import numpy as np
import pytest

from rewardsmith.auditing.effects import ScoreUnit
from rewardsmith.auditing.registry import chosen_probes
from rewardsmith.auditing.trials import Plan, subjects_of
from rewardsmith.data.schema import prompt_key
from tests.auditing.planted import river_walks

NUM_AUDITS = 200


@pytest.mark.slow
def test_a_fair_scorer_is_flagged_in_at_most_one_audit_of_twenty():
    """200 audits by all probes, each with fresh normal scores and a label effect of one sd under the pairs' own prompts."""
    pairs = river_walks(100)
    plan = Plan(chosen_probes(), subjects_of(pairs), seed=0)
    chosen, rejected = plan.add([one.chosen_pair for one in pairs]), plan.add([one.rejected_pair for one in pairs])
    rng, flagged = np.random.default_rng(0), 0
    for _ in range(NUM_AUDITS):
        scores = rng.normal(size=len(plan.pairs)).astype(np.float32)
        scores[chosen] += 1.0
        unit = ScoreUnit.of(
            scores[chosen].astype(np.float64) - scores[rejected].astype(np.float64),
            [prompt_key(one.prompt) for one in pairs],
        )
        flagged += any(result.flagged for result in plan.measured(scores, unit))
    # 5 % of 200 are 10; 18 or more come by chance in 1 of 100.
    assert flagged < 18
    print(f"{flagged} of {NUM_AUDITS}")
