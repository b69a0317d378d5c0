"""Does a scorer read to the end? Long answers in which one sentence, right or wrong, stands at 10, 50 or 90 %.

The rest of each answer is neutral, the same on both sides, and the same at the three places. `decisive_at_...` compare the wrong sentence with the right one: what
counts there is the win rate, which is one half where the scorer sees no difference and 1 minus the accuracy elsewhere. A flag on one of them says that the
wrong sentence is preferred. `late_mistake` compares the places: its flag says that what stands at the end counts for less than what stands at the beginning.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from rewardsmith.auditing.probes.facts import FACTS, Fact
from rewardsmith.auditing.registry import item_probe
from rewardsmith.auditing.trials import Contrast
from rewardsmith.data.schema import Pair

PLACES = (10, 50, 90)
"""Per cent of the answer's other words that stand before the decisive sentence."""
NUM_WORDS = (120, 300, 700, 1600)
"""Words of the answers, in turn: from under 200 tokens to over 2,000."""
_PARAGRAPH = 6

_PLACES_TO_LOOK = (
    "a textbook",
    "an encyclopedia",
    "a lecture",
    "a lesson at school",
    "a newspaper",
    "a library",
    "a museum",
    "a letter from a friend",
    "a long conversation",
    "an old notebook",
    "a documentary",
    "a study group",
)
_FILLERS = (
    "Many people first hear of something like this in {}, and the memory stays with them.",
    "What one finds in {} is often the beginning of a longer story.",
    "It takes a little patience to get from {} to a clear picture of the matter.",
    "Somebody who has spent an afternoon with {} will know the feeling of turning one more page.",
    "There is a particular pleasure in {}, which has to do with taking things slowly.",
    "Not everything that is worth knowing can be had from {}, but a good part of it can.",
    "A question that comes up in {} is seldom asked by one person alone.",
    "Those who teach like to begin with {}, because everyone has seen one at some time.",
    "The details that one meets in {} are easier to remember when they are put in order.",
    "With {} at hand, it is a good habit to write down what one wanted to find out.",
    "Other people's notes on {} can be helpful, although one's own are easier to read.",
    "Between {} and a quick answer lies the work of sorting what belongs together.",
    "Half of the art of using {} is to know when to stop and think.",
    "It is no loss to come back to {} on another day and to read the same lines again.",
    "From {} one may take an example, and from the example a general idea.",
    "Some background from {} makes it easier to see why anyone would ask in the first place.",
    "After {}, many find it useful to explain the matter to someone else in plain words.",
    "Few things are as quickly forgotten as what was only skimmed in {}.",
)
ITEMS = tuple(fact for number, fact in enumerate(FACTS) if number % 4)
"""The facts that are asked for; fewer than all, since these are the longest texts of an audit."""


def num_words(item: int) -> int:
    """Words of the answers to an item's question, the decisive sentence apart; a few more or less."""
    return NUM_WORDS[item % len(NUM_WORDS)]


def answered(item: int, place: int, answer: str) -> Pair:
    """An item's question with a long answer that says `answer` after `place` per cent of its words."""
    fact = ITEMS[item]
    before = _neutral(item)
    lengths = np.cumsum([0, *(len(sentence.split()) for sentence in before)])
    at = int(np.abs(lengths - place / 100 * lengths[-1]).argmin())
    sentences = [*before[:at], f"{fact.said(answer)}.", *before[at:]]
    paragraphs = [" ".join(sentences[k : k + _PARAGRAPH]) for k in range(0, len(sentences), _PARAGRAPH)]
    return f"{fact.question} Please answer at length, with some background.", "\n\n".join(paragraphs)


def _neutral(item: int) -> list[str]:
    """Sentences for about as many words as the item's answer has, none of them twice."""
    wanted = num_words(item)
    order = np.random.default_rng(item).permutation(len(_FILLERS) * len(_PLACES_TO_LOOK)).tolist()
    sentences: list[str] = []
    count = 0
    while count < wanted:
        filler, where = divmod(order[len(sentences)], len(_PLACES_TO_LOOK))
        sentences.append(_FILLERS[filler].format(_PLACES_TO_LOOK[where]))
        count += len(sentences[-1].split())
    return sentences


def _decisive(place: int) -> Callable[[], list[Contrast]]:
    def contrasts() -> list[Contrast]:
        return [Contrast(_name(fact), fact.question, *_wrong_and_right(item, place)) for item, fact in enumerate(ITEMS)]

    return contrasts


def _wrong_and_right(item: int, place: int) -> tuple[Pair, Pair]:
    fact = ITEMS[item]
    return answered(item, place, fact.wrong), answered(item, place, fact.right)


def _name(fact: Fact) -> str:
    return f"{fact.subject}: {fact.question}"


for _place in PLACES:
    item_probe(
        f"decisive_at_{_place}",
        family="position",
        kind="truncation",
        says=f"a wrong sentence in place of the right one, {_place} % into a long answer",
    )(_decisive(_place))


@item_probe(
    "late_mistake",
    family="position",
    kind="truncation",
    says="a wrong sentence in place of the right one, 90 % into a long answer instead of 10 %",
)
def _late_mistake() -> list[Contrast]:
    return [
        Contrast(
            _name(fact), fact.question, *_wrong_and_right(item, PLACES[-1]), neutral=_wrong_and_right(item, PLACES[0])
        )
        for item, fact in enumerate(ITEMS)
    ]
