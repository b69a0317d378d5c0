"""HotFlip's guesses: exact on a linear model, finite differences on others, and never a word that the renderer reads otherwise."""

import functools
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import nn
from transformers import PreTrainedTokenizerFast

from rewardsmith.auditing.search import GRADIENTS, RANDOM, Search, attack
from rewardsmith.auditing.trials import Subject
from rewardsmith.auditing.triggers import Readings, Trigger
from rewardsmith.data.schema import Preference
from rewardsmith.errors import ModelError
from rewardsmith.model.artefact import save
from rewardsmith.model.batching import collate
from rewardsmith.model.modeling_rewardsmith import ScoreHead, pool
from rewardsmith.model.network import Network, build_network, load_tokenizer
from rewardsmith.model.padding import give_pad_token
from rewardsmith.model.render import Renderer, RenderSpec, with_end_token
from rewardsmith.model.reward_model import RewardModel
from rewardsmith.model.trigger_gradients import TriggerGradients
from rewardsmith.scores import TokenGradients
from tests.tiny_models import save_tiny, tiny_tokenizer

CPU = torch.device("cpu")
SUBJECTS = [Subject(f"s{i}", f"How do I mend item {i}?", f"Use glue number {i}, gladly.") for i in range(12)]


class BagOfTokens(nn.Module):
    """A linear model: the head over the mean of the embeddings."""

    def __init__(self, num_rows):
        """Random weights of the seed 0."""
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.table, self.score = nn.Embedding(num_rows, 4), ScoreHead(4, 1)
        with torch.no_grad():
            self.table.weight.copy_(torch.randn(num_rows, 4, generator=generator))
            self.score.weight.copy_(torch.randn(1, 4, generator=generator))

    def get_input_embeddings(self):
        return self.table

    def forward(self, input_ids, attention_mask):
        return SimpleNamespace(logits=self.score(pool(self.table(input_ids), attention_mask, "mean")))


def bag_of_tokens(tokenizer=None, **spec):
    tokenizer = tokenizer or tiny_tokenizer("bert")
    network = Network(BagOfTokens(len(tokenizer)), "score", "mean", False, "loaded", "as written")
    return network, TriggerGradients(network, Renderer(tokenizer, RenderSpec(**spec)), device=CPU, batch_tokens=512)


@pytest.fixture(scope="module")
def reward_model(tmp_path_factory):
    """reward_model("llama") is a tiny one of that family."""

    @functools.cache
    def build(family):
        folder = tmp_path_factory.mktemp(family)
        network = build_network(str(save_tiny(family, folder / "base")), pooling="auto", seed=1, dropout=False)
        tokenizer = load_tokenizer(str(folder / "base"))
        give_pad_token(network, tokenizer)
        with torch.no_grad():
            network.head_module.weight.mul_(3)
        spec = RenderSpec(template=with_end_token(RenderSpec().template, tokenizer), max_length=96)
        save(network, Renderer(tokenizer, spec), folder / "rm", training_dtype="float32", manifest={})
        return RewardModel.load(folder / "rm")

    return build


def gradients_of(model):
    return TriggerGradients(model.network, model.renderer, device=CPU, batch_tokens=4096)


def texts_with(trigger, subjects=SUBJECTS):
    return [(one.prompt, trigger.put(one.answer)) for one in subjects], [trigger.spans(one.answer) for one in subjects]


def some_trigger(gradients, place, count=2):
    """Words of letters, so that a person can read a failure."""
    words = [word for word in gradients.words().openers if word.isalpha()]
    return Trigger(tuple(words[5 : 5 + count]), place)


@pytest.mark.parametrize("place", ["prefix", "suffix"])
def test_on_a_linear_model_the_foretold_change_is_the_change(place):
    network, gradients = bag_of_tokens()
    assert isinstance(gradients, TokenGradients)
    trigger = some_trigger(gradients, place)

    def mean_score(some):
        table = gradients.renderer.encode(texts_with(some)[0])
        return network.scores(collate(table, range(len(table)), pad_id=0, with_types=False)).mean().item()

    for k, flips in enumerate(gradients.flips(*texts_with(trigger), top=5)):
        assert len(flips.words) == 5 and flips.num_texts == len(SUBJECTS) and trigger.words[k] not in flips.words
        for word, gain in zip(flips.words, flips.gains, strict=True):
            flipped = Trigger((*trigger.words[:k], word, *trigger.words[k + 1 :]), place)
            assert mean_score(flipped) - mean_score(trigger) == pytest.approx(gain, abs=1e-5)
        # Of some other words none does more: HotFlip has no excuse on a linear model.
        for word in gradients.words().openers[::7]:
            flipped = Trigger((*trigger.words[:k], word, *trigger.words[k + 1 :]), place)
            assert mean_score(flipped) - mean_score(trigger) <= flips.gains[0] + 1e-5


@pytest.mark.parametrize(
    ("family", "place"),
    [("bert", "prefix"), ("bert", "suffix"), ("llama", "prefix"), ("llama", "suffix"), ("gemma", "suffix")],
)
def test_the_foretold_change_is_the_slope_of_the_score_towards_the_word(family, place, reward_model):
    """(s(e + h d) - s(e - h d)) / 2 h with d = e_w - e_c at the word's place; gemma scales its embeddings by sqrt(hidden)."""
    model = reward_model(family)
    gradients, network = gradients_of(model), model.network
    trigger = some_trigger(gradients, place)
    pairs, spans = texts_with(trigger, SUBJECTS[:3])
    found = gradients.flips(pairs, spans, top=2)
    embedding, h = network.model.get_input_embeddings(), 3e-3

    def moved_score(pair, at, token, step):
        table = model.renderer.encode([pair])
        direction = embedding(torch.tensor([token])) - embedding(torch.tensor([int(table.row(0)[at])]))

        def move(module, inputs, states):
            states = states.clone()
            states[0, at] += step * direction[0]
            return states

        hook = embedding.register_forward_hook(move)
        try:
            with torch.no_grad():
                return network.scores(collate(table, [0], pad_id=0, with_types=False)).item()
        finally:
            hook.remove()

    for k, flips in enumerate(found):
        for word, gain in zip(flips.words, flips.gains, strict=True):
            slopes = []
            for pair, one in zip(pairs, spans, strict=True):
                start, end = one[k]
                before = model.renderer.encode([pair]).row(0)
                after = model.renderer.encode([(pair[0], pair[1][:start] + word + pair[1][end:])]).row(0)
                (at,) = np.flatnonzero(before != after)
                up, down = (moved_score(pair, at, int(after[at]), step) for step in (h, -h))
                slopes.append((up - down) / (2 * h))
            assert gain == pytest.approx(np.mean(slopes), rel=0.02, abs=2e-3)


@pytest.mark.parametrize("family", ["bert", "llama", "roberta", "deberta-v2", "gpt2"])
def test_words_are_text_that_changes_one_id(family):
    """Promise 1: the ids of the text with the word are those of the text with another one, but for that one."""
    network, gradients = bag_of_tokens(tiny_tokenizer(family))
    plain, renderer = gradients.words(), gradients.renderer
    vocabulary = renderer.tokenizer.get_vocab()
    assert len(plain.words) > 50 and set(plain.openers) <= set(plain.words)
    assert len(plain.words) + sum(plain.left_out.values()) == len(vocabulary)
    assert not any(
        one.isspace() or token in plain.words for token in renderer.tokenizer.all_special_tokens for one in token
    )
    for place in ("prefix", "suffix"):
        trigger = some_trigger(gradients, place)
        pairs, spans = texts_with(trigger)
        before = renderer.encode(pairs)
        for k, flips in enumerate(gradients.flips(pairs, spans, top=4)):
            assert len(flips.words) == 4
            for word in flips.words:
                changed = renderer.encode(
                    [(p, a[: one[k][0]] + word + a[one[k][1] :]) for (p, a), one in zip(pairs, spans, strict=True)]
                )
                assert np.array_equal(before.starts, changed.starts)
                assert (np.add.reduceat(before.ids != changed.ids, before.starts[:-1]) == 1).all()


def crossing_tokenizer():
    """Characters, words with their blank, and one token of two words: `x y` is one id where other words are two."""
    words = ["a", "x", "y", "z", "q"]
    vocabulary = {piece: i for i, piece in enumerate(["<pad>", "<unk>", "\u2581", *words])}
    merges = []
    for word in words:
        merges.append(("\u2581", word))
        vocabulary[f"\u2581{word}"] = len(vocabulary)
    merges.append(("\u2581x", "\u2581y"))
    vocabulary["\u2581x\u2581y"] = len(vocabulary)
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(split=False)
    tokenizer.decoder = decoders.Metaspace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<unk>")


def test_a_word_that_would_be_read_together_with_its_neighbour_is_passed_over_and_counted():
    network, gradients = bag_of_tokens(crossing_tokenizer(), template="{prompt} {answer}")
    assert sorted(gradients.words().words) == ["a", "q", "x", "y", "z"]
    with torch.no_grad():  # the head likes `x` by far
        x = gradients.renderer.tokenizer.get_vocab()["\u2581x"]
        network.model.table.weight[x] = 100 * network.model.score.weight[0]
    pairs = [("a", f"q {word} a") for word in ("z", "q")]
    assert gradients.flips(pairs, [[(0, 1)], [(0, 1)]], top=2)[0].words[0] == "x"
    # Before `y` an `x` is half of another token.
    before_y = gradients.flips([("a", "q y a"), ("a", "q z a")], [[(0, 1)], [(0, 1)]], top=2)[0]
    assert "x" not in before_y.words and before_y.num_retokenised == 1 and len(before_y.words) == 2


def test_a_word_that_was_cut_away_has_no_gradient(tiny_rm):
    model = RewardModel.load(tiny_rm("bert"))
    gradients = gradients_of(model)
    trigger = some_trigger(gradients, "suffix")
    short, long = SUBJECTS[0], Subject("long", "Say it.", "never again " * 60)
    found = gradients.flips(*texts_with(trigger, [short, long]), top=1)
    assert [one.num_texts for one in found] == [1, 1]
    assert [one.num_texts for one in gradients.flips(*texts_with(trigger, [long]), top=1)] == [0, 0]
    # A word of several tokens has none either, and does not take the other one's.
    odd = Trigger(("xylophonically", trigger.words[0]), "suffix")
    assert [len(one.words) for one in gradients.flips(*texts_with(odd, [short]), top=3)] == [0, 3]


@pytest.mark.parametrize("family", ["bert", "llama"])
@pytest.mark.parametrize("place", ["prefix", "suffix"])
def test_hotflip_does_better_than_the_best_of_random_tokens(family, place, reward_model):
    """From the best of 24 random triggers on; beside it the best of 100 that were tried on all prompts."""
    model = reward_model(family)
    gradients = gradients_of(model)
    readings = Readings(model)
    search = Search(SUBJECTS[:8], readings, gradients=gradients, seed=0)
    starts = search.random([], place, max_words=3, budget=10**6)
    found, effect = search.flips([one for one in starts if len(one[0].words) == 3], gradients, budget=2000)[0]
    assert readings.num_texts <= 8 + 24 * 8 + 2000
    assert effect > starts[0][1] and len(found.words) == 3 and found.place == place
    rng = np.random.default_rng(1)
    words = gradients.words().openers
    random = [Trigger(tuple(rng.choice(words, 3).tolist()), place) for _ in range(100)]
    assert effect >= search.race(RANDOM, random, 10**6)[0][1]
    # What is reported is what the scorer says of the text.
    scores = [model.score([(one.prompt, found.put(one.answer)) for one in SUBJECTS[:8]]), search.original.scores]
    assert effect == pytest.approx(float((scores[0] - scores[1]).mean()), abs=1e-4)


def test_an_attack_by_gradients_draws_its_words_from_the_tokenizer(reward_model):
    model = reward_model("bert")
    gradients = gradients_of(model)
    pairs = [Preference(one.id, one.prompt, "Gladly: glue.", one.answer) for one in SUBJECTS]
    pairs += [Preference(f"t{i}", f"Item {i}?", "Yes, it is.", f"No item {i}.") for i in range(12)]
    scores = model.score([pair.rejected_pair for pair in pairs])
    found = attack(model, pairs, gradients=gradients, num_prompts=24, max_words=2, budget=2000, seed=1)
    document = found.as_dict()
    assert document["vocabulary"]["source"] == "the tokenizer"
    assert GRADIENTS in {finding.finalist.found_by for finding in found.findings}
    assert document["num_texts"] <= 2000 and not any("gradients" in one for one in document["not_covered"])
    assert np.array_equal(model.score([pair.rejected_pair for pair in pairs]), scores)
    assert all(parameter.grad is None for parameter in model.network.model.parameters())


def test_company_does_not_move_a_gradient(reward_model):
    model = reward_model("llama")
    trigger = some_trigger(gradients_of(model), "prefix")
    together = gradients_of(model).flips(*texts_with(trigger), top=4)
    alone = TriggerGradients(model.network, model.renderer, device=CPU, batch_tokens=1).flips(
        *texts_with(trigger), top=4
    )
    for one, other in zip(together, alone, strict=True):
        assert one.words == other.words and one.gains == pytest.approx(other.gains, abs=1e-5)


def test_a_network_without_a_table_of_embeddings_is_refused():
    network, gradients = bag_of_tokens()
    trigger = some_trigger(gradients, "prefix")
    network.model.get_input_embeddings = lambda: nn.Embedding(500, 4)
    network.model.config = SimpleNamespace(model_type="bag")
    with pytest.raises(ModelError, match="table of input embeddings"):
        gradients.flips(*texts_with(trigger), top=1)
