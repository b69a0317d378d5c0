"""A reward model at other limits of length: the same weights, the one renderer, and what the model cannot read refused."""

import numpy as np
import pytest

from rewardsmith.auditing.truncation import measure_truncation
from rewardsmith.config import ScoringSettings
from rewardsmith.data.schema import Preference
from rewardsmith.errors import LengthError, SettingsError
from rewardsmith.model.reward_model import RewardModel
from rewardsmith.model.shorter import LimitedModel, control_strings
from rewardsmith.scores import LengthLimited, SpecialTokens
from tests.tiny_models import save_reward_model, tiny_tokenizer

PAIRS = [("How do I mend item 3?", " ".join(["Gladly, use glue number"] * n)) for n in (1, 5, 20)]
CPU = ScoringSettings(device="cpu")


def _model(folder):
    return RewardModel.load(folder, CPU)


@pytest.mark.parametrize("family", ["bert", "deberta-v2", "qwen2"])
def test_scores_at_another_limit_are_those_of_a_model_saved_with_it(family, tiny, tiny_rm, tmp_path):
    encoding = "chat" if family == "qwen2" else "text"
    own = LimitedModel(_model(tiny_rm(family, encoding=encoding, max_length=64)))
    assert isinstance(own, LengthLimited) and isinstance(own, SpecialTokens)
    saved = save_reward_model(tiny(family), tmp_path / "rm", pooling="auto", encoding=encoding, max_length=32)
    shorter, expected = own.at_max_length(32).table(PAIRS), _model(saved).table(PAIRS)
    np.testing.assert_allclose(shorter.score, expected.score, atol=1e-5)
    assert shorter.digest.tolist() == expected.digest.tolist() and shorter.tokens.max() == 32
    # The model itself goes on as it was.
    assert own.max_length == 64
    before = own.model.score(PAIRS)
    own.at_max_length(32).score(PAIRS)
    assert own.model.score(PAIRS).tolist() == before.tolist()
    assert own.at_max_length(64).score(PAIRS).tolist() == before.tolist()


@pytest.mark.parametrize(
    ("family", "longest"), [("bert", 128), ("roberta", 128), ("deberta-v2", 128), ("modernbert", 256), ("qwen2", 256)]
)
def test_the_longest_limit_is_where_the_positions_end(family, longest, tiny_rm):
    """RoBERTa has 130 rows and uses two of them for padding; of relative and rotary positions the config tells how many were trained."""
    own = LimitedModel(_model(tiny_rm(family)))
    assert own.longest == longest
    assert own.at_max_length(longest).score(PAIRS).shape == (3,)
    with pytest.raises(SettingsError, match=f"at most {longest} tokens"):
        own.at_max_length(longest + 1)


def test_a_limit_without_room_for_the_template_is_refused(tiny_rm):
    with pytest.raises(LengthError):
        LimitedModel(_model(tiny_rm("bert"))).at_max_length(4)


def test_a_model_that_refuses_long_texts_is_read_with_the_answer_kept(tiny, tmp_path):
    saved = save_reward_model(
        tiny("bert"), tmp_path / "rm", pooling="auto", encoding="text", max_length=96, truncation="error"
    )
    own = LimitedModel(_model(saved))
    with pytest.raises(LengthError):
        own.model.score(PAIRS)
    assert own.at_max_length(32).table(PAIRS).truncated.any()


def test_control_tokens_are_told_without_those_that_mean_nothing(tiny_rm):
    assert LimitedModel(_model(tiny_rm("bert"))).special_tokens() == ("[CLS]", "[SEP]", "[MASK]")
    chat = LimitedModel(_model(tiny_rm("qwen2", encoding="chat")))
    assert chat.special_tokens() == ("<|endoftext|>", "<|start|>", "<|end|>")


def test_a_token_that_ends_texts_is_told_although_it_fills_batches_up_too():
    assert set(control_strings(tiny_tokenizer("mistral"))) == {"<s>", "</s>"}


def test_an_exported_model_is_read_at_its_own_limit_or_less(tiny_rm, tmp_path):
    pytest.importorskip("onnxruntime", reason="the extra `onnx` is not installed")
    from rewardsmith.config import ExportSettings
    from rewardsmith.model.export import export_model

    source = tiny_rm("bert")
    export_model(ExportSettings(model=str(source), to="onnx", out=str(tmp_path / "graph")))
    graph, own = LimitedModel(_model(tmp_path / "graph")), LimitedModel(_model(source))
    assert graph.longest == graph.max_length == 64
    np.testing.assert_allclose(graph.at_max_length(32).score(PAIRS), own.at_max_length(32).score(PAIRS), atol=1e-4)
    with pytest.raises(SettingsError):
        graph.at_max_length(65)


def test_truncation_is_measured_on_a_real_tiny_model(tiny_rm):
    pairs = [
        Preference(f"p{i}", f"How do I mend item {i}?", "Gladly. " * (i + 1) + "Use glue.", "No idea. " * (i + 1))
        for i in range(24)
    ]
    model = LimitedModel(_model(tiny_rm("bert")))
    found = measure_truncation(model.model, pairs, limited=model, limits=(32, 128, 256))
    assert [one.max_length for one in found.limits] == [32, 64, 128]
    assert found.not_measured == {"max_length 256": "the model reads at most 128 tokens"}
    own = next(one for one in found.limits if one.own)
    assert own.accuracy.value == pytest.approx(
        np.mean([model.model.score([p.chosen_pair])[0] > model.model.score([p.rejected_pair])[0] for p in pairs])
    )
    shorter = model.at_max_length(32)
    margins = shorter.score([p.chosen_pair for p in pairs]) - shorter.score([p.rejected_pair for p in pairs])
    assert found.limits[0].accuracy.value == pytest.approx(((np.sign(margins) + 1) / 2).mean())
    assert found.limits[0].seconds_per_pair.value > 0
    assert found.decisive.unseen[90] == 40  # 64 tokens of texts of 120 words and more
    assert found.decisive.places[90].value == 0.5
