"""What is worked on: pairs of the real data, groups of exact token counts, and the model folder that all tools start from."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rewardsmith.data import io
from rewardsmith.data.embedded import embedded_preferences
from rewardsmith.data.schema import Group, Preference, as_row
from rewardsmith.errors import DataError
from rewardsmith.model import artefact
from rewardsmith.model.network import build_network, load_tokenizer, source_folder
from rewardsmith.model.padding import give_pad_token
from rewardsmith.model.render import Renderer, RenderSpec

# Of a tokenizer made on the spot.
_VOCABULARY = 8192
_CHAT_TEMPLATE = "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"


@dataclass(frozen=True)
class Start:
    """A reward model with a head that nobody trained, saved once and loaded by all tools.

    Args:
        folder: of the model.
        renderer: how it reads.
    """

    folder: Path
    renderer: Renderer


def save_start(source: str, folder: Path, *, encoding: str, max_length: int = 512) -> Start:
    """Save one.

    Args:
        source: of the backbone, as the product takes it.
        folder: to save to.
        encoding: "text", "chat" or "pair".
        max_length: of the contract.
    """
    source = source_folder(source)
    network, tokenizer = build_network(source, pooling="auto", seed=0, dropout=False), load_tokenizer(source)
    give_pad_token(network, tokenizer)
    spec = RenderSpec(encoding, max_length=max_length)  # type: ignore[arg-type]
    renderer = Renderer(tokenizer, spec)
    # A new head says nearly the same of every text of an encoder, and shouts at a decoder: at a spread of 1, losses of different batches differ as they do in a training.
    spread = float(artefact.golden_scores(network, renderer)[1].std())
    head = network.head_module
    network.set_head(head.weight.detach() / spread, None if head.bias is None else head.bias.detach())
    artefact.save(network, renderer, folder, training_dtype="float32", manifest={})
    return Start(folder, renderer)


def pairs_that_fit(source: Path, start: Start, count: int, *, seed: int = 0) -> list[Preference]:
    """Pairs of a file, in a random order, both sides of which the model reads whole; without special strings, which tools read in different ways.

    Raises:
        DataError: if there is no such file, or not so many pairs in it.
    """
    rows = _rows(source)
    order = np.random.default_rng(seed).permutation(len(rows))
    found: list[Preference] = []
    for begin in range(0, len(order), 256):
        chunk = [rows[i] for i in order[begin : begin + 256]]
        table = start.renderer.encode([text for pair in chunk for text in (pair.chosen_pair, pair.rejected_pair)])
        usable = ~(table.truncated | (table.special_strings > 0))
        found += [pair for i, pair in enumerate(chunk) if usable[2 * i] and usable[2 * i + 1]]
        if len(found) >= count:
            return found[:count]
    raise DataError(f"{count} pairs that fit in {source.name}", str(len(found)), "Ask for fewer pairs.")


def distinct_pairs(source: Path, count: int, *, seed: int = 0) -> list[Preference]:
    """Pairs of a file, in a random order, whose prompt is one text, and no text of which comes twice; long ones too.

    Raises:
        DataError: if there is no such file, or not so many pairs in it.
    """
    rows = _rows(source)
    found: list[Preference] = []
    seen: set[tuple[str, str]] = set()
    for i in np.random.default_rng(seed).permutation(len(rows)):
        pair = rows[i]
        if not isinstance(pair.prompt, str):
            continue
        texts = {(pair.prompt, pair.chosen), (pair.prompt, pair.rejected)}
        if len(texts) == 2 and not texts & seen:
            seen |= texts
            found.append(pair)
        if len(found) == count:
            return found
    raise DataError(f"{count} pairs of distinct texts in {source.name}", str(len(found)), "Ask for fewer texts.")


def _rows(source: Path) -> list[Preference]:
    """The pairs of a file that have one prompt, two answers and a winner."""
    if not source.is_file():
        raise DataError(f"the data file {source.name}", "no such file", "Give the folder that holds it: --data FOLDER.")
    rows = [row for row in io.read(str(source)).rows if isinstance(row, Preference)]
    return [pair for pair in rows if pair.rejected_prompt is None and pair.chosen and pair.rejected and not pair.tie]


def embedded_pairs(start: Start, count: int) -> list[Preference]:
    """The first so many pairs that fit of the set that comes with rewardsmith, or all of them."""
    pairs = embedded_preferences()
    table = start.renderer.encode([text for pair in pairs for text in (pair.chosen_pair, pair.rejected_pair)])
    cut = table.truncated.reshape(-1, 2).any(axis=1)
    return [pair for pair, long in zip(pairs, cut, strict=True) if not long][:count]


def random_decoder(folder: Path, shape: Mapping[str, int], texts: Path) -> Path:
    """Save a Qwen3 of that shape with random weights, and a byte-level tokenizer with a chat template, made from the texts of a file (the embedded set where there is none)."""
    from tokenizers import ByteLevelBPETokenizer
    from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3Model, set_seed

    pairs = _rows(texts) if texts.is_file() else embedded_preferences()
    trained = ByteLevelBPETokenizer()
    trained.train_from_iterator(
        (text for pair in pairs for text in (pair.chosen, pair.rejected)),
        vocab_size=min(_VOCABULARY, shape["vocab_size"]) - 3,
        show_progress=False,
    )
    # The backend knows nothing of special tokens yet.
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=trained._tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=["<|im_start|>"],
        chat_template=_CHAT_TEMPLATE,
        model_input_names=["input_ids", "attention_mask"],
    )
    set_seed(0)
    config = Qwen3Config(
        **shape,
        max_position_embeddings=4096,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    Qwen3Model(config).save_pretrained(folder, max_shard_size="1TB")
    tokenizer.save_pretrained(folder)
    return folder


def write_ours(rows: Sequence[Preference | Group], path: Path) -> str:
    """Rows as rewardsmith reads them, without their metadata."""
    plain = [
        Preference(row.id, row.prompt, row.chosen, row.rejected) if isinstance(row, Preference) else row for row in rows
    ]
    return _write([as_row(row) for row in plain], path)


def write_ids(pairs: Sequence[Preference], start: Start, path: Path) -> str:
    """The same pairs as TRL takes them when they are tokenised already: by any other way in, it would put a second end token behind BERT's."""
    rows = [
        {"id": pair.id, "chosen_ids": chosen, "rejected_ids": rejected}
        for pair, (chosen, rejected) in zip(pairs, ids_of(start, pairs), strict=True)
    ]
    return _write(rows, path)


def _write(rows: Sequence[Mapping[str, Any]], path: Path) -> str:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def ceiling(groups: Sequence[Sequence[Sequence[int]]]) -> float:
    """Tokens of some groups of texts over the tokens when each group reads the ids that all its texts begin with only once.

    >>> ceiling([[[1, 2, 3], [1, 2, 4]]])  # 6 tokens; 1 2 once, then 3 and 4
    1.5
    """
    alone = sum(len(text) for group in groups for text in group)
    shared = [len(os.path.commonprefix([list(text) for text in group])) for group in groups]
    together = sum(
        prefix + sum(len(text) - prefix for text in group) for prefix, group in zip(shared, groups, strict=True)
    )
    return alone / together


def ids_of(start: Start, rows: Sequence[Preference | Group]) -> list[list[list[int]]]:
    """The token ids of all answers of some rows."""
    found = []
    for row in rows:
        answers = (row.chosen, row.rejected) if isinstance(row, Preference) else row.answers
        table = start.renderer.encode([(row.prompt, answer) for answer in answers])
        found.append([table.row(i).tolist() for i in range(len(answers))])
    return found


def exact_groups(start: Start, *, groups: int, answers: int, answer_tokens: int, times: int = 4) -> list[Group]:
    """Ranked groups of random words in which the shared beginning has exactly `times` as many tokens as what is each answer's own, the template's share included.

    Raises:
        DataError: if the template alone is longer, or the tokenizer has too few words of one token.
    """
    rng = np.random.default_rng(0)
    words = _single_token_words(start.renderer)

    def text(count: int) -> str:
        return " ".join(words[i] for i in rng.integers(len(words), size=count))

    found = []
    for number in range(groups):
        heads = [words[i] for i in rng.permutation(len(words))[:answers]]
        # What a template adds is the same for all texts: with one word more, a text has one token more.
        probe = ids_of(start, [Group("probe", text(9), tuple(f"{head} {text(3)}" for head in heads), "ranked")])[0]
        shared = len(os.path.commonprefix(probe))
        frame, end = shared - 9, len(probe[0]) - shared - 4
        in_prompt, in_answer = times * answer_tokens - frame, answer_tokens - end - 1
        if min(in_prompt, in_answer) < 1:
            raise DataError("answers longer than the template", f"{answer_tokens} tokens", "Ask for more tokens.")
        group = Group(
            f"group-{number}", text(in_prompt), tuple(f"{head} {text(in_answer)}" for head in heads), "ranked"
        )
        ids = ids_of(start, [group])[0]
        shared = len(os.path.commonprefix(ids))
        if {len(one) - shared for one in ids} != {answer_tokens} or shared != times * answer_tokens:
            raise DataError(
                f"a prompt of {times * answer_tokens} tokens and answers of {answer_tokens}",
                f"{shared} and {sorted({len(one) - shared for one in ids})}",
                "The tokenizer joins these words; take another one.",
            )
        found.append(group)
    return found


def _single_token_words(renderer: Renderer) -> list[str]:
    """Words that are one token after a space and one at the beginning of a message."""
    backend = renderer.tokenizer.backend_tokenizer
    candidates = sorted(
        {
            token[1:]
            for token in backend.get_vocab()
            if token[:1] == "\u0120" and token[1:].isascii() and token[1:].islower()
        }
    )
    words = [
        word
        for word in candidates
        if len(word) > 2 and word.isalpha() and len(backend.encode(word, add_special_tokens=False).ids) == 1
    ]
    if len(words) < 100:
        raise DataError("a tokenizer with a hundred words of one token", str(len(words)), "Take another model.")
    return words


def same_length_quarter(pairs: Sequence[Preference], start: Start) -> list[Preference]:
    """One pair of each four of like length: a quarter of the pairs with a quarter of the tokens, nearly."""
    lengths = [sum(map(len, group)) for group in ids_of(start, pairs)]
    order = sorted(range(len(pairs)), key=lambda i: lengths[i])
    fours = [order[i : i + 4] for i in range(0, len(order), 4)]
    # Now the second, now the third of four: the errors cancel.
    return [pairs[four[1 + number % 2]] for number, four in enumerate(fours)]
