"""What a decoder remembers of beginnings moves no score, spares the tokens that it is there to spare, and never outgrows its bound."""

import numpy as np
import pytest
import torch

from rewardsmith.config import ScoringSettings
from rewardsmith.data.golden import INPUTS
from rewardsmith.model import scoring
from rewardsmith.model.network import build_network, load_tokenizer
from rewardsmith.model.packing import PackedBatch, States
from rewardsmith.model.prompt_states import LEAST_GAIN, PromptStates
from rewardsmith.model.render import Renderer, RenderSpec
from rewardsmith.model.reward_model import RewardModel
from rewardsmith.model.scoring import head_outputs
from tests.invariants.test_packed import CHANGES, CPU, DECODERS
from tests.tiny_models import save_tiny

PROMPT = "Tell me about the boiling point of water at sea level, and then say in a few words why it changes higher up."
ANSWERS = ("yes indeed", "no", "no way", "maybe so, " * 4, "it depends on the air", "of course")


def array(*ids):
    return np.array(ids, dtype=np.int32)


def filled(recall, numbers=4):
    """As if a row of one layer with so many numbers a token (keys and values together) had run."""
    half = torch.zeros(1, recall.keep.length, numbers // 2)
    recall.keep.layers[0] = half, half.clone()


PROMPT_IDS = list(range(100, 100 + LEAST_GAIN + 8))


def test_the_first_text_is_noted_the_second_leaves_its_states_and_the_third_uses_them():
    memory = PromptStates(10**6)
    assert memory.recall([array(*PROMPT_IDS, 1, 2)], 0) == (None, None)
    memory.settle()
    second = memory.recall([array(*PROMPT_IDS, 3)], 0)
    assert second.known is None and second.keep.length == len(PROMPT_IDS)
    filled(second)
    memory.settle()
    third = memory.recall([array(*PROMPT_IDS, 4, 5, 6)], 0)
    assert third.known.length == len(PROMPT_IDS) and third.keep is None
    assert third.known.layers[0][0].data_ptr() == second.keep.layers[0][0].data_ptr()


def test_a_part_of_a_known_beginning_is_used():
    """Of 40 remembered tokens 12 are those of the new text, and are taken; 4 would not be worth a copy."""
    memory = PromptStates(10**6)
    memory.recall([array(*PROMPT_IDS, 1)], 0)
    filled(memory.recall([array(*PROMPT_IDS, 2)], 0))
    memory.settle()
    known = memory.recall([array(*PROMPT_IDS[:12], 7, 8, 9)], 0).known
    assert known.length == 12 and known.layers[0][0].shape == (1, 12, 2)
    assert memory.recall([array(*PROMPT_IDS[:4], 7, 8, 9)], 0).known is None


def test_a_family_leaves_its_common_beginning_at_once():
    memory = PromptStates(10**6)
    family = [array(*PROMPT_IDS, 1, 2), array(*PROMPT_IDS, 3)]
    found = memory.recall(family, len(PROMPT_IDS))
    assert found.known is None and found.keep.length == len(PROMPT_IDS)


def test_nothing_is_kept_of_texts_that_have_too_little_in_common():
    memory = PromptStates(10**6)
    for number in range(5):
        assert memory.recall([array(*PROMPT_IDS[: LEAST_GAIN - 1], number)], 0) == (None, None)
        memory.settle()


def test_a_text_that_is_all_beginning_still_reads_its_last_token():
    memory = PromptStates(10**6)
    memory.recall([array(*PROMPT_IDS, 1)], 0)
    filled(memory.recall([array(*PROMPT_IDS, 2)], 0))
    memory.settle()
    assert memory.recall([array(*PROMPT_IDS)], 0).known.length == len(PROMPT_IDS) - 1
    family = [array(*PROMPT_IDS), array(*PROMPT_IDS, 3)]
    assert memory.recall(family, len(PROMPT_IDS)).known.length == len(PROMPT_IDS) - 1


def test_what_was_not_used_for_longest_makes_room():
    """A token takes 4 numbers x 4 bytes, a beginning of 40 tokens 640 bytes: two fit into 1,300."""
    assert len(PROMPT_IDS) == 40
    memory = PromptStates(1300)
    prompts = [[1000 * (i + 1) + token for token in PROMPT_IDS] for i in range(3)]

    def learn(prompt):
        memory.recall([array(*prompt, 1)], 0)
        filled(memory.recall([array(*prompt, 2)], 0))
        memory.settle()

    learn(prompts[0])
    learn(prompts[1])
    assert memory.recall([array(*prompts[0], 3)], 0).known is not None  # used, so that the other one is the older
    learn(prompts[2])
    assert memory.num_bytes == 2 * 640
    known = [memory.recall([array(*prompt, 4)], 0).known is not None for prompt in prompts]
    assert known == [True, False, True]


def test_a_row_that_failed_leaves_nothing():
    memory = PromptStates(10**6)
    memory.recall([array(*PROMPT_IDS, 1)], 0)
    assert isinstance(memory.recall([array(*PROMPT_IDS, 2)], 0).keep, States)  # and the model never ran
    memory.settle()
    assert memory.num_bytes == 0 and memory.recall([array(*PROMPT_IDS, 3)], 0).known is None


@pytest.fixture
def rows_read(monkeypatch):
    """The number of tokens of every row that a network reads."""
    read, pack = [], scoring.pack

    def noting(*arguments, **named):
        batch = pack(*arguments, **named)
        assert isinstance(batch, PackedBatch)
        read.append(batch.num_tokens)
        return batch

    monkeypatch.setattr(scoring, "pack", noting)
    return read


@pytest.mark.parametrize("family", DECODERS)
@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_remembered_beginnings_move_no_score(family, precision, tmp_path, rows_read):
    """One answer a call, then groups whose own common beginning is longer than the remembered one, beside texts of their own."""
    base = str(save_tiny(family, tmp_path / family, **CHANGES.get(family, {})))
    network = build_network(base, pooling="auto", seed=0, dropout=False)
    renderer = Renderer(load_tokenizer(base), RenderSpec(max_length=250))
    memory = PromptStates(10**8)
    longer = f"{PROMPT} Also tell me about snow and ice, the sea and the wind, and what they have to do with it."
    calls = [[(PROMPT, answer)] for answer in ANSWERS]
    calls += [
        [(longer, answer) for answer in ANSWERS[:3]] + [INPUTS[3], (PROMPT, "new")],
        [(longer, "last"), INPUTS[0]],
    ]

    def outputs(pairs, **named):
        table = renderer.encode(pairs)
        return head_outputs(network, table, pad_id=0, with_types=False, device=CPU, precision=precision, **named)[
            :, 0
        ], int(table.lengths.sum())

    for number, pairs in enumerate(calls):
        (expected, tokens), (found, _) = outputs(pairs), outputs(pairs, memory=memory)
        without, with_memory = rows_read[-2:]
        tolerance = (1e-5 if precision == "float32" else 5e-2) * np.maximum(1, np.abs(expected))
        assert (np.abs(found - expected) <= tolerance).all(), number
        if number >= 2:
            assert with_memory <= without - LEAST_GAIN, (number, tokens)
    assert 0 < memory.num_bytes <= 10**8


def test_a_reward_model_remembers_only_where_it_is_told_to(tiny_rm):
    folder = tiny_rm("qwen2", "auto", "text", 250)
    told = RewardModel.load(folder, ScoringSettings(device="cpu", prompt_states_mib=8))
    untold = RewardModel.load(folder, ScoringSettings(device="cpu"))
    for answer in ANSWERS:
        (expected,), (found,) = untold.score([(PROMPT, answer)]), told.score([(PROMPT, answer)])
        assert abs(expected - found) <= 1e-5 * max(1, abs(expected))
    assert told.backend.memory.num_bytes > 0 and untold.backend.memory is None
    # An encoder reads a prompt differently beside every answer, a mean needs the states of every token.
    for other in (tiny_rm("bert"), tiny_rm("qwen2", "mean")):
        assert RewardModel.load(other, ScoringSettings(device="cpu", prompt_states_mib=8)).backend.memory is None
