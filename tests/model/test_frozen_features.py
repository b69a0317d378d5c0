"""A frozen encoder is read once: the run on its features is the run through the encoder, and a cache is believed only where it is whole."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

import rewardsmith
from rewardsmith.config import TrainSettings
from rewardsmith.model import feature_cache, frozen_features
from rewardsmith.model.artefact import verify
from rewardsmith.model.batching_choice import PADDED, choose_batching
from rewardsmith.model.feature_cache import FeatureReader
from rewardsmith.model.frozen_features import choose_learner
from rewardsmith.model.network import build_network, load_tokenizer
from rewardsmith.model.render import Renderer, RenderSpec
from rewardsmith.model.scoring import score_tokens

KINDS = ["Gladly, here is how:", "Well, it depends:", "No idea, go away:", "Leave me alone:"]
CPU = torch.device("cpu")


@pytest.fixture
def data_of(write_rows):
    """data_of("lists") is a file of that kind of rows, 24 prompts each."""

    def build(kind):
        prompts = [f"How do I mend item {i}?" for i in range(24)]
        answers = [[f"{kind} use glue {i}{' and wait' * (i % 5)}." for kind in KINDS] for i in range(24)]
        rows = {
            "pairs": lambda i, a: {"chosen": a[0], "rejected": a[2], "weight": 1.0 + i % 3, "margin": 0.25 * (i % 2)},
            "ties": lambda i, a: {"chosen": a[0], "rejected": a[i % 3 + 1], "tie": i % 3 == 0},
            "votes": lambda i, a: {"chosen": a[0], "rejected": a[2], "votes": [3 + i % 4, i % 3]},
            "lists": lambda i, a: {"ranked": a[: 3 + i % 2]},
            "ratings": lambda i, a: {"answers": a, "ratings": [3.0, 2.0, 1.0, float(i % 2)]},
            "attributes": lambda i, a: {
                "candidates": a,
                "per_answer": {"kind": [4, 3, 1, 0], "long": [0, i % 5, None, i % 4]},
            },
        }[kind]
        return write_rows([{"prompt": p, **rows(i, a)} for i, (p, a) in enumerate(zip(prompts, answers, strict=True))])

    return build


LOSSES = {
    "bradley_terry": ("pairs", {"label_smoothing": 0.1, "centring": 0.01}),
    "rao_kupper": ("ties", {}),
    "davidson": ("ties", {}),
    "vote_share": ("votes", {}),
    "flip_noise": ("pairs", {}),
    "plackett_luce": ("lists", {}),
    "regression": ("ratings", {}),
    "ordinal": ("ratings", {}),
    "attributes": ("attributes", {"attributes": {"kind": 1.0, "long": -0.5}}),
}


def run(model, data, out, **more):
    """(report, what was printed) of a short run with a frozen encoder."""
    console = Console(file=io.StringIO(), width=400)
    settings = {
        **{"model": model, "data": data, "out": str(out), "max_length": 48, "freeze": "encoder", "device": "cpu"},
        **{"precision": "float32", "learning_rate": 3e-2, "epochs": 2, "batch_size": 5, "dev_share": 0.2},
        **more,
    }
    settings["trainer"] = {"logging_steps": 1, "save_steps": 3} | more.get("trainer", {})
    return rewardsmith.train(settings, console=console), console.file.getvalue()


def through_the_encoder(monkeypatch):
    """Every step runs the whole network, as where features would change."""
    monkeypatch.setattr(frozen_features, "obstacle", lambda *_: "a test wants it so")


@pytest.mark.parametrize(
    ("family", "loss"),
    [
        *(("bert", loss) for loss in LOSSES),
        *(("qwen2", loss) for loss in ("bradley_terry", "plackett_luce", "regression", "attributes")),
    ],
)
def test_a_run_on_features_is_the_run_through_the_encoder(family, loss, tiny, data_of, tmp_path, monkeypatch):
    """Steps, dev points, what the loss learns, the kept step and the saved weights; float32, to 1e-5 x max(1, |value|)."""
    kind, options = LOSSES[loss]
    data, more = data_of(kind), {"loss": {"name": loss, **options}, "ema_decay": 0.8}
    fast, said = run(tiny(family), data, tmp_path / "features", **more)
    assert "features: computed" in said and "trained on them alone" in said
    through_the_encoder(monkeypatch)
    slow, said = run(tiny(family), data, tmp_path / "encoder", **more)
    assert "features: not kept, for a test wants it so; every step runs the encoder" in said
    assert [line["step"] for line in fast["history"]] == [line["step"] for line in slow["history"]]
    for name in ("loss", "score_mean", "score_std", "grad_norm"):
        assert [line[name] for line in fast["history"]] == pytest.approx(
            [line[name] for line in slow["history"]], abs=1e-5, rel=1e-5
        )
    assert len(fast["dev_points"]) > 2
    for one, other in zip(fast["dev_points"], slow["dev_points"], strict=True):
        assert one == pytest.approx(other, abs=1e-5, rel=1e-5)
    assert fast["training"]["kept_step"] == slow["training"]["kept_step"]
    assert fast["training"]["learned"].keys() == slow["training"]["learned"].keys()
    for name, value in fast["training"]["learned"].items():
        assert value == pytest.approx(slow["training"]["learned"][name], abs=1e-5, rel=1e-5)
    ours, theirs = (load_file(tmp_path / name / "model" / "model.safetensors") for name in ("features", "encoder"))
    assert ours.keys() == theirs.keys()
    for name in ours:
        assert torch.allclose(ours[name], theirs[name], atol=1e-5, rtol=1e-5), name
    assert {path.name for path in (tmp_path / "features" / "model").iterdir()} == {
        path.name for path in (tmp_path / "encoder" / "model").iterdir()
    }
    ours, theirs = (
        json.loads((tmp_path / name / "model" / "rewardsmith.json").read_text()) for name in ("features", "encoder")
    )
    assert ours["normaliser"]["mean"] == pytest.approx(theirs["normaliser"]["mean"], abs=1e-5, rel=1e-5)
    assert ours["normaliser"]["std"] == pytest.approx(theirs["normaliser"]["std"], abs=1e-5, rel=1e-5)
    assert all(check.ok for check in verify(str(tmp_path / "features" / "model")))


@pytest.mark.parametrize("family", ["distilbert", "roberta", "deberta-v2", "modernbert", "llama"])
def test_other_families_too(family, tiny, data_of, tmp_path, monkeypatch):
    fast, said = run(tiny(family), data_of("pairs"), tmp_path / "features")
    kept = "features: not kept, for pooler.dense is trained, too" if family == "deberta-v2" else "features: computed"
    assert kept in said
    through_the_encoder(monkeypatch)
    slow, _ = run(tiny(family), data_of("pairs"), tmp_path / "encoder")
    assert [line["loss"] for line in fast["history"]] == pytest.approx(
        [line["loss"] for line in slow["history"]], abs=1e-5
    )


def test_a_second_run_and_another_seed_read_no_text(tiny, data_of, tmp_path, monkeypatch):
    """The file holds the texts of both parts, so that another split of the same data finds it, too."""
    data = data_of("pairs")
    first, _ = run(tiny("bert"), data, tmp_path / "first")
    files = set((Path(frozen_features_folder())).glob("*.npy"))
    assert len(files) == 1
    monkeypatch.setattr(feature_cache, "head_outputs", None)  # whoever calls it fails
    again, said = run(tiny("bert"), data, tmp_path / "again")
    assert "features: cache hit, 48 texts" in said  # 24 pairs, all answers distinct
    assert again["history"][-1]["loss"] == first["history"][-1]["loss"]
    _, said = run(tiny("bert"), data, tmp_path / "seed", seed=1)
    assert "features: cache hit" in said
    assert again["training"]["features"] == {"texts": 48, "size": 32, "precision": "float32", "cache": "hit"}


def frozen_features_folder():
    from rewardsmith.model.token_cache import default_folder

    return default_folder() / "features"


@pytest.fixture(autouse=True)
def an_empty_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("REWARDSMITH_CACHE", str(tmp_path / "cache"))


def test_without_a_cache_nothing_is_written(tiny, data_of, tmp_path):
    kept, _ = run(tiny("bert"), data_of("pairs"), tmp_path / "a")
    report, said = run(tiny("bert"), data_of("pairs"), tmp_path / "b", cache=False)
    assert "features: computed 48 texts" in said and report["training"]["features"]["cache"] == "off"
    assert len(list(frozen_features_folder().iterdir())) == 1
    assert report["history"][-1]["loss"] == kept["history"][-1]["loss"]


def reader_of(folder, cache, *, batching=None, **spec):
    network = build_network(folder, pooling=spec.pop("pooling", "auto"), seed=0, dropout=False)
    network.model.eval()
    renderer = Renderer(load_tokenizer(folder), RenderSpec(**{"max_length": 48, **spec}))
    return FeatureReader(network, renderer, CPU, batching or choose_batching(network, CPU), cache)


TEXTS = [("What is up?", "Nothing much."), ("And down?", "Even less, to be honest."), ("What is up?", "Nothing much.")]


def test_features_are_what_the_head_reads(tiny):
    """Head(features) is the score; equal texts are read once; the head stands where it stood."""
    for family in ("bert", "distilbert", "qwen2"):
        reader = reader_of(tiny(family), None)
        head = reader.network.head_module
        tokens = reader.renderer.encode(TEXTS)
        found = reader.read(tokens, precision="float32")
        assert reader.network.head_module is head
        assert found.values.shape == (2, head.in_features) and found.origin == "off"
        rows = found.rows_of(tokens)
        assert rows[0] == rows[2] and set(rows.tolist()) == {0, 1}
        assert tokens.lengths[1] > tokens.lengths[0] and rows[1] == 0  # longest first
        scores = score_tokens(reader.network, tokens, pad_id=0, with_types=False, device=CPU)
        with torch.inference_mode():
            ours = head(torch.from_numpy(found.values[rows]))[:, 0].numpy()
        assert np.allclose(ours, scores, atol=1e-5)


def test_the_key_changes_with_all_that_the_features_depend_on(tiny, tmp_path):
    def keys_of(reader, texts=TEXTS, precision="float32"):
        reader.read(reader.renderer.encode(texts), precision=precision)
        return {path.name for path in (tmp_path / "features").glob("*.npy")}

    seen = keys_of(reader_of(tiny("bert"), tmp_path))
    assert keys_of(reader_of(tiny("bert"), tmp_path)) == seen
    assert (
        keys_of(reader_of(tiny("bert"), tmp_path), [TEXTS[1], TEXTS[0]]) == seen
    )  # the order of the data does not matter
    head = reader_of(tiny("bert"), tmp_path)
    with torch.no_grad():
        head.network.head_module.weight.add_(1)
    assert keys_of(head) == seen  # nor does the head
    weights = reader_of(tiny("bert"), tmp_path)
    with torch.no_grad():
        next(weights.network.model.parameters())[0, 0] += 1e-3
    for reader, more in (
        (reader_of(tiny("bert"), tmp_path), {"precision": "bf16"}),
        (reader_of(tiny("bert"), tmp_path), {"texts": TEXTS[:1]}),
        (reader_of(tiny("bert"), tmp_path, pooling="mean"), {}),
        (reader_of(tiny("bert"), tmp_path, template="{prompt} {answer}"), {}),
        (reader_of(tiny("electra"), tmp_path), {}),
        (weights, {}),
    ):
        found = keys_of(reader, **more)
        assert len(found) == len(seen) + 1, more
        seen = found


def test_a_file_that_is_not_whole_is_made_again(tiny, tmp_path):
    reader = reader_of(tiny("bert"), tmp_path)
    tokens = reader.renderer.encode(TEXTS)
    fresh = np.array(reader.read(tokens, precision="float32").values)
    path = next(tmp_path.rglob("*.npy"))
    assert np.array_equal(np.load(path), fresh)  # any reader of .npy reads it
    whole = path.read_bytes()
    flipped = bytearray(whole)
    flipped[-40] ^= 1
    foreign = io.BytesIO()
    np.save(foreign, np.zeros((5, 3)))
    for broken in (b"", whole[: len(whole) // 2], bytes(flipped), foreign.getvalue(), whole[:-32], b"no array at all"):
        path.write_bytes(broken)
        with pytest.warns(UserWarning, match="making them again"):
            found = reader.read(tokens, precision="float32")
        assert found.origin == "miss" and np.array_equal(found.values, fresh)
        del found
    assert reader.read(tokens, precision="float32").origin == "hit"


def test_a_cache_that_cannot_be_written_costs_a_warning(tiny, tmp_path):
    (tmp_path / "features").write_text("a file where a folder should be")
    reader = reader_of(tiny("bert"), tmp_path)
    with pytest.warns(UserWarning, match="features not written"):
        found = reader.read(reader.renderer.encode(TEXTS), precision="float32")
    assert found.values.shape == (2, 32) and found.origin == "miss"


def test_blocks_of_texts_make_one_file(tiny, tmp_path, monkeypatch):
    whole = reader_of(tiny("bert"), None)
    texts = [(f"question {i}", "word " * (i % 7) + str(i)) for i in range(11)]
    tokens = whole.renderer.encode(texts)
    expected = whole.read(tokens, precision="float32")
    monkeypatch.setattr(feature_cache, "_BLOCK", 3)
    found = reader_of(tiny("bert"), tmp_path).read(tokens, precision="float32")
    assert np.allclose(found.values[found.rows_of(tokens)], expected.values[expected.rows_of(tokens)], atol=1e-5)


def test_features_that_would_change_are_not_kept(tiny, data_of, tmp_path):
    _, said = run(tiny("bert"), data_of("pairs"), tmp_path / "a", dropout=True)
    assert "features: not kept, for dropout changes them at every step" in said
    _, said = run(tiny("bert"), data_of("pairs"), tmp_path / "b", freeze="none", learning_rate=1e-3)
    assert "features:" not in said


def test_an_interrupted_run_goes_on_from_its_features(tiny, data_of, tmp_path, monkeypatch):
    from rewardsmith.model.trainer import PreferenceTrainer

    data = data_of("pairs")
    run(tiny("bert"), data, tmp_path / "whole", ema_decay=0.5)
    loss = PreferenceTrainer.compute_loss

    def breaks(self, *arguments, **more):
        if self.state.global_step == 5:
            raise KeyboardInterrupt
        return loss(self, *arguments, **more)

    monkeypatch.setattr(PreferenceTrainer, "compute_loss", breaks)
    with pytest.raises(KeyboardInterrupt):
        run(tiny("bert"), data, tmp_path / "cut", ema_decay=0.5)
    monkeypatch.setattr(PreferenceTrainer, "compute_loss", loss)
    _, said = run(tiny("bert"), data, tmp_path / "cut", ema_decay=0.5)
    assert "going on from checkpoint-3" in said
    first, second = (load_file(tmp_path / name / "model" / "model.safetensors") for name in ("whole", "cut"))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_checkpoint_of_the_encoder_path_goes_on_with_features(tiny, data_of, tmp_path, monkeypatch):
    """Both hold the same names: a folder that an interrupted run left is of use either way."""
    data = data_of("ties")
    more = {"loss": {"name": "davidson"}}
    run(tiny("bert"), data, tmp_path / "a", **more)
    through_the_encoder(monkeypatch)
    run(tiny("bert"), data, tmp_path / "b", **more)
    names = [
        set(load_file(path / "checkpoints" / "checkpoint-8" / "model.safetensors"))
        for path in map(tmp_path.joinpath, "ab")
    ]
    assert names[0] == names[1] == {"classifier.weight", "classifier.bias", "objective.log_nu"}


def test_bf16_features_train_and_what_is_reported_is_float32(tiny, data_of, tmp_path):
    """The steps see features of bf16; the normaliser is of float32 scores, whose features are kept, too."""
    report, _ = run(tiny("bert"), data_of("pairs"), tmp_path / "a", precision="bf16")
    assert report["training"]["features"]["precision"] == "bf16"
    assert len(list(frozen_features_folder().iterdir())) == 2
    contract = json.loads((tmp_path / "a" / "model" / "rewardsmith.json").read_text())
    model = rewardsmith.RewardModel.load(tmp_path / "a")
    pairs = rewardsmith.read_pairs(data_of("pairs"))
    trained_on = contract["normaliser"]["n"] // 2
    assert trained_on < len(pairs)
    texts = {text for pair in pairs for text in (pair.chosen_pair, pair.rejected_pair)}
    scores = model.score(sorted(texts))
    assert scores.min() < contract["normaliser"]["mean"] < scores.max()
    assert all(check.ok for check in verify(str(tmp_path / "a" / "model")))


def test_the_order_of_training_goes_by_the_real_lengths(tiny, data_of, tmp_path):
    """Rows of features are all one token long; what meets in a batch must not depend on that."""
    from rewardsmith.model.examples import example_table
    from rewardsmith.model.trainer import ExampleSampler

    settings = TrainSettings(model="m", data="d", out=str(tmp_path / "o"), freeze="encoder", cache=False)
    reader = reader_of(tiny("bert"), None)
    table, _ = example_table(rewardsmith.read_pairs(data_of("pairs")), reader.renderer, settings.loss, cache=None)
    learner = choose_learner(reader, table, None, settings, precision="float32", say=lambda _: None)
    assert set(learner.table.tokens.lengths.tolist()) == {1}
    for batching in (PADDED, choose_batching(reader.network, CPU)):
        orders = [list(ExampleSampler(one, 4, 0, batching=batching)) for one in (table, learner.table)]
        assert orders[0] == orders[1]


def test_a_head_inside_a_classifier_keeps_its_name(tiny, data_of, tmp_path):
    """RoBERTa's own class has a layer of its own under the head: trained while it is new, then a part of what is frozen."""
    data = data_of("pairs")
    _, said = run(tiny("roberta"), data, tmp_path / "first", pooling="native")
    assert "features: not kept, for classifier.dense is trained, too" in said
    _, said = run(str(tmp_path / "first"), data, tmp_path / "second")
    assert "features: computed" in said
    before, after = (load_file(tmp_path / name / "model" / "model.safetensors") for name in ("first", "second"))
    assert {name for name in before if not torch.equal(before[name], after[name])} == {"classifier.out_proj.weight"}
    checkpoint = tmp_path / "second" / "checkpoints" / "checkpoint-8" / "model.safetensors"
    assert set(load_file(checkpoint)) == {"classifier.out_proj.weight", "classifier.out_proj.bias"}


def test_packed_and_padded_reading_have_files_of_their_own(tiny, tmp_path):
    """They agree to 1e-5 in float32, and less in bf16: a run that is repeated over the other's file would not be the same to the bit."""
    tokens = reader_of(tiny("bert"), None).renderer.encode(TEXTS)
    first = reader_of(tiny("bert"), tmp_path, batching=PADDED).read(tokens, precision="float32")
    packed = reader_of(tiny("bert"), tmp_path)
    assert packed.batching.packed
    fresh = packed.read(tokens, precision="float32")
    assert fresh.origin == "miss"
    assert packed.read(tokens, precision="float32").origin == "hit"
    assert np.allclose(first.values, fresh.values, atol=1e-5)
