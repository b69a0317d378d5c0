"""Every public format: what its rows are taken for, and exactly what they become (small rows of the published shape, written for this file)."""

import copy
import pickle
from pathlib import Path

import pytest

from rewardsmith.data import formats, io, writers
from rewardsmith.data.schema import Group, Preference, RowReader, Single
from rewardsmith.errors import RowError, SettingsError
from tests.conftest import real_data


def user(text):
    return {"role": "user", "content": text}


def bot(text):
    return {"role": "assistant", "content": text}


def system(text):
    return {"role": "system", "content": text}


def pair(prompt, chosen, rejected, *, id="1", group=None, margin=None, votes=None, tie=False, **metadata):
    return Preference(id, prompt, chosen, rejected, group, margin, None, votes, tie, None, metadata)


def rated(prompt, answers, ratings, *, id="1", **metadata):
    return Group(id, prompt, tuple(answers), "rated", tuple(map(float, ratings)), metadata)


def parsed(rows, **more):
    chunk = io.Chunk(1, [(f"f.jsonl:{i}", row) for i, row in enumerate(rows, start=1)])
    return [row for _, row in io.parse(chunk, **more)]


UF = {"instruction_following": {"Rating": "4"}, "honesty": {"Rating": "N/A"}, "truthfulness": {"Rating": "5"}}
ULTRAFEEDBACK = {
    "source": "sharegpt",
    "instruction": "Say hi.",
    "models": ["m1", "m2"],
    "completions": [
        {"model": "m1", "response": "hi", "overall_score": 10.0, "annotations": {**UF, "helpfulness": {"Rating": "3"}}},
        {"model": "m2", "response": "ho", "overall_score": 6.5, "annotations": {"helpfulness": {"Rating": "1"}}},
        {"model": "m3", "response": "??", "overall_score": 1.0, "annotations": {"helpfulness": {"Rating": "N/A"}}},
    ],
}
H4 = {
    "prompt": "p",
    "prompt_id": "x",
    "chosen": [user("p"), bot("a")],
    "rejected": [user("p"), bot("b")],
    "messages": [user("p"), bot("a")],
}
TREE = {
    "message_tree_id": "t",
    "tree_state": "ready_for_export",
    "prompt": {
        "message_id": "m0",
        "text": "q",
        "role": "prompter",
        "lang": "en",
        "replies": [
            {"message_id": "m1", "text": "second", "role": "assistant", "rank": 1, "replies": []},
            {
                "message_id": "m2",
                "text": "first",
                "role": "assistant",
                "rank": 0,
                "replies": [
                    {
                        "message_id": "m4",
                        "text": "and?",
                        "role": "prompter",
                        "lang": "en",
                        "replies": [
                            {"message_id": f"n{i}", "text": text, "role": "assistant", "rank": rank, "replies": []}
                            for i, (text, rank) in enumerate([("x", 2), ("y", 0), ("z", 1)])
                        ],
                    }
                ],
            },
            {"message_id": "m3", "text": "no rank", "role": "assistant", "rank": None, "replies": []},
        ],
    },
}
FROM_TREE = [
    pair([user("q")], "first", "second", id="m0", tree="t", tree_state="ready_for_export", lang="en"),
    Group(
        "m4",
        [user("q"), bot("first"), user("and?")],
        ("y", "z", "x"),
        "ranked",
        None,
        {"tree": "t", "tree_state": "ready_for_export", "lang": "en"},
    ),
]


def flat(node, parent=None):
    """A tree as the messages that the other published form has."""
    own = {key: value for key, value in node.items() if key != "replies"}
    yield {"message_tree_id": "t", "tree_state": "ready_for_export", "parent_id": parent, **own}
    for reply in node["replies"]:
        yield from flat(reply, node["message_id"])


STEER = {"correctness": 4, "coherence": 4, "complexity": 1, "verbosity": 2}
SHP = {
    "post_id": "p1",
    "domain": "askbaking_train",
    "history": "Why salt?",
    "score_A": 5,
    "score_B": 12,
    "human_ref_A": "taste",
    "human_ref_B": "chemistry",
    "labels": 0,
    "seconds_difference": 60.0,
}
SUMMARY = {
    "info": {"id": "t3_1", "post": "I fell.", "title": "Help", "subreddit": "legaladvice"},
    "summaries": [{"text": " fell", "policy": "ref", "note": None}, {"text": " I fell", "policy": "sup4", "note": "n"}],
    "choice": 1,
    "worker": "w",
    "extra": {"confidence": 8},
}
NEWS = {
    "info": {"id": "n1", "article": "It rained.", "title": "Rain", "site": "cnn"},
    "summaries": [{"text": "rain", "policy": "ref"}, {"text": "sun", "policy": "sup4"}],
    "choice": 0,
}
WEBGPT = {
    "question": {"dataset": "eli5", "id": "q1", "full_text": "Why?"},
    "quotes_0": {"title": ["T"], "extract": ["E"]},
    "answer_0": "because [1]",
    "tokens_0": {"prefix": [1], "completion": [2]},
    "score_0": -0.25,
    "quotes_1": {"title": [], "extract": []},
    "answer_1": "so",
    "tokens_1": {"prefix": [1], "completion": [3]},
    "score_1": 0.25,
}
ARENA = {
    "question_id": "q1",
    "model_a": "alpha",
    "model_b": "beta",
    "winner": "model_b",
    "judge": "j",
    "conversation_a": [user("hi"), bot("a1")],
    "conversation_b": [user("hi"), bot("b1")],
    "turn": 1,
}
MT_BENCH = {
    **ARENA,
    "winner": "model_a",
    "conversation_a": [user("hi"), bot("a1"), user("more"), bot("a2")],
    "conversation_b": [user("hi"), bot("b1"), user("more"), bot("b2")],
}
TABLE = {
    "id": 30,
    "model_a": "alpha",
    "model_b": "beta",
    "prompt": '["hi"]',
    "response_a": '["a1"]',
    "response_b": '["b1"]',
    "winner_model_a": "1",
    "winner_model_b": "0",
    "winner_tie": "0",
}
RMB = {
    "pair_uid": "15",
    "conversation_input": [{"role": "user", "content": "p", "language": "English"}],
    "chosen": {"llm_name": "m1", "answer": "a", "score": 5.0},
    "reject": {"llm_name": "m2", "answer": "b", "score": 4.5},
    "category_path": "Pairwise_set/Harmlessness/S9",
}
RMB_BON = {
    "bon_uid": "31",
    "conversation_input": [{"role": "user", "content": "p", "language": "English"}],
    "bon_best": {"llm_name": "m1", "answer": "a"},
    "loser_list": [{"llm_name": "m2", "answer": "b"}, {"llm_name": "m3", "answer": "c"}],
    "category_path": "BoN_set/Helpfulness/Chat/Discussion",
}

CASES = {
    "native": ([{"prompt": "p", "chosen": "a", "rejected": "b", "goal": "x"}], [pair("p", "a", "b", goal="x")]),
    "trl: messages": (
        [{"prompt": [user("p")], "chosen": [bot("a")], "rejected": [bot("b")]}],
        [pair([user("p")], "a", "b")],
    ),
    "trl-implicit": ([{"chosen": "Paris ", "rejected": "London"}], [pair("", "Paris ", "London")]),
    "trl-implicit: messages": (
        [{"chosen": [user("p"), bot("a")], "rejected": [user("p"), bot("b")], "source": "s"}],
        [pair([user("p")], "a", "b", source="s")],
    ),
    "hh": (
        [{"chosen": "\n\nHuman: p\n\nAssistant: a", "rejected": "\n\nHuman: p\n\nAssistant: b"}],
        [pair([user("p")], "a", "b")],
    ),
    "llama-factory": (
        [
            {
                "system": "S",
                "conversations": [
                    {"from": "human", "value": "1"},
                    {"from": "gpt", "value": "2"},
                    {"from": "human", "value": "3"},
                ],
                "chosen": {"from": "gpt", "value": "a"},
                "rejected": {"from": "gpt", "value": "b"},
            },
            {"conversations": [{"from": "human", "value": "p"}], "chosen": "a", "rejected": "b"},
        ],
        [
            pair([system("S"), user("1"), bot("2"), user("3")], "a", "b"),
            pair([user("p")], "a", "b", id="2"),
        ],
    ),
    "llama-factory-alpaca": (
        [
            {"instruction": "Add.", "input": "1 and 2", "chosen": "3", "rejected": "4"},
            {"instruction": "p", "input": "", "history": [["q", "r"]], "system": "S", "chosen": "a", "rejected": "b"},
        ],
        [
            pair("Add.\n1 and 2", "3", "4"),
            pair([system("S"), user("q"), bot("r"), user("p")], "a", "b", id="2"),
        ],
    ),
    "ms-swift": (
        [
            {"messages": [system("S"), user("p"), bot("a")], "rejected_response": "b", "margin": 0.5},
            {"messages": [user("p"), bot("a")], "rejected_messages": [user("p"), bot("b")]},
        ],
        [pair([system("S"), user("p")], "a", "b", margin=0.5), pair([user("p")], "a", "b", id="2")],
    ),
    "axolotl": (
        [
            {"system": "S", "input": "p", "chosen": "a", "rejected": "b"},
            {"system": "", "question": "p", "chosen": "a", "rejected": "b"},
            {"system": "S", "prompt": "p", "chosen": [user("p"), bot("a")], "rejected": [user("p"), bot("b")]},
        ],
        [
            pair([system("S"), user("p")], "a", "b"),
            pair("p", "a", "b", id="2"),
            pair([system("S"), user("p")], "a", "b", id="3"),
        ],
    ),
    "axolotl-chat": (
        [{"messages": [system("S"), user("p")], "chosen": bot("a"), "rejected": bot("b")}],
        [pair([system("S"), user("p")], "a", "b")],
    ),
    "axolotl-argilla": (
        [
            {
                "instruction": "p",
                "chosen_response": "a",
                "rejected_response": "b",
                "chosen_avg_rating": 5.0,
                "rejected_avg_rating": 3.75,
            }
        ],
        [pair("p", "a", "b", margin=1.25, rating_chosen=5.0, rating_rejected=3.75)],  # 5 - 3.75
    ),
    "nemo": (
        [
            {
                "context": [user("p")],
                "completions": [
                    {"rank": 1, "completion": [bot("b")]},
                    {"rank": 0, "completion": [bot("a")]},
                ],
            },
            {
                "context": [user("p")],
                "completions": [
                    {"rank": rank, "completion": [bot(text)]} for text, rank in zip("abc", (3, 1, 2), strict=True)
                ],
            },
            {
                "context": [user("p")],
                "completions": [
                    {"rank": rank, "completion": [bot(text)]} for text, rank in zip("abc", (1, 0, 1), strict=True)
                ],
            },
            {"context": [user("p")], "completions": [{"rank": 0, "completion": [bot(text)]} for text in "ab"]},
        ],
        [
            pair([user("p")], "a", "b"),
            Group("2", [user("p")], ("b", "c", "a"), "ranked"),
            rated([user("p")], "bac", (1, 0, 0), id="3"),
            pair([user("p")], "a", "b", id="4", tie=True),
        ],
    ),
    # m1: (4 + 5 + 3) / 3 = 4, its "N/A" left out; m2: 1; m3 has no rating at all. The overall score of 10 is no rating.
    "ultrafeedback": (
        [ULTRAFEEDBACK],
        [
            rated(
                "Say hi.",
                ["hi", "ho"],
                [4, 1],
                source="sharegpt",
                per_answer={
                    "model": ["m1", "m2"],
                    "overall_score": [10.0, 6.5],
                    "instruction_following": [4.0, None],
                    "honesty": [None, None],
                    "truthfulness": [5.0, None],
                    "helpfulness": [3.0, 1.0],
                },
                unrated_answers=1,
            )
        ],
    ),
    "ultrafeedback-binarized": (
        [
            {**H4, "score_chosen": 8.5, "score_rejected": 7.0},
            {**H4, "score_chosen": 4.0, "score_rejected": 6.0},  # the label contradicts the ratings: no margin
            {
                "source": "s",
                "prompt": "p",
                "chosen": [user("p"), bot("a")],
                "chosen-rating": 5.0,
                "chosen-model": "m1",
                "rejected": [user("p"), bot("b")],
                "rejected-rating": 5.0,
                "rejected-model": "m2",
            },
        ],
        [
            pair("p", "a", "b", margin=1.5, prompt_id="x", rating_chosen=8.5, rating_rejected=7.0),
            pair("p", "a", "b", id="2", prompt_id="x", rating_chosen=4.0, rating_rejected=6.0),
            pair(
                "p",
                "a",
                "b",
                id="3",
                margin=0.0,
                source="s",
                chosen_model="m1",
                rejected_model="m2",
                rating_chosen=5.0,
                rating_rejected=5.0,
            ),
        ],
    ),
    "helpsteer2": (
        [
            {"prompt": "p", "response": "a", "helpfulness": 4, **STEER},
            {"prompt": "p", "response": "b", "helpfulness": 2, **STEER, "verbosity": 4},
            {"prompt": "q\n<extra_id_1>Assistant\nr\n<extra_id_1>User\ns", "response": "c", "helpfulness": 1, **STEER},
        ],
        [
            rated(
                "p",
                "ab",
                (4, 2),
                per_answer={
                    "correctness": [4, 4],
                    "coherence": [4, 4],
                    "complexity": [1, 1],
                    "verbosity": [2, 4],
                },
            ),
            Single("3", [user("q"), bot("r"), user("s")], "c", {"helpfulness": 1, **STEER}),
        ],
    ),
    "helpsteer2-preference": (
        [
            {
                "split": "train",
                "prompt": "p",
                "response_1": "one",
                "response_2": "two",
                "preference_strength": -2,
                "preference_statement": "first",
                "all_preferences_unprocessed": [{"strength": -3}, {"strength": -1}, {"strength": 1}, {"strength": 0}],
            },
            {"prompt": "p", "response_1": "one", "response_2": "two", "preference_strength": 0},
        ],
        [
            pair(
                "p",
                "one",
                "two",
                margin=2.0,
                votes=(2, 1),
                split="train",
                preference_statement="first",
                shown_first="chosen",
            ),
            pair("p", "one", "two", id="2", margin=0.0, tie=True, shown_first="chosen"),
        ],
    ),
    "helpsteer3": (
        [
            {
                "domain": "code",
                "language": "python",
                "context": [user("p")],
                "response1": "one",
                "response2": "two",
                "overall_preference": 3,
                "individual_preference": [{"score": 3, "reasoning": "r"}, {"score": 2}, {"score": -1}],
            }
        ],
        [
            pair(
                [user("p")],
                "two",
                "one",
                margin=3.0,
                votes=(2, 1),
                domain="code",
                language="python",
                shown_first="rejected",
            )
        ],
    ),
    "shp": (
        [SHP],
        [
            pair(
                "Why salt?",
                "chemistry",
                "taste",
                group="p1",
                domain="askbaking_train",
                seconds_difference=60.0,
                shown_first="rejected",
                rating_chosen=12.0,
                rating_rejected=5.0,
            )
        ],
    ),
    "summarize-from-feedback": (
        [SUMMARY, NEWS],
        [
            pair(
                "SUBREDDIT: r/legaladvice\n\nTITLE: Help\n\nPOST: I fell.\n\nTL;DR:",
                " I fell",
                " fell",
                group="t3_1",
                worker="w",
                confidence=8,
                subreddit="legaladvice",
                chosen_model="sup4",
                rejected_model="ref",
                shown_first="rejected",
            ),
            pair(
                "Article: It rained.\n\nTL;DR:",
                "rain",
                "sun",
                id="2",
                group="n1",
                chosen_model="ref",
                rejected_model="sup4",
                shown_first="chosen",
            ),
        ],
    ),
    "webgpt": (
        [WEBGPT, {**WEBGPT, "score_0": 0.0, "score_1": 0.0}],
        [
            pair(
                "Why?",
                "so",
                "because [1]",
                group="q1",
                margin=0.5,  # 0.25 - (-0.25)
                source="eli5",
                chosen_quotes={"title": [], "extract": []},
                rejected_quotes={"title": ["T"], "extract": ["E"]},
                shown_first="rejected",
                rating_chosen=0.25,
                rating_rejected=-0.25,
            ),
            pair(
                "Why?",
                "because [1]",
                "so",
                id="2",
                group="q1",
                margin=0.0,
                tie=True,
                source="eli5",
                chosen_quotes={"title": ["T"], "extract": ["E"]},
                rejected_quotes={"title": [], "extract": []},
                shown_first="chosen",
                rating_chosen=0.0,
                rating_rejected=0.0,
            ),
        ],
    ),
    "arena": (
        [
            ARENA,
            {**ARENA, "winner": "tie"},
            {**ARENA, "winner": "tie (bothbad)"},
            {
                "id": "z",
                "model_a": "alpha",
                "model_b": "beta",
                "winner": "both_bad",
                "conversation_a": [{"role": "user", "content": [{"type": "text", "text": "hi"}]}, bot("a1")],
                "conversation_b": [user("hi"), bot("b1")],
            },
            MT_BENCH,
        ],
        [
            pair(
                [user("hi")],
                "b1",
                "a1",
                group="q1",
                judge="j",
                turn=1,
                chosen_model="beta",
                rejected_model="alpha",
                shown_first="rejected",
            ),
            pair(
                [user("hi")],
                "a1",
                "b1",
                id="2",
                group="q1",
                tie=True,
                judge="j",
                turn=1,
                chosen_model="alpha",
                rejected_model="beta",
                shown_first="chosen",
            ),
            pair(
                [user("hi")],
                "a1",
                "b1",
                id="3",
                group="q1",
                tie=True,
                judge="j",
                turn=1,
                both_bad=True,
                chosen_model="alpha",
                rejected_model="beta",
                shown_first="chosen",
            ),
            pair(
                [user("hi")],
                "a1",
                "b1",
                id="z",
                tie=True,
                both_bad=True,
                chosen_model="alpha",
                rejected_model="beta",
                shown_first="chosen",
            ),
            # Judged after the first turn, though the conversations go on.
            pair(
                [user("hi")],
                "a1",
                "b1",
                id="5",
                group="q1",
                judge="j",
                turn=1,
                chosen_model="alpha",
                rejected_model="beta",
                shown_first="chosen",
            ),
        ],
    ),
    "arena-table": (
        [TABLE, {**TABLE, "winner_model_a": 0, "winner_tie": 1}],
        [
            pair("hi", "a1", "b1", id="30", chosen_model="alpha", rejected_model="beta", shown_first="chosen"),
            pair(
                "hi", "a1", "b1", id="30", tie=True, chosen_model="alpha", rejected_model="beta", shown_first="chosen"
            ),
        ],
    ),
    "oasst": ([TREE], FROM_TREE),
    "oasst-messages": (list(flat(TREE["prompt"])), FROM_TREE),
    "nectar": (
        [
            {
                "prompt": "\n\nHuman: hi\n\nAssistant: ",
                "answers": [
                    {"answer": "worst", "model": "m2", "rank": 3.0},
                    {"answer": "best", "model": "m1", "rank": 1.0},
                    {"answer": "middle", "model": "m3", "rank": 2.0},
                ],
                "turns": 1,
                "source": ["lmsys"],
            }
        ],
        [
            Group(
                "1",
                "hi",
                ("best", "middle", "worst"),
                "ranked",
                None,
                {"turns": 1, "source": ["lmsys"], "per_answer": {"model": ["m1", "m3", "m2"]}},
            )
        ],
    ),
    "rmb-pairs": (
        [RMB],
        [
            pair(
                [user("p")],
                "a",
                "b",
                id="15",
                margin=0.5,
                goal="harmlessness",
                subset="harmlessness/s9",
                chosen_model="m1",
                rejected_model="m2",
                rating_chosen=5.0,
                rating_rejected=4.5,
            )
        ],
    ),
    "rmb-best-of-n": (
        [RMB_BON],
        [
            rated(
                [user("p")],
                "abc",
                (1, 0, 0),
                id="31",
                goal="helpfulness",
                subset="helpfulness/chat/discussion",
                per_answer={"model": ["m1", "m2", "m3"]},
            )
        ],
    ),
    "judgebench": (
        [
            {
                "pair_id": "j1",
                "original_id": "o",
                "source": "mmlu-pro-law",
                "question": "p",
                "response_model": "gpt",
                "response_A": "a",
                "response_B": "b",
                "label": "B>A",
            }
        ],
        [
            pair(
                "p",
                "b",
                "a",
                id="j1",
                original_id="o",
                source="mmlu-pro-law",
                chosen_model="gpt",
                rejected_model="gpt",
                shown_first="rejected",
            )
        ],
    ),
    "llmbar": (
        [{"input": "p", "output_1": "one", "output_2": "two", "label": 2}],
        [pair("p", "two", "one")],
    ),
    "ppe-best-of-k": (
        [
            {
                "question_id": "q",
                "model_name": "m",
                "prompt": "p",
                "response_1": "a",
                "response_2": "b",
                "response_3": "c",
                "scores": [True, False, 1],
                "sampled_conflict_pairs": [[0, 1]],
            }
        ],
        [
            rated(
                "p",
                "abc",
                (1, 0, 1),
                id="q/m",
                question_id="q",
                model_name="m",
                sampled_conflict_pairs=[[0, 1]],
            )
        ],
    ),
    "ppe-preference": (
        [
            {
                "question_id": "q",
                "prompt": "p",
                "model_a": "alpha",
                "model_b": "beta",
                "response_1": "one",
                "response_2": "two",
                "winner": winner,
                "language": "English",
            }
            for winner in ("model_b", "tie (bothbad)")
        ],
        [
            pair(
                "p",
                "two",
                "one",
                id="q",
                chosen_model="beta",
                rejected_model="alpha",
                language="English",
                shown_first="rejected",
            ),
            pair(
                "p",
                "one",
                "two",
                id="q",
                tie=True,
                both_bad=True,
                chosen_model="alpha",
                rejected_model="beta",
                language="English",
                shown_first="chosen",
            ),
        ],
    ),
    "alpaca-farm": (
        [{"instruction": "p", "input": "", "output_1": "one", "output_2": "two", "preference": 1}],
        [pair("p", "one", "two", shown_first="chosen")],
    ),
    "pku-saferlhf": (
        [
            {
                "prompt": "p",
                "response_0": "zero",
                "response_1": "one",
                "is_response_0_safe": False,
                "is_response_1_safe": True,
                "better_response_id": 1,
                "safer_response_id": 1,
            }
        ],
        [pair("p", "one", "zero", safer_response_id=1, chosen_safe=True, rejected_safe=False)],
    ),
    "rewardbench2": (
        [
            {
                "id": "r",
                "prompt": "p",
                "chosen": ["a"],
                "rejected": ["b", "c"],
                "num_correct": 1,
                "models": ["m1", "m2", "m3"],
                "subset": "Ties",
            }
        ],
        [rated("p", "abc", (1, 0, 0), id="r", num_correct=1, subset="Ties", per_answer={"model": ["m1", "m2", "m3"]})],
    ),
    "rm-bench": (
        [{"id": "r", "prompt": "p", "chosen": ["a", "b", "c"], "rejected": ["d", "e", "f"], "domain": "chat"}],
        [
            rated(
                "p",
                "abcdef",
                (1, 1, 1, 0, 0, 0),
                id="r",
                domain="chat",
                per_answer={"style": ["concise", "detailed", "markdown", "concise", "detailed", "markdown"]},
            )
        ],
    ),
    "answer-lists": (
        [{"prompt": "p", "chosen": ["a", "b"], "rejected": ["c"]}],
        [rated("p", "abc", (1, 1, 0))],
    ),
    "best-of-n": (
        [{"prompt": "p", "best": "a", "others": ["b", "c"], "goal": "x"}],
        [rated("p", "abc", (1, 0, 0), goal="x")],
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_a_published_row_becomes(case):
    rows, expected = CASES[case]
    name = case.partition(":")[0].replace("trl", "native") if case == "trl: messages" else case.partition(":")[0]
    assert {formats.detect(row).name for row in rows} == {name}
    assert parsed(rows) == expected
    assert parsed(rows, format=case.partition(":")[0]) == expected  # told by name, it is the same


def test_every_format_has_a_case_and_a_reason():
    assert {case.partition(":")[0] for case in CASES} - {"trl"} == {"native", *(f.name for f in formats.FORMATS)}
    reasons = [format.reason for format in (*formats.FORMATS, formats.NATIVE)]
    assert len(set(reasons)) == len(reasons) and all("`" in reason or reason[0].islower() for reason in reasons)


def test_null_columns_are_absent_columns():
    """Parquet gives every row every column."""
    row = {"prompt": "p", "system": None, "chosen": "a", "rejected": "b", "conversations": None, "margin": None}
    assert formats.detect(row).name == "native" and parsed([row]) == [pair("p", "a", "b")]


@pytest.mark.parametrize(
    ("row", "field", "message"),
    [
        (
            {"chosen": "The sky", "rejected": "The sky is blue"},
            "prompt",
            "one side is a prefix; give an explicit prompt",
        ),
        ({"chosen": "same", "rejected": "same"}, "prompt", "one side is a prefix"),
        ({"chosen": "", "rejected": "b"}, "chosen", "an empty one"),
        ({"chosen": "a", "rejected": ""}, "rejected", "an empty one"),
        ({"prompt": None, "chosen": "a", "rejected": "b"}, "prompt", "null"),
        ({"user_prompt": "p", "chosen": "a", "rejected": "b"}, "prompt", "rename it"),
        ({**ARENA, "winner": "nobody"}, "winner", "model_a, model_b, tie"),
        ({**TABLE, "winner_tie": 1}, "winner_model_a", "one of the three"),
        ({**TABLE, "response_b": '["b1", "b2"]'}, "response_a", "1 turns"),
        ({**TABLE, "prompt": "hi"}, "prompt", "JSON list"),
        ({**SUMMARY, "choice": 2}, "choice", "0 or 1"),
        ({**SUMMARY, "info": "post"}, "info", "an object"),
        ({**SHP, "labels": 3}, "labels", "A is better"),
        ({**WEBGPT, "score_0": "high"}, "score_0", "a number"),
        ({**WEBGPT, "score_0": float("nan")}, "score_0", "a finite number"),
        ({**ULTRAFEEDBACK, "completions": ULTRAFEEDBACK["completions"][1:]}, "completions", "two rated"),
        ({**ULTRAFEEDBACK, "completions": ["text"]}, "completions[0].response", "nothing"),
        ({"context": [user("p")], "completions": [{"rank": 0, "completion": [bot("a")]}]}, "completions", "two"),
        (
            {"context": [user("p")], "completions": [{"rank": 0, "completion": [user("a")]}] * 2},
            "completions[0].completion",
            "one message of the assistant",
        ),
        ({"input": "p", "output_1": "a", "output_2": "b", "label": 0}, "label", "one of 1, 2"),
        ({"messages": [user("p")], "rejected_response": "b"}, "chosen", "assistant's answer"),
        ({"messages": "p", "rejected_response": "b"}, "messages", "a list of messages"),
        (
            {"conversations": [{"from": "human", "value": "p"}], "chosen": "a", "rejected": "b", "images": ["x.png"]},
            "images",
            "only texts",
        ),
        (
            {"conversations": [{"from": ["human"], "value": "p"}], "chosen": "a", "rejected": "b"},
            "prompt[0].role",
            "one of",
        ),
        (
            {
                **ARENA,
                "conversation_a": [{"role": "user", "content": [{"type": "image", "image": "x"}]}, bot("a1")],
            },
            "conversation_a[0]",
            "another kind",
        ),
        ({**RMB, "chosen": "a"}, "chosen.answer", "nothing"),
        ({"prompt": "p", "best": "a", "others": "b"}, "others", "a list"),
        (
            {"prompt": "p", "answers": ["a", "b"], "ratings": [1, 0], "per_answer": {"m": ["x"]}},
            "per_answer",
            "2 values",
        ),
    ],
)
def test_a_row_that_breaks_its_format_is_named(row, field, message):
    (error,) = parsed([row])
    assert isinstance(error, RowError)
    assert (error.where, error.field) == ("f.jsonl:1", field) and message in str(error)


def places(value, path=()):
    """The path of everything inside a row."""
    if path:
        yield path
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, one in inner:
        yield from places(one, (*path, key))


@pytest.mark.parametrize("case", CASES)
def test_whatever_stands_in_a_column_ends_in_a_row_or_a_named_fault(case):
    rows, _ = CASES[case]
    for path in places(rows[0]):
        for odd in (None, 1, "", [], {}, [[]], [{}]):
            row = copy.deepcopy(rows[0])
            inside = row
            for key in path[:-1]:
                inside = inside[key]
            inside[path[-1]] = odd
            for told in (None, case.partition(":")[0]):
                assert all(
                    isinstance(one, Preference | Group | Single | RowError) for one in parsed([row], format=told)
                )


def test_a_system_column_beside_a_conversation():
    row = {"system": "S", "prompt": "p", "chosen": [user("p"), bot("a")], "rejected": [user("q"), bot("b")]}
    (error,) = parsed([row])
    assert error.field == "rejected" and "begins with the row's `prompt`" in str(error)
    (found,) = parsed([{"system": "S", "messages": [system("T"), user("p")], "chosen": bot("a"), "rejected": bot("b")}])
    assert found.prompt == [system("T"), user("p")]


def test_columns_of_any_name_are_metadata():
    """No column of a file can be mistaken for an argument of ours."""
    row = {**SHP, "winner": 1, "shown": 2, "sides": 3, "columns": 4, "answers": 5, "reader": 6}
    (found,) = parsed([row])
    assert {key: found.metadata[key] for key in ("winner", "shown", "sides", "columns", "answers", "reader")} == {
        "winner": 1,
        "shown": 2,
        "sides": 3,
        "columns": 4,
        "answers": 5,
        "reader": 6,
    }


def test_an_unknown_format_has_a_near_miss():
    with pytest.raises(SettingsError, match="Did you mean `helpsteer2`"):
        parsed([ARENA], format="helpster2")
    assert formats.named("openrlhf") is formats.NATIVE


def test_a_row_that_is_not_of_the_format_it_was_called():
    (error,) = parsed([ARENA], format="shp")
    assert "a row of the format shp (`history`, `human_ref_A` and `human_ref_B`)" in str(error)


def test_a_tree_of_which_messages_are_missing_is_refused():
    rows = [row for row in flat(TREE["prompt"]) if row["message_id"] != "m2"]
    (error,) = parsed(rows)
    assert error.field == "parent_id" and "without a parent" in str(error)


def test_a_tree_without_ranks_holds_no_comparison(write_rows):
    bare = {**TREE, "prompt": {**TREE["prompt"], "replies": []}}
    reading = io.read(write_rows([bare, TREE]))
    assert (len(reading.rows), reading.num_rows, reading.without) == (2, 2, 1)
    assert reading.describe("x").endswith("1 rows hold no comparison")


def test_multi_turn_battles_keep_both_conversations():
    """From the second turn on each model saw its own history: the pair has two prompts, and training drops it by that name."""
    turns = {side: [user("hi"), bot(f"{side}1"), user("more"), bot(f"{side}2")] for side in "ab"}
    (found,) = parsed([{**ARENA, "conversation_a": turns["a"], "conversation_b": turns["b"], "turn": 2}])
    assert found.prompt == turns["b"][:3] and found.rejected_prompt == turns["a"][:3]


def test_a_chunk_never_splits_what_is_read_together(write_rows):
    steer = [{"prompt": f"p{i // 2}", "response": f"r{i}", "helpfulness": i % 2, **STEER} for i in range(10)]
    rows = [*steer, {"prompt": "p", "chosen": "a", "rejected": "b"}, *flat(TREE["prompt"])]
    path = write_rows(rows)
    whole = [row for chunk in io.chunks(path) for row in io.parse(chunk)]
    for size in (1, 3, 4, 7):
        chunks = list(io.chunks(path, size=size))
        assert [chunk.start for chunk in chunks] == [
            1 + sum(len(chunk.rows) for chunk in chunks[:i]) for i in range(len(chunks))
        ]
        assert [row for chunk in chunks for row in io.parse(pickle.loads(pickle.dumps(chunk)))] == whole
    assert [number for number, _ in whole] == [1, 3, 5, 7, 9, 11, 12, 12]


def test_faults_travel_between_processes(tmp_path):
    (tmp_path / "a.csv").write_text("prompt,chosen,rejected\np,a\nq,c,d\n")
    (chunk,) = io.chunks(str(tmp_path / "a.csv"))
    found = pickle.loads(pickle.dumps(list(io.parse(pickle.loads(pickle.dumps(chunk))))))
    assert isinstance(found[0][1], RowError) and found[0][1].where == "a.csv:2" and "3 cells" in str(found[0][1])
    assert found[1] == (2, pair("q", "c", "d", id="2"))


def test_a_reading_says_what_rows_were_taken_for(write_rows):
    reading = io.read(write_rows([RMB, RMB, {"prompt": "p", "chosen": "a", "rejected": "b"}]))
    assert dict(reading.formats) == {"rmb-pairs": 2, "native": 1}
    assert reading.format_reason == "`conversation_input`, `chosen` and `reject`"
    assert (
        reading.describe("s")
        == "s: format rmb-pairs (`conversation_input`, `chosen` and `reject`); other rows: native 1"
    )


@pytest.mark.parametrize(
    ("name", "format", "count"),
    [
        ("rmb_eval.jsonl.gz", "native", 2195),
        ("rmb_bon_eval.jsonl.gz", "best-of-n", 600),
        ("hh_harmless_test.jsonl.gz", "hh", 2312),
    ],
)
def test_real_files(name, format, count):
    reading = io.read(real_data(name))
    assert len(reading.rows) == count and dict(reading.formats) == {format: count}


def test_readers_do_not_change_the_row_they_read():
    row = {"id": "r", "prompt": "p", "chosen": ["a"], "rejected": ["b"], "num_correct": 1, "models": ["m", "n"]}
    before = pickle.dumps(row)
    formats.detect(row).read(row, RowReader("x:1"))
    assert pickle.dumps(row) == before


def test_the_page_lists_every_format_with_its_reason():
    page = (Path(__file__).resolve().parents[2] / "docs/formats.md").read_text(encoding="utf-8")
    for format in (*formats.FORMATS, formats.NATIVE):
        assert f"| `{format.name}` | {format.reason} |" in page, format.name
    for writer in writers.WRITERS:
        assert f"| `{writer.name}` | {writer.holds} |" in page, writer.name
