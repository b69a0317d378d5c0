"""Promise 2: one definition of the score; batch size, padding and order never change it beyond 1e-5 x max(1, |s|)."""

import subprocess
import sys

import numpy as np
import pytest
import torch

from rewardsmith.config import ScoringSettings
from rewardsmith.data.golden import INPUTS
from rewardsmith.model.batching import Batch, collate
from rewardsmith.model.network import build_network
from rewardsmith.model.reward_model import RewardModel
from tests.conftest import FAMILIES

POOLINGS = [(family, "auto") for family in FAMILIES] + [
    ("bert", "mean"),
    ("bert", "cls"),
    ("roberta", "native"),
    ("electra", "last"),
]


def worst(expected, found):
    return float(np.max(np.abs(expected - found) / np.maximum(1.0, np.abs(expected))))


@pytest.mark.parametrize(("family", "pooling"), POOLINGS)
def test_batch_size_and_padding_do_not_move_a_score(family, pooling, tiny_rm):
    model = RewardModel.load(tiny_rm(family, pooling))
    table = model.renderer.encode(INPUTS)
    alone = model.score(INPUTS)
    assert np.std(alone) > 0.01, "a constant scorer would pass this test"
    pad_id = model.renderer.tokenizer.pad_token_id
    for size in (1, 3, 8):
        found = np.zeros_like(alone)
        for start in range(0, len(INPUTS), size):
            rows = range(start, min(start + size, len(INPUTS)))
            batch = collate(table, rows, pad_id=pad_id, with_types=model.renderer.uses_types)
            with torch.inference_mode():
                found[list(rows)] = model.network.scores(batch).numpy()
        assert worst(alone, found) <= 1e-5
    batch = collate(table, [0, 3], pad_id=pad_id, with_types=False)
    wide = Batch(*(torch.nn.functional.pad(t, (0, 20)) for t in batch[:2]), None)
    with torch.inference_mode():
        assert worst(alone[[0, 3]], model.network.scores(wide).numpy()) <= 1e-5


@pytest.mark.parametrize("family", FAMILIES)
def test_what_stands_under_the_mask_is_never_read(family, tiny_rm):
    """Pooling goes by the attention mask: filling the padding with real tokens changes nothing."""
    model = RewardModel.load(tiny_rm(family))
    table = model.renderer.encode(INPUTS)
    batch = collate(table, [3, 0], pad_id=model.renderer.tokenizer.pad_token_id, with_types=False)
    other = batch.input_ids.clone()
    other[batch.attention_mask == 0] = 7
    with torch.inference_mode():
        expected = model.network.scores(batch).numpy()
        found = model.network.scores(Batch(other, batch.attention_mask, None)).numpy()
    # Roberta counts positions by pad id, so there the positions of real tokens must not move either.
    assert worst(expected, found) <= 1e-5


def test_order_and_company_do_not_move_a_score(minilm, tmp_path):
    """The real encoder: reversed, doubled and one by one."""
    from tests.tiny_models import save_reward_model

    model = RewardModel.load(
        save_reward_model(minilm, tmp_path / "rm", pooling="auto", encoding="text", max_length=128)
    )
    some = list(INPUTS)
    scores = model.score(some)
    assert worst(scores, model.score(some[::-1])[::-1]) <= 1e-5
    assert worst(np.tile(scores, 2), model.score(some + some)) <= 1e-5
    assert worst(scores, np.concatenate([model.score([pair]) for pair in some])) <= 1e-5


def test_equal_ids_are_an_exact_tie(tiny_rm):
    """Wherever in a batch they stand, and whatever was cut to make them equal."""
    model = RewardModel.load(tiny_rm("bert"))
    long = "word " * 80
    scores = model.score([("p", long + "good"), *INPUTS, ("p", long + "bad"), ("p", "x"), ("p", long + "ugly")])
    assert scores[0] == scores[-3] == scores[-1] != scores[-2]


def test_two_fresh_processes_give_the_same_bits(tiny_rm):
    code = (
        "import sys, rewardsmith\n"
        "from rewardsmith.data.golden import INPUTS\n"
        "print(rewardsmith.RewardModel.load(sys.argv[1]).score(INPUTS).tobytes().hex())"
    )
    folder = str(tiny_rm("bert"))
    found = [
        subprocess.run([sys.executable, "-c", code, folder], capture_output=True, text=True, check=True).stdout.strip()
        for _ in range(2)
    ]
    assert found[0] == found[1]
    here = RewardModel.load(folder).score(INPUTS)
    assert worst(here, np.frombuffer(bytes.fromhex(found[0]), dtype=np.float32)) <= 1e-5


def test_bf16_is_near_but_asked_for(tiny_rm):
    exact = RewardModel.load(tiny_rm("bert"))
    fast = RewardModel.load(tiny_rm("bert"), ScoringSettings(precision="bf16"))
    assert exact.settings.precision == "float32"
    difference = worst(exact.score(INPUTS), fast.score(INPUTS))
    assert 0 < difference <= 5e-2


def test_dropout_is_off_in_training_mode_by_default(tiny):
    """Two passes in training mode agree to the bit without dropout, and differ with it."""
    for dropout, equal in ((False, True), (True, False)):
        network = build_network(tiny("bert"), pooling="auto", seed=0, dropout=dropout)
        network.model.train()
        batch = Batch(torch.arange(5, 45).view(2, 20), torch.ones(2, 20, dtype=torch.long), None)
        first, second = network.scores(batch), network.scores(batch)
        assert torch.equal(first, second) is equal
        assert network.model.config.hidden_dropout_prob == 0.1
