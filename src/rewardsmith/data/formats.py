"""Every public format of preference data as one table: what a row is taken for, the sentence that says why, and the native rows it becomes.

One short function a format. Nothing is inferred from what two texts have in common, and a label is never turned round because ratings disagree with it: the pair
keeps its label, carries both ratings as metadata, and has no margin. What each format becomes stands in docs/formats.md.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from rewardsmith.config import near_miss
from rewardsmith.data.schema import Message, RowReader
from rewardsmith.errors import SettingsError

Raw: TypeAlias = Mapping[str, Any]
"""A row as its file holds it. A column that is None counts as absent: Parquet has no other way to leave one out."""
Native: TypeAlias = dict[str, Any]


@dataclass(frozen=True)
class Format:
    """One format of preference data.

    Args:
        name: what `--from` calls it.
        reason: why a row is taken for it; printed.
        matches: whether a row is of this format.
        read: the native rows in a row; a message tree holds many, and some rows hold none. A format that joins rows gets {"rows": [...]}.
        join: the key that rows standing beside each other share when they are read together; None for a row that stands alone.
    """

    name: str
    reason: str
    matches: Callable[[Raw], bool]
    read: Callable[[Raw, RowReader], list[Native]]
    join: Callable[[Raw], str | None] | None = None


def detect(row: Raw) -> Format:
    """The format of a row. Native pairs of texts, of which millions are read, are known by three look-ups."""
    if type(row.get("chosen")) is str and row.get("prompt") is not None and row.get("system") is None:
        return NATIVE
    for format in FORMATS:
        if format.matches(row):
            return format
    return NATIVE


def named(name: str) -> Format:
    """The format of that name; `trl`, `openrlhf` and `rewardbench` write rows that are native already.

    Raises:
        SettingsError: if there is none, with the nearest name.
    """
    for format in (*FORMATS, NATIVE):
        if format.name == name or (format is NATIVE and name in _SAME_AS_NATIVE):
            return format
    known = [format.name for format in (*FORMATS, NATIVE)] + [*_SAME_AS_NATIVE]
    raise SettingsError("a format that can be read", f"{name!r}", near_miss(name, known))


def check(row: Raw, format: Format, reader: RowReader) -> None:
    """Refuse a row that is not of a format which was asked for by name.

    Raises:
        RowError: with what the format is known by.
    """
    if not format.matches(row):
        came = f"the keys {sorted(row)}"
        reader.fail("(line)", f"a row of the format {format.name} ({format.reason})", came, "Leave --from out.")


def joined(first: Raw, second: Raw) -> bool:
    """Whether two rows standing beside each other may have to be read together."""
    for format in FORMATS:
        if format.join and (key := format.join(first)) is not None and key == format.join(second):
            return True
    return False


# What the readers share.


def _has(row: Raw, *keys: str) -> bool:
    return all(row.get(key) is not None for key in keys)


def _is_list_of(value: Any, kind: type) -> bool:
    return isinstance(value, list) and bool(value) and isinstance(value[0], kind)


def _get(row: Raw, key: str, reader: RowReader, name: str = "") -> Any:
    value = row.get(key) if isinstance(row, Mapping) else None
    if value is None:
        reader.fail(name or key, f"`{name or key}`", "nothing", "Mend the row, or name the right format with --from.")
    return value


def _table(row: Raw, key: str, reader: RowReader) -> Raw:
    value = _get(row, key, reader)
    if not isinstance(value, Mapping):
        reader.fail(key, "an object", type(value).__name__, "Mend the row, or name the right format with --from.")
    return value


def _list(row: Raw, key: str, reader: RowReader) -> list[Any]:
    value = _get(row, key, reader)
    if not isinstance(value, list):
        reader.fail(key, "a list", type(value).__name__, "Mend the row, or name the right format with --from.")
    return value


def _optional_list(row: Raw, key: str, reader: RowReader) -> list[Any]:
    return [] if row.get(key) is None else _list(row, key, reader)


def _rest(row: Raw, *used: str) -> Native:
    """The columns that stay as metadata."""
    return {key: value for key, value in row.items() if value is not None and key not in used}


def _number(value: Any, name: str, reader: RowReader) -> float:
    """A number, also one that is written as text ("4", as UltraFeedback and CSV files have it)."""
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            reader.fail(name, "a number", repr(value), "Mend the row.")
    return reader.finite(value, name)


def _content(value: Any, name: str, reader: RowReader) -> Any:
    """The text of a message; parts of text are joined by line breaks, any other part cannot be scored."""
    if not isinstance(value, list):
        return value
    parts = []
    for part in value:
        if not isinstance(part, Mapping) or not isinstance(part.get("text"), str):
            reader.fail(name, "text parts", "a part of another kind", "Remove the row; only texts can be scored.")
        parts.append(part["text"])
    return "\n".join(parts)


_ROLES = {"human": "user", "gpt": "assistant", "observation": "tool", "function_call": "assistant", "prompter": "user"}


def _role(name: Any) -> Any:
    return _ROLES.get(name, name) if isinstance(name, str) else name


def _turns(value: Any, name: str, reader: RowReader, *, keys: tuple[str, str] = ("role", "content")) -> list[Message]:
    """Messages by their role and content alone, under the names that we use; further keys of a message are let go."""
    if not isinstance(value, list) or not all(isinstance(turn, Mapping) for turn in value):
        reader.fail(name, "a list of messages", type(value).__name__, "Mend the row.")
    role, content = keys
    return [
        {
            "role": _role(turn.get(role)),
            "content": _content(turn.get(content), f"{name}[{i}]", reader),
        }
        for i, turn in enumerate(value)
    ]


def _answer(value: Any, name: str, reader: RowReader) -> Any:
    """The text of an answer that is a text, a message of either naming, or a list of one message."""
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if isinstance(value, Mapping):
        value = value.get("content") if value.get("content") is not None else value.get("value")
    return _content(value, name, reader)


def _with_system(system: Any, prompt: Any) -> Any:
    """A prompt with the system message of its own column; one that stands in the conversation already wins."""
    if not system or not isinstance(prompt, str | list):
        return prompt
    turns = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    if turns and isinstance(turns[0], Mapping) and turns[0].get("role") == "system":
        return prompt
    return [{"role": "system", "content": system}, *turns]


def _per_side(values: Mapping[str, Sequence[Any]], best: int) -> Native:
    """Columns that each answer has of its own, as `chosen_<name>` and `rejected_<name>`."""
    sides = (("chosen", best), ("rejected", 1 - best))
    return {f"{side}_{name}": pair[i] for name, pair in values.items() for side, i in sides if pair[i] is not None}


def _pair(
    answers: Sequence[Any],
    winner: int | None,
    columns: Native,
    *,
    shown: bool = True,
    sides: Mapping[str, Sequence[Any]] | None = None,
) -> Native:
    """Two answers in the order in which they were shown, and which of them won (None: a tie, the first stands as chosen)."""
    best = winner or 0
    row: Native = {name: value for name, value in columns.items() if value is not None}
    row |= {"chosen": answers[best], "rejected": answers[1 - best]} | _per_side(sides or {}, best)
    if winner is None:
        row["tie"] = True
    if shown:
        row["shown_first"] = "rejected" if best else "chosen"
    return row


def _rated(row: Native, chosen: float | None, rejected: float | None) -> Native:
    """A pair with the ratings of its sides, and their difference as margin unless it contradicts the label."""
    if chosen is None or rejected is None:
        return row
    row |= {"rating_chosen": chosen, "rating_rejected": rejected}
    if chosen >= rejected and "margin" not in row:
        row["margin"] = chosen - rejected
    return row


def _votes(scores: Iterable[float], best: int) -> list[int] | None:
    """[for chosen, for rejected] of signed scores, below 0 for the first answer; 0 is a vote for neither."""
    first = second = 0
    for score in scores:
        first, second = first + (score < 0), second + (score > 0)
    if not first + second:
        return None
    return [second, first] if best else [first, second]


def _winner(score: float) -> int | None:
    """Which answer a signed score prefers: below 0 the first, above 0 the second."""
    return None if score == 0 else int(score > 0)


def _ranked(
    answers: Sequence[Any],
    ranks: Sequence[float],
    columns: Native,
    *,
    sides: Mapping[str, Sequence[Any]] | None = None,
) -> Native:
    """Answers of which the lowest rank is best: two of them a pair, more a ranked group, and with equal ranks a rated one."""
    order = sorted(range(len(answers)), key=lambda i: ranks[i])
    row: Native = {name: value for name, value in columns.items() if value is not None}
    texts = [answers[i] for i in order]
    per_answer = {name: [values[i] for i in order] for name, values in (sides or {}).items()}
    if len(answers) == 2:
        tie = {"tie": True} if ranks[0] == ranks[1] else {}
        return row | {"chosen": texts[0], "rejected": texts[1]} | _per_side(per_answer, 0) | tie
    row |= {"per_answer": per_answer} if per_answer else {}
    if len(set(ranks)) == len(ranks):
        return row | {"ranked": texts}
    levels = sorted(set(ranks), reverse=True)
    return row | {"answers": texts, "ratings": [levels.index(ranks[i]) for i in order]}


# Transcripts and formats of trainers.

_TURN = re.compile(r"\n\n(Human|Assistant):")
_HH_ROLES = {"Human": "user", "Assistant": "assistant"}


def _hh_split(text: str) -> list[Message]:
    parts = _TURN.split(text)  # "", role, text, role, text, ...
    return [
        {"role": _HH_ROLES[role], "content": content.strip()}
        for role, content in zip(parts[1::2], parts[2::2], strict=True)
    ]


def hh_turns(text: str, name: str, reader: RowReader) -> list[Message]:
    r"""An HH-RLHF transcript as messages, the last one the answer.

    The text is split at every turn marker, so the prompt ends at the *last* assistant turn.

    >>> hh_turns("\n\nHuman: hi\n\nAssistant: ho", "chosen", RowReader("x:1"))
    [{'role': 'user', 'content': 'hi'}, {'role': 'assistant', 'content': 'ho'}]
    """
    messages = _hh_split(text)
    if len(messages) < 2 or messages[-1]["role"] != "assistant":
        reader.fail(
            name,
            "a transcript of at least one Human turn that ends with an Assistant turn",
            f"{len(messages)} turns ending with {messages[-1]['role'] if messages else 'nothing'}",
            "Mend or remove the row.",
        )
    return messages


def _is_hh(row: Raw) -> bool:
    sides = (row.get("chosen"), row.get("rejected"))
    return row.get("prompt") is None and all(isinstance(s, str) and s.startswith("\n\nHuman:") for s in sides)


def _read_hh(row: Raw, reader: RowReader) -> list[Native]:
    sides = {side: hh_turns(reader.text(row.get(side), side), side, reader) for side in ("chosen", "rejected")}
    return [{**row, **sides}]


# Names under which files that are not ours keep the prompt; a row that has one does not stand without a prompt.
_PROMPT_LIKE = re.compile(
    r"(.+_)?(prompts?|question|query|instructions?|context|history|input|user|post|conversations?|messages)(_text)?",
    re.IGNORECASE,
)


def _read_implicit(row: Raw, reader: RowReader) -> list[Native]:
    """Both sides without a prompt: whole conversations, or texts that begin with no prompt in common."""
    chosen, rejected = row.get("chosen"), row.get("rejected")
    if not isinstance(chosen, str) or not isinstance(rejected, str):
        return [dict(row)]
    if "prompt" in row:
        reader.fail("prompt", "a column `prompt`", "null", "Give the prompt, or leave the column out of every row.")
    for name, text in (("chosen", chosen), ("rejected", rejected)):
        if not text:
            reader.fail(name, "a text", "an empty one", "Mend or remove the row.")
    for key, value in row.items():
        if _PROMPT_LIKE.fullmatch(key) and isinstance(value, str | list) and value:
            reader.fail("prompt", "a column `prompt`", f"only `{key}`", f"If `{key}` is the prompt, rename it.")
    if chosen.startswith(rejected) or rejected.startswith(chosen):
        reader.fail(
            "prompt",
            "two texts of which neither begins with the other, or a column `prompt`",
            "one side is a prefix; give an explicit prompt",
            "Give the explicit prompt: it is never guessed from what two texts have in common.",
        )
    return [{**row, "prompt": ""}]


def _read_llama_factory(row: Raw, reader: RowReader) -> list[Native]:
    turns = _turns(row.get("conversations"), "conversations", reader, keys=("from", "value"))
    if row.get("images") or row.get("videos") or row.get("audios"):
        reader.fail("images", "a row of texts", "images, videos or sounds", "Remove the row; only texts can be scored.")
    sides = {side: _answer(_get(row, side, reader), side, reader) for side in ("chosen", "rejected")}
    rest = _rest(row, "conversations", "system", "images", "videos", "audios")
    return [rest | {"prompt": _with_system(row.get("system"), turns)} | sides]


def _instruction(row: Raw, reader: RowReader, *, extra: str = "input") -> str:
    """An instruction with its input on a further line, as LLaMA-Factory and Alpaca join them."""
    text, more = reader.text(_get(row, "instruction", reader), "instruction"), row.get(extra)
    return f"{text}\n{reader.text(more, extra)}" if more else text


def _read_llama_factory_alpaca(row: Raw, reader: RowReader) -> list[Native]:
    last = _instruction(row, reader)
    turns: list[Message] = []
    for i, turn in enumerate(_optional_list(row, "history", reader)):
        if not isinstance(turn, list | tuple) or len(turn) != 2:
            reader.fail(f"history[{i}]", "[instruction, answer]", repr(turn)[:60], "Mend the row.")
        turns += [{"role": "user", "content": turn[0]}, {"role": "assistant", "content": turn[1]}]
    prompt: Any = [*turns, {"role": "user", "content": last}] if turns else last
    rest = _rest(row, "instruction", "input", "history", "system")
    return [rest | {"prompt": _with_system(row.get("system"), prompt)}]


def _read_ms_swift(row: Raw, reader: RowReader) -> list[Native]:
    turns = _turns(row.get("messages"), "messages", reader)
    rejected = row.get("rejected_messages")
    if rejected is not None:
        rejected = _turns(rejected, "rejected_messages", reader)
    else:
        text = _answer(_get(row, "rejected_response", reader), "rejected_response", reader)
        rejected = [*turns[:-1], {"role": "assistant", "content": text}]
    rest = _rest(row, "messages", "rejected_messages", "rejected_response", "system")
    sides = {"chosen": _with_system(row.get("system"), turns), "rejected": _with_system(row.get("system"), rejected)}
    return [rest | sides]


def _read_axolotl(row: Raw, reader: RowReader) -> list[Native]:
    key = next(name for name in ("prompt", "input", "question") if row.get(name) is not None)
    prompt = row[key]
    rest = _rest(row, "system", key)
    for side in ("chosen", "rejected"):  # `ultra`: whole conversations beside the prompt, which must be how they begin
        if _is_list_of(row.get(side), Mapping) and len(row[side]) > 1:
            rest[side] = _with_system(row.get("system"), _turns(row[side], side, reader))
    return [rest | {"prompt": _with_system(row.get("system"), prompt)}]


def _read_axolotl_argilla(row: Raw, reader: RowReader) -> list[Native]:
    used = ("system", "instruction", "chosen_response", "rejected_response", "chosen_avg_rating", "rejected_avg_rating")
    sides = {side: _get(row, f"{side}_response", reader) for side in ("chosen", "rejected")}
    native = _rest(row, *used) | {"prompt": _with_system(row.get("system"), _get(row, "instruction", reader))} | sides
    if _has(row, "chosen_avg_rating", "rejected_avg_rating"):
        ratings = (_number(row[f"{side}_avg_rating"], f"{side}_avg_rating", reader) for side in ("chosen", "rejected"))
        return [_rated(native, *ratings)]
    return [native]


def _read_axolotl_chat(row: Raw, reader: RowReader) -> list[Native]:
    sides = {side: _answer(_get(row, side, reader), side, reader) for side in ("chosen", "rejected")}
    prompt = _with_system(row.get("system"), _turns(row.get("messages"), "messages", reader))
    return [_rest(row, "messages", "system") | {"prompt": prompt} | sides]


def _read_nemo(row: Raw, reader: RowReader) -> list[Native]:
    completions = _list(row, "completions", reader)
    if len(completions) < 2:
        reader.fail("completions", "at least two completions", str(len(completions)), "Mend or remove the row.")
    answers, ranks = [], []
    for i, one in enumerate(completions):
        name = f"completions[{i}]"
        turns = _turns(_get(one, "completion", reader, f"{name}.completion"), f"{name}.completion", reader)
        if len(turns) != 1 or turns[0]["role"] != "assistant":
            reader.fail(f"{name}.completion", "one message of the assistant", f"{len(turns)} messages", "Mend the row.")
        answers.append(turns[0]["content"])
        ranks.append(_number(_get(one, "rank", reader, f"{name}.rank"), f"{name}.rank", reader))
    prompt = _turns(row.get("context"), "context", reader)
    return [_ranked(answers, ranks, _rest(row, "context", "completions") | {"prompt": prompt})]


# Rated and ranked sets.

_ASPECTS = ("instruction_following", "honesty", "truthfulness", "helpfulness")


def _aspect_ratings(completion: Raw, name: str, reader: RowReader) -> dict[str, float]:
    """The fine-grained ratings of a completion; "N/A" is none. `overall_score` is not used: its 10 may be a 1 that lost its point."""
    annotations = completion.get("annotations")
    if not isinstance(annotations, Mapping):
        return {}
    found = {}
    for aspect in _ASPECTS:
        entry = annotations.get(aspect)
        rating = entry.get("Rating") if isinstance(entry, Mapping) else None
        if rating is not None and rating != "N/A":
            found[aspect] = _number(rating, f"{name}.annotations.{aspect}.Rating", reader)
    return found


def _read_ultrafeedback(row: Raw, reader: RowReader) -> list[Native]:
    answers, ratings, unrated = [], [], 0
    columns: dict[str, list[Any]] = {name: [] for name in ("model", "overall_score", *_ASPECTS)}
    for i, completion in enumerate(_list(row, "completions", reader)):
        name = f"completions[{i}]"
        answer = _get(completion, "response", reader, f"{name}.response")
        aspects = _aspect_ratings(completion, name, reader)
        if not aspects:
            unrated += 1
            continue
        answers.append(answer)
        ratings.append(sum(aspects.values()) / len(aspects))
        own = {"model": completion.get("model"), "overall_score": completion.get("overall_score"), **aspects}
        for column, values in columns.items():
            values.append(own.get(column))
    if len(answers) < 2:
        reader.fail("completions", "at least two rated completions", str(len(answers)), "Remove the row.")
    native = _rest(row, "instruction", "completions", "models") | {"prompt": row["instruction"], "answers": answers}
    native |= {"ratings": ratings, "per_answer": columns} | ({"unrated_answers": unrated} if unrated else {})
    return [native]


_BINARIZED = (("score_chosen", "score_rejected"), ("chosen-rating", "rejected-rating"))


def _is_binarized(row: Raw) -> bool:
    return _is_list_of(row.get("chosen"), Mapping) and any(_has(row, *pair) for pair in _BINARIZED)


def _read_binarized(row: Raw, reader: RowReader) -> list[Native]:
    columns = next(pair for pair in _BINARIZED if _has(row, *pair))
    native = _rest(row, *columns, "chosen-model", "rejected-model")
    if native.get("messages") == row["chosen"]:
        del native["messages"]  # HuggingFaceH4's copy of the chosen side, for supervised tuning
    turns = [turn.get("content") for turn in row["chosen"] if isinstance(turn, Mapping)]
    if len(turns) > 2 and row.get("prompt") in turns:
        del native["prompt"]  # one turn of a longer conversation; the sides hold it whole
    for side in ("chosen", "rejected"):
        if row.get(f"{side}-model") is not None:
            native[f"{side}_model"] = row[f"{side}-model"]
    return [_rated(native, *(_number(row[column], column, reader) for column in columns))]


_HELPSTEER = ("helpfulness", "correctness", "coherence", "complexity", "verbosity")
_HELPSTEER_TURN = re.compile(r"\n?<extra_id_1>(User|Assistant)\n")


def _helpsteer_prompt(text: Any, reader: RowReader) -> Any:
    """A prompt of HelpSteer2, in which the turns after the first are marked by `<extra_id_1>`."""
    first, *parts = _HELPSTEER_TURN.split(reader.text(text, "prompt"))
    if not parts:
        return first
    roles = {"User": "user", "Assistant": "assistant"}
    turns = [{"role": roles[role], "content": content} for role, content in zip(parts[::2], parts[1::2], strict=True)]
    return [{"role": "user", "content": first}, *turns]


def _read_helpsteer2(row: Raw, reader: RowReader) -> list[Native]:
    rows = row["rows"]
    answers = [_get(one, "response", reader) for one in rows]
    prompt = _helpsteer_prompt(_get(rows[0], "prompt", reader), reader)
    shared = {key: value for key, value in _rest(rows[0], "prompt", "response", *_HELPSTEER).items()}
    if len(rows) == 1:
        own = {name: rows[0].get(name) for name in _HELPSTEER if rows[0].get(name) is not None}
        return [shared | {"prompt": prompt, "answer": answers[0]} | own]
    ratings = [_number(_get(one, "helpfulness", reader), "helpfulness", reader) for one in rows]
    columns = {name: [one.get(name) for one in rows] for name in _HELPSTEER[1:]}
    return [shared | {"prompt": prompt, "answers": answers, "ratings": ratings, "per_answer": columns}]


def _read_helpsteer2_preference(row: Raw, reader: RowReader) -> list[Native]:
    strength = _number(row["preference_strength"], "preference_strength", reader)
    winner = _winner(strength)
    singles = _optional_list(row, "all_preferences_unprocessed", reader)
    scores = [one["strength"] for one in singles if isinstance(one, Mapping) and isinstance(one.get("strength"), int)]
    used = ("prompt", "response_1", "response_2", "preference_strength", "all_preferences_unprocessed")
    columns = _rest(row, *used, "three_most_similar_preferences") | {
        "prompt": _helpsteer_prompt(row["prompt"], reader),
        "margin": abs(strength),
        "votes": _votes(scores, winner or 0),
    }
    return [_pair((row["response_1"], row["response_2"]), winner, columns)]


def _read_helpsteer3(row: Raw, reader: RowReader) -> list[Native]:
    strength = _number(row["overall_preference"], "overall_preference", reader)
    winner = _winner(strength)
    singles = _optional_list(row, "individual_preference", reader)
    scores = [one["score"] for one in singles if isinstance(one, Mapping) and isinstance(one.get("score"), int)]
    context = row["context"]
    used = ("context", "response1", "response2", "overall_preference", "individual_preference")
    columns = _rest(row, *used) | {
        "prompt": context if isinstance(context, str) else _turns(context, "context", reader),
        "margin": abs(strength),
        "votes": _votes(scores, winner or 0),
    }
    return [_pair((row["response1"], row["response2"]), winner, columns)]


def _read_nectar(row: Raw, reader: RowReader) -> list[Native]:
    text = reader.text(row.get("prompt"), "prompt")
    turns = [turn for turn in _hh_split(text) if turn["content"]]
    prompt: Any = turns or text
    if len(turns) == 1:
        prompt = turns[0]["content"]
    entries = _list(row, "answers", reader)
    answers = [_get(one, "answer", reader, f"answers[{i}].answer") for i, one in enumerate(entries)]
    ranks = [_number(_get(one, "rank", reader, f"answers[{i}].rank"), "rank", reader) for i, one in enumerate(entries)]
    models = {"model": [one.get("model") for one in entries]}
    return [_ranked(answers, ranks, _rest(row, "answers") | {"prompt": prompt}, sides=models)]


# Comparisons that people made.


def _read_shp(row: Raw, reader: RowReader) -> list[Native]:
    label = _number(_get(row, "labels", reader), "labels", reader)
    if label not in (0, 1):
        reader.fail("labels", "1 (A is better) or 0", f"{label:g}", "Mend the row.")
    winner = int(label == 0)
    used = ("post_id", "history", "human_ref_A", "human_ref_B", "labels", "score_A", "score_B")
    columns = _rest(row, *used) | {"prompt": row["history"], "group": row.get("post_id")}
    pair = _pair((row["human_ref_A"], row["human_ref_B"]), winner, columns)
    if _has(row, "score_A", "score_B"):  # votes on two posts: their difference is no strength of preference
        scores = [_number(row[name], name, reader) for name in ("score_A", "score_B")]
        pair |= {"rating_chosen": scores[winner], "rating_rejected": scores[1 - winner]}
    return [pair]


def _summary_prompt(info: Raw, reader: RowReader) -> str:
    """The query that the authors' models were given: a Reddit post, or a news article."""
    if info.get("post") is not None:
        return f"SUBREDDIT: r/{info.get('subreddit')}\n\nTITLE: {info.get('title')}\n\nPOST: {info['post']}\n\nTL;DR:"
    return f"Article: {_get(info, 'article', reader, 'info.article')}\n\nTL;DR:"


def _read_summarize(row: Raw, reader: RowReader) -> list[Native]:
    summaries = _list(row, "summaries", reader)
    choice = row.get("choice")
    if len(summaries) != 2 or choice not in (0, 1):
        came = f"{len(summaries)} summaries, choice {choice!r}"
        reader.fail("choice", "two summaries and a choice of 0 or 1", came, "Mend the row.")
    info = _table(row, "info", reader)
    answers = [_get(one, "text", reader, f"summaries[{i}].text") for i, one in enumerate(summaries)]
    extra: Any = row.get("extra")
    columns = _rest(row, "info", "summaries", "choice", "extra") | {
        "prompt": _summary_prompt(info, reader),
        "group": info.get("id"),
        "confidence": extra.get("confidence") if isinstance(extra, Mapping) else None,
        "subreddit": info.get("subreddit"),
    }
    return [_pair(answers, choice, columns, sides={"model": [one.get("policy") for one in summaries]})]


def _read_webgpt(row: Raw, reader: RowReader) -> list[Native]:
    scores = [_number(row[name], name, reader) for name in ("score_0", "score_1")]
    winner = _winner(scores[1] - scores[0])
    question = row["question"]
    about = question if isinstance(question, Mapping) else {"full_text": question}
    used = ("question", "answer_0", "answer_1", "score_0", "score_1", "tokens_0", "tokens_1", "quotes_0", "quotes_1")
    columns = _rest(row, *used) | {
        "prompt": _get(about, "full_text", reader, "question.full_text"),
        "group": about.get("id"),
        "source": about.get("dataset"),
    }
    quotes = {"quotes": (row.get("quotes_0"), row.get("quotes_1"))}
    pair = _pair((row["answer_0"], row["answer_1"]), winner, columns, sides=quotes)
    best = winner or 0
    return [_rated(pair, scores[best], scores[1 - best])]


_WINNERS: dict[Any, int | None] = {
    "model_a": 0,
    "model_b": 1,
    "tie": None,
    "tie (bothbad)": None,
    "both_bad": None,
    "bothbad": None,
}


def _arena_winner(row: Raw, reader: RowReader) -> str:
    winner = row.get("winner")
    if not isinstance(winner, str) or winner not in _WINNERS:
        reader.fail("winner", "model_a, model_b, tie, tie (bothbad) or both_bad", repr(winner), "Mend the row.")
    return winner


def _judged_turns(turns: list[Message], turn: Any) -> list[Message]:
    """A conversation up to the answer that was judged; `turn` counts the user's turns."""
    users = [i for i, message in enumerate(turns) if message["role"] == "user"]
    if not isinstance(turn, int) or isinstance(turn, bool) or not 0 < turn < len(users):
        return turns
    return turns[: users[turn]]


def _read_arena(row: Raw, reader: RowReader) -> list[Native]:
    winner = _arena_winner(row, reader)
    sides = [
        _judged_turns(_turns(row.get(name), name, reader), row.get("turn"))
        for name in ("conversation_a", "conversation_b")
    ]
    used = ("conversation_a", "conversation_b", "full_conversation", "winner", "model_a", "model_b", "question_id")
    columns = _rest(row, *used, "prompt") | {
        "group": row.get("question_id"),
        "both_bad": True if "bad" in winner else None,
    }
    models = {"model": (row.get("model_a"), row.get("model_b"))}
    return [_pair(sides, _WINNERS[winner], columns, sides=models)]


def _json_texts(value: Any, name: str, reader: RowReader) -> list[Any]:
    """A list of texts, as a list or as the JSON text that a CSV cell holds."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError:
            reader.fail(name, "a JSON list of texts", repr(value)[:60], "Mend the row.")
    if not isinstance(value, list) or not value:
        reader.fail(name, "a list of texts", repr(value)[:60], "Mend the row.")
    return value


def _interleaved(questions: list[Any], answers: list[Any]) -> list[Message]:
    turns = []
    for question, answer in zip(questions, answers, strict=True):
        turns += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return turns


def _read_arena_table(row: Raw, reader: RowReader) -> list[Native]:
    """The arena as a table: prompt and answers as JSON lists of turns, the winner as one of three columns."""
    names = ("winner_model_a", "winner_model_b", "winner_tie")
    marks = [_number(row.get(name, 0), name, reader) for name in names]
    if sorted(marks) != [0, 0, 1]:
        reader.fail("winner_model_a", "a 1 in one of the three columns of the winner", str(marks), "Mend the row.")
    asked, first, second = (_json_texts(row.get(name), name, reader) for name in ("prompt", "response_a", "response_b"))
    if not len(asked) == len(first) == len(second):
        reader.fail("response_a", f"{len(asked)} turns a side", f"{len(first)} and {len(second)}", "Mend the row.")
    winner = None if marks[2] else int(marks[1])
    one_turn = len(asked) == 1
    answers = (first[0], second[0]) if one_turn else (_interleaved(asked, first), _interleaved(asked, second))
    columns = _rest(row, *names, "response_a", "response_b", "model_a", "model_b")
    columns |= {"prompt": asked[0] if one_turn else None}
    return [_pair(answers, winner, columns, sides={"model": (row.get("model_a"), row.get("model_b"))})]


# Message trees.


def _comparisons(root: Raw, about: Native, reader: RowReader) -> list[Native]:
    """Every user's turn of a tree whose answers were ranked (0 is best), with the conversation that led to it."""
    found: list[Native] = []
    waiting: list[tuple[Raw, list[Message]]] = [(root, [])]
    while waiting:
        node, before = waiting.pop()
        text = _get(node, "text", reader, "text")
        path = [*before, {"role": _role(node.get("role")), "content": text}]
        replies = _optional_list(node, "replies", reader)
        replies = [one for one in replies if isinstance(one, Mapping) and not one.get("deleted")]
        waiting += [(reply, path) for reply in reversed(replies)]
        ranked = [one for one in replies if one.get("role") == "assistant" and one.get("rank") is not None]
        if len(ranked) >= 2:
            ranks = [_number(one["rank"], "rank", reader) for one in ranked]
            answers = [_get(one, "text", reader, "text") for one in ranked]
            models = [one.get("model_name") for one in ranked]
            columns = {**about, "id": node.get("message_id"), "lang": node.get("lang"), "prompt": path}
            found.append(_ranked(answers, ranks, columns, sides={"model": models} if any(models) else {}))
    return found


def _read_oasst(row: Raw, reader: RowReader) -> list[Native]:
    about = {"tree": row["message_tree_id"], "tree_state": row.get("tree_state")}
    return _comparisons(row["prompt"], about, reader)


def _read_oasst_messages(row: Raw, reader: RowReader) -> list[Native]:
    """The same trees, one message a row: they are put together by their parents' ids."""
    nodes = {reader.text(one["message_id"], "message_id"): {**one, "replies": []} for one in row["rows"]}
    roots = []
    for node in nodes.values():
        above = node.get("parent_id")
        parent = None if above is None else nodes.get(reader.text(above, "parent_id"))
        if parent is None:
            roots.append(node)
        else:
            parent["replies"].append(node)
    if len(roots) != 1 or roots[0].get("parent_id") is not None:
        came = f"{len(roots)} without, in {len(nodes)} messages"
        mend = "Keep the rows of a tree beside each other."
        reader.fail("parent_id", "one message of the tree without a parent", came, mend)
    about = {"tree": roots[0].get("message_tree_id"), "tree_state": roots[0].get("tree_state")}
    return _comparisons(roots[0], about, reader)


# Benchmarks.

_STYLES = ("concise", "detailed", "markdown")


def _are_lists_of_texts(row: Raw) -> bool:
    return _is_list_of(row.get("chosen"), str) and _is_list_of(row.get("rejected"), str) and _has(row, "prompt")


def _good_and_bad(good: Sequence[Any], bad: Sequence[Any], columns: Native) -> Native:
    """Answers of two kinds as a rated group: 1 and 0, so that two of one kind make no pair."""
    return {**columns, "answers": [*good, *bad], "ratings": [1] * len(good) + [0] * len(bad)}


def _read_lists(row: Raw, reader: RowReader) -> list[Native]:
    good, bad = _list(row, "chosen", reader), _list(row, "rejected", reader)
    rest = _rest(row, "chosen", "rejected")
    models = rest.get("models")
    if isinstance(models, list) and len(models) == len(good) + len(bad):
        rest["per_answer"] = {"model": rest.pop("models")}
    return [_good_and_bad(good, bad, rest)]


def _read_rm_bench(row: Raw, reader: RowReader) -> list[Native]:
    (native,) = _read_lists(row, reader)
    return [native | {"per_answer": {"style": [*_STYLES, *_STYLES]}}]


def _read_best_of_n(row: Raw, reader: RowReader) -> list[Native]:
    best, others = _get(row, "best", reader), _list(row, "others", reader)
    return [_good_and_bad(best if isinstance(best, list) else [best], others, _rest(row, "best", "others"))]


def _rmb_columns(row: Raw, identity: str, reader: RowReader) -> Native:
    path = row.get("category_path")
    parts = path.split("/") if isinstance(path, str) else []
    columns = _rest(row, identity, "conversation_input", "category_path", "chosen", "reject", "bon_best", "loser_list")
    columns |= {"id": row.get(identity), "prompt": _turns(row["conversation_input"], "conversation_input", reader)}
    if len(parts) > 2:
        columns |= {"goal": parts[1].lower(), "subset": "/".join(parts[1:]).lower()}
    return columns


def _read_rmb_pairs(row: Raw, reader: RowReader) -> list[Native]:
    sides = (_get(row, "chosen", reader), _get(row, "reject", reader))
    answers = [_get(side, "answer", reader, f"{n}.answer") for side, n in zip(sides, ("chosen", "reject"), strict=True)]
    models = {"model": [side.get("llm_name") for side in sides]}
    pair = _pair(answers, 0, _rmb_columns(row, "pair_uid", reader), shown=False, sides=models)
    scores = [None if side.get("score") is None else _number(side["score"], "score", reader) for side in sides]
    return [_rated(pair, *scores)]


def _read_rmb_best_of_n(row: Raw, reader: RowReader) -> list[Native]:
    entries = [_get(row, "bon_best", reader), *_list(row, "loser_list", reader)]
    answers = [_get(one, "answer", reader, "answer") for one in entries]
    models = {"per_answer": {"model": [one.get("llm_name") for one in entries]}}
    return [_good_and_bad(answers[:1], answers[1:], _rmb_columns(row, "bon_uid", reader) | models)]


def _choice(value: Any, known: Mapping[Any, int | None], name: str, reader: RowReader) -> int | None:
    if isinstance(value, bool) or not isinstance(value, str | int | float) or value not in known:
        reader.fail(name, f"one of {', '.join(map(str, known))}", repr(value), "Mend the row.")
    return known[value]


def _read_judgebench(row: Raw, reader: RowReader) -> list[Native]:
    winner = _choice(row["label"], {"A>B": 0, "B>A": 1, "A=B": None}, "label", reader)
    used = ("pair_id", "question", "response_A", "response_B", "label", "response_model")
    model = row.get("response_model")
    columns = _rest(row, *used) | {"id": row.get("pair_id"), "prompt": row["question"]}
    return [_pair((row["response_A"], row["response_B"]), winner, columns, sides={"model": (model, model)})]


_PPE_ANSWER = re.compile(r"response_([1-9][0-9]*)")


def _read_ppe_best_of_k(row: Raw, reader: RowReader) -> list[Native]:
    """One question of PPE with its samples of one model, in their order, for `sampled_conflict_pairs` counts by it."""
    marks = _list(row, "scores", reader)
    answers = [_get(row, f"response_{i}", reader) for i in range(1, len(marks) + 1)]
    ratings = [float(mark) if isinstance(mark, bool) else _number(mark, "scores", reader) for mark in marks]
    used = [key for key in row if _PPE_ANSWER.fullmatch(key)]
    identity = [str(row[key]) for key in ("question_id", "model_name") if row.get(key) is not None]
    about = {"id": "/".join(identity)} if identity else {}
    return [_rest(row, "scores", *used) | about | {"answers": answers, "ratings": ratings}]


def _read_ppe_preference(row: Raw, reader: RowReader) -> list[Native]:
    winner = _arena_winner(row, reader)
    columns = _rest(row, "response_1", "response_2", "winner", "model_a", "model_b", "question_id") | {
        "id": row.get("question_id"),
        "both_bad": True if "bad" in winner else None,
    }
    models = {"model": (row.get("model_a"), row.get("model_b"))}
    return [_pair((row["response_1"], row["response_2"]), _WINNERS[winner], columns, sides=models)]


_ONE_OR_TWO: dict[Any, int | None] = {1: 0, 2: 1, "1": 0, "2": 1}


def _read_llmbar(row: Raw, reader: RowReader) -> list[Native]:
    winner = _choice(row["label"], _ONE_OR_TWO, "label", reader)
    columns = _rest(row, "input", "output_1", "output_2", "label") | {"prompt": row["input"]}
    return [_pair((row["output_1"], row["output_2"]), winner, columns, shown=False)]


def _read_alpaca_farm(row: Raw, reader: RowReader) -> list[Native]:
    winner = _choice(row["preference"], _ONE_OR_TWO, "preference", reader)
    columns = _rest(row, "instruction", "input", "output_1", "output_2", "preference")
    return [_pair((row["output_1"], row["output_2"]), winner, columns | {"prompt": _instruction(row, reader)})]


def _read_pku(row: Raw, reader: RowReader) -> list[Native]:
    winner = _choice(row["better_response_id"], {0: 0, 1: 1, "0": 0, "1": 1}, "better_response_id", reader)
    safe = [row.get(f"is_response_{i}_safe") for i in (0, 1)]
    used = ("response_0", "response_1", "better_response_id", "is_response_0_safe", "is_response_1_safe")
    return [_pair((row["response_0"], row["response_1"]), winner, _rest(row, *used), shown=False, sides={"safe": safe})]


# The table. The more columns a format is known by, the earlier it stands.

NATIVE = Format(
    "native",
    "`prompt` with `chosen` and `rejected`, `ranked`, `answers`, `candidates` or `answer`",
    lambda row: True,
    lambda row, reader: [dict(row)],
)
_SAME_AS_NATIVE = ("trl", "openrlhf", "rewardbench")

FORMATS: tuple[Format, ...] = (
    Format(
        "nemo",
        "`context` and `completions` with ranks",
        lambda row: _has(row, "context", "completions"),
        _read_nemo,
    ),
    Format(
        "ultrafeedback",
        "`instruction` and annotated `completions`",
        lambda row: _has(row, "instruction", "completions"),
        _read_ultrafeedback,
    ),
    Format(
        "ultrafeedback-binarized",
        "conversations with `score_chosen` or `chosen-rating`",
        _is_binarized,
        _read_binarized,
    ),
    Format(
        "helpsteer3",
        "`context`, `response1`, `response2` and `overall_preference`",
        lambda row: _has(row, "context", "response1", "response2", "overall_preference"),
        _read_helpsteer3,
    ),
    Format(
        "helpsteer2-preference",
        "`response_1`, `response_2` and `preference_strength`",
        lambda row: _has(row, "prompt", "response_1", "response_2", "preference_strength"),
        _read_helpsteer2_preference,
    ),
    Format(
        "helpsteer2",
        "`prompt`, `response` and `helpfulness`; rows of one prompt standing together are one group",
        lambda row: _has(row, "prompt", "response", "helpfulness"),
        _read_helpsteer2,
        join=lambda row: row["prompt"] if _has(row, "prompt", "response") and type(row["prompt"]) is str else None,
    ),
    Format(
        "shp",
        "`history`, `human_ref_A` and `human_ref_B`",
        lambda row: _has(row, "history", "human_ref_A", "human_ref_B"),
        _read_shp,
    ),
    Format(
        "summarize-from-feedback",
        "`info`, `summaries` and `choice`",
        lambda row: _has(row, "info", "summaries") and "choice" in row,
        _read_summarize,
    ),
    Format(
        "webgpt",
        "`question`, `answer_0`, `answer_1` and their scores",
        lambda row: _has(row, "question", "answer_0", "answer_1", "score_0", "score_1"),
        _read_webgpt,
    ),
    Format(
        "arena-table",
        "`response_a`, `response_b` and `winner_model_a`",
        lambda row: _has(row, "prompt", "response_a", "response_b", "winner_model_a"),
        _read_arena_table,
    ),
    Format(
        "arena",
        "`conversation_a`, `conversation_b` and `winner`",
        lambda row: _has(row, "conversation_a", "conversation_b") and "winner" in row,
        _read_arena,
    ),
    Format(
        "oasst",
        "`message_tree_id` and a tree of `prompt` and `replies`",
        lambda row: _has(row, "message_tree_id") and isinstance(row.get("prompt"), Mapping),
        _read_oasst,
    ),
    Format(
        "oasst-messages",
        "`message_tree_id`, `message_id` and `text`; messages of one tree standing together are one tree",
        lambda row: _has(row, "message_tree_id", "message_id", "text"),
        _read_oasst_messages,
        join=lambda row: row["message_tree_id"] if _has(row, "message_tree_id", "message_id") else None,
    ),
    Format(
        "nectar",
        "`answers` with ranks",
        lambda row: _is_list_of(row.get("answers"), Mapping) and "rank" in row["answers"][0],
        _read_nectar,
    ),
    Format(
        "rmb-pairs",
        "`conversation_input`, `chosen` and `reject`",
        lambda row: _has(row, "conversation_input", "chosen", "reject"),
        _read_rmb_pairs,
    ),
    Format(
        "rmb-best-of-n",
        "`conversation_input`, `bon_best` and `loser_list`",
        lambda row: _has(row, "conversation_input", "bon_best", "loser_list"),
        _read_rmb_best_of_n,
    ),
    Format(
        "judgebench",
        "`question`, `response_A`, `response_B` and `label`",
        lambda row: _has(row, "question", "response_A", "response_B", "label"),
        _read_judgebench,
    ),
    Format(
        "llmbar",
        "`input`, `output_1`, `output_2` and `label`",
        lambda row: _has(row, "input", "output_1", "output_2", "label"),
        _read_llmbar,
    ),
    Format(
        "ppe-best-of-k",
        "`response_1`, `response_2`, ... and the list `scores`",
        lambda row: _has(row, "prompt", "response_1", "response_2") and isinstance(row.get("scores"), list),
        _read_ppe_best_of_k,
    ),
    Format(
        "ppe-preference",
        "`prompt`, `response_1`, `response_2` and `winner`",
        lambda row: _has(row, "prompt", "response_1", "response_2", "winner"),
        _read_ppe_preference,
    ),
    Format(
        "alpaca-farm",
        "`instruction`, `output_1`, `output_2` and `preference`",
        lambda row: _has(row, "instruction", "output_1", "output_2", "preference"),
        _read_alpaca_farm,
    ),
    Format(
        "pku-saferlhf",
        "`response_0`, `response_1` and `better_response_id`",
        lambda row: _has(row, "prompt", "response_0", "response_1", "better_response_id"),
        _read_pku,
    ),
    Format(
        "rewardbench2",
        "lists of `chosen` and `rejected` with `num_correct`",
        lambda row: _are_lists_of_texts(row) and _has(row, "num_correct"),
        _read_lists,
    ),
    Format(
        "rm-bench",
        "three `chosen` and three `rejected` answers with `domain`",
        lambda row: _are_lists_of_texts(row) and "domain" in row and len(row["chosen"]) == len(row["rejected"]) == 3,
        _read_rm_bench,
    ),
    Format("answer-lists", "lists of `chosen` and `rejected` answers", _are_lists_of_texts, _read_lists),
    Format(
        "best-of-n",
        "`best` and `others`",
        lambda row: _has(row, "prompt", "best", "others"),
        _read_best_of_n,
    ),
    Format(
        "ms-swift",
        "`messages` with `rejected_response` or `rejected_messages`",
        lambda row: _has(row, "messages") and (_has(row, "rejected_response") or _has(row, "rejected_messages")),
        _read_ms_swift,
    ),
    Format(
        "axolotl-chat",
        "`messages`, and `chosen` and `rejected` as one message each",
        lambda row: _has(row, "messages") and isinstance(row.get("chosen"), Mapping),
        _read_axolotl_chat,
    ),
    Format(
        "llama-factory",
        "`conversations`, `chosen` and `rejected`",
        lambda row: _has(row, "conversations", "chosen", "rejected"),
        _read_llama_factory,
    ),
    Format(
        "axolotl-argilla",
        "`instruction`, `chosen_response` and `rejected_response`",
        lambda row: _has(row, "instruction", "chosen_response", "rejected_response"),
        _read_axolotl_argilla,
    ),
    Format(
        "llama-factory-alpaca",
        "`instruction`, `chosen` and `rejected`",
        lambda row: _has(row, "instruction", "chosen", "rejected") and row.get("prompt") is None,
        _read_llama_factory_alpaca,
    ),
    Format(
        "axolotl",
        "`input`, `question`, or `prompt` with `system`, beside `chosen` and `rejected`",
        lambda row: (
            _has(row, "chosen", "rejected")
            and (
                _has(row, "prompt", "system")
                or (row.get("prompt") is None and (_has(row, "input") or _has(row, "question")))
            )
        ),
        _read_axolotl,
    ),
    Format("hh", "no `prompt`, and both sides start with a Human turn", _is_hh, _read_hh),
    Format(
        "trl-implicit",
        "`chosen` and `rejected` without a column for the prompt",
        lambda row: _has(row, "chosen", "rejected") and row.get("prompt") is None,
        _read_implicit,
    ),
)
