"""Rejection sampling: the answers that a reward model took, as rows to fine-tune on; its best and worst answers, as pairs for DPO. What is left out is counted by reason."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rewardsmith.data.faults import content_fault
from rewardsmith.data.schema import Preference, conversation
from rewardsmith.data.traits import is_blank
from rewardsmith.use.best_answers import BestAnswers

ABSTAINED, EMPTY, CUT = "abstained", "empty_answer", "cut_answer"
ONE_TEXT, EQUAL_SCORES, SMALL_MARGIN = "one_text", "equal_scores", "small_margin"


@dataclass(frozen=True)
class Exported:
    """Rows to write.

    Args:
        rows: one a group that is not left out.
        left_out: groups, by reason.
    """

    rows: list[dict[str, Any]]
    left_out: Mapping[str, int]

    def as_dict(self) -> dict[str, Any]:
        """The document."""
        return {"rows": len(self.rows), "left_out": dict(self.left_out)}


def fine_tuning_rows(best: BestAnswers, *, messages: bool = False) -> Exported:
    """The taken answers: `{"id", "prompt", "answer", "score"}`, or conversations `{"id", "messages", "score"}`.

    Left out are groups that were abstained from, and empty and unfinished answers: a policy that is trained on these learns to say nothing, or never to end.

    Args:
        best: the choices.
        messages: write conversations, as TRL's SFTTrainer reads them.
    """
    rows, left_out = [], Counter[str]()
    scores = best.group_scores()
    for g, (group, choice, taken) in enumerate(zip(best.pool.groups, best.choices, best.taken(), strict=True)):
        fault = ABSTAINED if choice.is_abstained else EMPTY if is_blank(taken.answer) else CUT if taken.is_cut else None
        if fault is not None:
            left_out[fault] += 1
            continue
        text: dict[str, Any] = {"prompt": group.prompt, "answer": taken.answer}
        if messages:
            text = {"messages": conversation(group.prompt, taken.answer)}
        rows.append({"id": group.id, **text, "score": float(scores[g][choice.taken])})
    return Exported(rows, left_out)


def preference_rows(best: BestAnswers, *, min_margin: float = 0.0, messages: bool = False) -> Exported:
    """The best against the worst answer of each group: `{"id", "prompt", "chosen", "rejected", "score_margin"}`.

    Left out are groups of one text, equal scores, margins below `min_margin`, texts that are equal but for white space, empty answers, and a best answer that is unfinished.
    Groups that were abstained from stay: their two best are close, their best and worst need not be.

    Args:
        best: the choices; the best answer is the first of the ranking, with soft best-of-n too.
        min_margin: between the scores of the two.
        messages: write both answers, and the prompt, as lists of messages.
    """
    rows, left_out = [], Counter[str]()
    for group, choice, scores in zip(best.pool.groups, best.choices, best.group_scores(), strict=True):
        first, last = group.answers[choice.ranking[0]], group.answers[choice.ranking[-1]]
        margin = float(scores[choice.ranking[0]] - scores[choice.ranking[-1]])
        fault = content_fault(Preference(group.id, group.prompt, first.answer, last.answer))
        if choice.runner_up is None:
            fault = ONE_TEXT
        elif margin == 0:
            fault = EQUAL_SCORES
        elif fault is None and margin < min_margin:
            fault = SMALL_MARGIN
        elif fault is None and first.is_cut:
            fault = CUT
        if fault is not None:
            left_out[fault] += 1
            continue
        row: dict[str, Any] = {"prompt": group.prompt, "chosen": first.answer, "rejected": last.answer}
        if messages:
            sides = {"chosen": first.answer, "rejected": last.answer}
            row = {"prompt": conversation(group.prompt, "")[:-1]}
            row |= {side: [{"role": "assistant", "content": text}] for side, text in sides.items()}
        rows.append({"id": group.id, **row, "score_margin": margin})
    return Exported(rows, left_out)
