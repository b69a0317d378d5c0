"""The embedded set is what it claims to be."""

from collections import Counter

from rewardsmith import metrics
from rewardsmith.data.embedded import embedded_preferences
from rewardsmith.data.faults import content_fault, drop_faults
from rewardsmith.data.schema import prompt_key
from rewardsmith.evaluation.pairwise import markdown_marks


def test_counts_and_kinds():
    pairs = embedded_preferences()
    prompts = {prompt_key(p.prompt) for p in pairs}
    assert len(prompts) >= 150 and len(pairs) == 6 * len(prompts)
    assert len({p.metadata["kind"] for p in pairs}) >= 20
    failures = Counter(p.metadata["failure"] for p in pairs)
    wanted = "wrong_fact evasive off_topic rambling flattering rude unsafe_help needless_refusal ignored_instruction"
    assert all(failures[name] >= 20 for name in wanted.split()), failures
    assert not drop_faults(pairs, content_fault)[1].counts


def test_counting_characters_is_useless_on_it():
    import numpy as np

    pairs = embedded_preferences()
    longer = metrics.wins(np.array([len(p.chosen) - len(p.rejected) for p in pairs], float)).mean()
    markdown = metrics.wins(
        np.array([markdown_marks(p.chosen) - markdown_marks(p.rejected) for p in pairs], float)
    ).mean()
    assert 0.45 <= longer <= 0.55
    assert 0.45 <= markdown <= 0.55
