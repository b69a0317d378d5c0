"""Integrated gradients: known values on a linear model, completeness on every architecture, pieces that give back the text."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch import nn

from rewardsmith.config import ScoringSettings, TrainSettings
from rewardsmith.data.embedded import embedded_preferences
from rewardsmith.data.golden import INPUTS
from rewardsmith.data.words import prompt_text, word_spans
from rewardsmith.errors import ModelError
from rewardsmith.evaluation.occlusion import choose, without
from rewardsmith.model.artefact import save
from rewardsmith.model.attribution import STEPS, IntegratedGradients, rule, word_values
from rewardsmith.model.features import FrozenEncoder
from rewardsmith.model.modeling_rewardsmith import ScoreHead, pool
from rewardsmith.model.network import Network, build_network, load_tokenizer
from rewardsmith.model.padding import give_pad_token
from rewardsmith.model.render import Renderer, RenderSpec, with_end_token
from rewardsmith.model.reward_model import RewardModel
from rewardsmith.model.token_places import PlacedRenderer
from rewardsmith.scores import Attributions
from tests.conftest import FAMILIES
from tests.tiny_models import CHAT_TEMPLATE, save_tiny, tiny_tokenizer

CPU = torch.device("cpu")
DECODERS = ("gemma", "gemma2", "gemma3_text", "gpt2", "gpt_neox", "llama", "mistral", "olmo2", "phi", "qwen3")
# Short, several scripts, code, a conversation, a conversation that is cut, an answer that is cut, look-alikes of special tokens.
SOME = [INPUTS[i] for i in (0, 6, 8, 11, 12, 13, 15, 10)]


class BagOfTokens(nn.Module):
    """A linear model: the head over the mean of the embeddings, which no layer changes."""

    def __init__(self, num_rows, *, power=1):
        """Random weights of the seed 0; the score is raised to a power."""
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.table, self.score, self.power = nn.Embedding(num_rows, 4), ScoreHead(4, 1), power
        with torch.no_grad():
            self.table.weight.copy_(torch.randn(num_rows, 4, generator=generator))
            self.score.weight.copy_(torch.randn(1, 4, generator=generator))

    def get_input_embeddings(self):
        return self.table

    def forward(self, input_ids, attention_mask):
        states = self.table(input_ids)
        return SimpleNamespace(logits=self.score(pool(states, attention_mask, "mean")) ** self.power)


def bag_of_tokens(**more):
    tokenizer = tiny_tokenizer("bert")
    model = BagOfTokens(len(tokenizer), **more)
    network = Network(model, "score", "mean", False, "loaded", "as written")
    return network, IntegratedGradients(network, Renderer(tokenizer, RenderSpec()), device=CPU, batch_tokens=4096)


def holds_together(found, pairs, scores):
    """The score is the engine's, values and gap add up to it, and the pieces are the texts."""
    for (prompt, answer), one, score in zip(pairs, found, scores, strict=True):
        assert abs(one.score - score) <= 1e-5 * max(1.0, abs(score))
        values = [value for _, value in (*one.tokens, *one.prompt_tokens) if value is not None]
        assert one.baseline + sum(values) + one.frame + one.gap == pytest.approx(one.score, abs=1e-12)
        assert one.sum == pytest.approx(sum(values) + one.frame, abs=1e-12)
        assert "".join(piece for piece, _ in one.tokens) == answer
        assert "".join(piece for piece, _ in one.prompt_tokens) == prompt_text(prompt)
        assert all(piece for piece, _ in (*one.tokens, *one.prompt_tokens))


def is_complete(one):
    change = abs(one.score - one.baseline)
    return abs(one.gap) <= 0.01 * change + 1e-5 * max(1.0, abs(one.score))


def test_the_rule_is_exact_on_polynomials_and_uses_its_points_again():
    for steps in STEPS:
        positions, weights = rule(steps)
        # The integral of a^d over [0, 1] is 1 / (d + 1); as 2 t^(2 d + 1) in t it is of degree steps - 1 at most.
        for degree in range(steps // 2):
            assert weights @ np.array(positions) ** degree == pytest.approx(1 / (degree + 1), abs=1e-12)
        assert set(positions) <= set(rule(2 * steps)[0]) and positions[0] == 0 and positions[-1] == 1


@pytest.mark.parametrize("pad_row", ["ordinary", "zero"])
def test_values_on_a_linear_model_are_weight_times_what_the_token_adds(pad_row):
    network, method = bag_of_tokens()
    if pad_row == "zero":
        with torch.no_grad():
            network.model.table.weight[0] = 0
    pair = ("say hi", "Hi there")
    (found,) = method.attribute([pair])
    ids = method.renderer.encode([pair]).row(0)
    table, weight = network.model.table.weight.detach().double(), network.model.score.weight.detach().double()[0]
    # score = w . mean(e_i) over the T tokens, so a token adds w . (e_i - b) / T, with b the row of the pad token, or the mean row where that is 0.
    baseline, name = (table[0], "the pad token") if pad_row == "ordinary" else (table.mean(0), "the mean embedding")
    expected = ((table[torch.tensor(ids).long()] - baseline) @ weight / len(ids)).numpy()
    assert found.method == f"integrated gradients from {name}, 8 steps"
    places = method._placed.placed(pair).places
    by_slot = {
        slot: [v for v, place in zip(expected, places, strict=True) if place and place.slot == slot] for slot in (0, -2)
    }
    assert [piece for piece, _ in found.prompt_tokens] == ["say", " hi"] and [piece for piece, _ in found.tokens] == [
        "Hi",
        " there",
    ]
    # "hi" is one token in prompt and answer, "say" and "there" are spelt.
    of_prompt, of_answer = by_slot[0], by_slot[-2]
    assert [v for _, v in found.prompt_tokens] == pytest.approx([sum(of_prompt[:-1]), of_prompt[-1]], abs=1e-6)
    assert [v for _, v in found.tokens] == pytest.approx([of_answer[0], sum(of_answer[1:])], abs=1e-6)
    assert abs(found.gap) < 1e-6 and found.frame == 0 and found.num_readings == STEPS[0] + 1


def test_a_curved_model_is_complete_where_one_point_is_not():
    network, method = bag_of_tokens(power=3)
    (found,) = method.attribute([INPUTS[0]])
    # A polynomial of degree 3 along the path: the rule of 8 steps is exact, up to float32.
    assert abs(found.gap) <= 1e-5 * max(1, abs(found.score)) and found.num_readings == 9
    # Gradient times input is the same with one point, the text itself: off by far.
    change, gradient = found.score - found.baseline, 3 * found.score ** (2 / 3) * np.sign(1)
    one_point = abs(gradient) * abs(np.cbrt(found.score) - np.cbrt(found.baseline))
    assert abs(abs(change) - one_point) > 0.1 * abs(change)


@pytest.fixture(scope="module")
def decoder_rm(tmp_path_factory):
    """decoder_rm("gpt2") is a saved reward model of that family, with a pad token and an end token."""

    def build(family):
        folder = tmp_path_factory.mktemp(family)
        network = build_network(str(save_tiny(family, folder / "base")), pooling="auto", seed=1, dropout=False)
        tokenizer = load_tokenizer(str(folder / "base"))
        give_pad_token(network, tokenizer)
        with torch.no_grad():
            network.head_module.weight.mul_(3)
        template = with_end_token(RenderSpec().template, tokenizer)
        save(
            network,
            Renderer(tokenizer, RenderSpec(template=template, max_length=64)),
            folder / "rm",
            training_dtype="float32",
            manifest={},
        )
        return folder / "rm"

    return build


VARIANTS = [
    *((family, "auto", "text") for family in FAMILIES if family != "qwen2"),
    ("qwen2", "auto", "chat"),
    *((family, "decoder", "text") for family in DECODERS),
    ("bert", "cls", "pair"),
    ("electra", "native", "text"),
    ("roberta", "native", "pair"),
    ("modernbert", "native", "text"),
    ("qwen2", "mean", "text"),
]


@pytest.mark.parametrize(("family", "pooling", "encoding"), VARIANTS)
def test_every_architecture_is_complete_and_keeps_its_score(family, pooling, encoding, tiny_rm, decoder_rm):
    folder = decoder_rm(family) if pooling == "decoder" else tiny_rm(family, pooling, encoding)
    model, pairs = RewardModel.load(folder), [INPUTS[6], INPUTS[12], INPUTS[15]]
    scores = model.score(pairs)
    assert isinstance(model.attributions, Attributions)
    found = model.attributions.attribute(pairs)
    holds_together(found, pairs, scores)
    assert all(map(is_complete, found)), [(one.gap, one.num_readings) for one in found]
    assert max(abs(one.score - one.baseline) for one in found) > 1e-3, "a constant scorer would pass this test"
    assert model.score(pairs) == pytest.approx(scores, abs=0) and not model.network.model.training
    assert all(parameter.grad is None for parameter in model.network.model.parameters())


def test_a_network_with_adapters_is_complete(tiny):
    pytest.importorskip("peft")
    from rewardsmith.model.scoring import score_tokens
    from rewardsmith.model.trained_parts import choose_trained

    network = build_network(tiny("bert"), pooling="auto", seed=0, dropout=False)
    renderer = Renderer(load_tokenizer(tiny("bert")), RenderSpec(max_length=64))
    settings = TrainSettings(model="m", data="d", out="o", lora={"rank": 4, "alpha": 8})
    choose_trained(network, settings, pins_level=False)
    with torch.no_grad():
        for name, parameter in network.model.named_parameters():
            if "lora_" in name or name.startswith("classifier"):
                parameter.add_(torch.ones_like(parameter) * 0.3)
    network.model.train()
    found = IntegratedGradients(network, renderer, device=CPU, batch_tokens=4096).attribute(SOME[:2])
    assert network.model.training
    scores = score_tokens(network, renderer.encode(SOME[:2]), pad_id=0, with_types=False, device=CPU)
    holds_together(found, SOME[:2], scores)
    assert all(map(is_complete, found))


def test_company_and_the_size_of_batches_do_not_move_a_value(tiny_rm):
    folder = tiny_rm("bert")
    together = RewardModel.load(folder).attributions.attribute(SOME)
    alone = RewardModel.load(folder, ScoringSettings(batch_tokens=1, precision="bf16")).attributions
    rows = []
    alone.network.model.get_input_embeddings().register_forward_hook(lambda *call: rows.append(len(call[2])))
    for one, other in zip(together, alone.attribute(SOME), strict=True):
        # bf16 is for scores: gradients are of the weights in float32.
        values = [[value or 0.0 for _, value in found.tokens + found.prompt_tokens] for found in (one, other)]
        assert values[0] == pytest.approx(values[1], abs=1e-5)
    assert set(rows) == {1}


@pytest.mark.parametrize("family", ["bert", "roberta", "deberta-v2", "qwen2", "gpt2", "llama"])
@pytest.mark.parametrize("max_length", [56, 512])
def test_words_give_back_the_text_and_the_sum_of_their_tokens(family, max_length):
    """Wordpiece, byte-level and sentencepiece; ids are the renderer's, and every token of a text falls to one of its words."""
    renderer = Renderer(tiny_tokenizer(family), RenderSpec(max_length=max_length))
    placed = PlacedRenderer(renderer.tokenizer, renderer.spec)
    table = renderer.encode(INPUTS)
    for i, (prompt, answer) in enumerate(INPUTS):
        text = placed.placed((prompt, answer))
        assert text.ids == table.row(i).tolist()
        assert bool(text.ends) == bool(table.truncated[i]) and (-2 in text.ends) == bool(table.answer_cut[i])
        tokens = [(p.start, p.end, 2.0**-k) for k, p in enumerate(p for p in text.places if p and p.slot == -2)]
        pieces = word_values(answer, tokens, text.ends.get(-2))
        assert "".join(piece for piece, _ in pieces) == answer
        assert sum(value or 0 for _, value in pieces) == pytest.approx(sum(value for _, _, value in tokens))


def test_words_of_other_scripts_are_the_tokens_that_the_model_reads():
    text = "\u6771\u4eac\u3067\u3059\u3002 ok"
    # One token of two characters, three of one: the two are one piece.
    tokens = [(0, 2, 1.0), (2, 3, 2.0), (3, 4, 4.0), (4, 5, 8.0), (6, 8, 16.0)]
    assert word_values(text, tokens) == [
        ("\u6771\u4eac", 1.0), ("\u3067", 2.0), ("\u3059", 4.0), ("\u3002", 8.0), (" ok", 16.0)
    ]  # fmt: skip
    # Four bytes of one character are four tokens of the same place.
    assert word_values("a \U0001f600", [(0, 1, 1.0), *[(1, 3, 0.5)] * 4]) == [("a", 1.0), (" \U0001f600", 2.0)]
    # A token of several words joins them.
    assert word_values("f(x) y", [(0, 3, 1.0), (3, 6, 2.0)]) == [("f(x", 1.0), (") y", 2.0)]
    # White space at the end of a sign's token is not the next word.
    assert word_values("a.\n\nb", [(0, 1, 1.0), (1, 4, 2.0), (4, 5, 4.0)]) == [("a", 1.0), (".", 2.0), ("\n\nb", 4.0)]


def test_what_was_cut_has_no_value(tiny_rm):
    model = RewardModel.load(tiny_rm("bert"))
    turns = [("user", "Go on."), ("assistant", "word " * 80), ("user", "And then?")]
    prompt = [{"role": role, "content": content} for role, content in turns]
    pairs = [("Tell me.", "never again " * 60), (prompt, "No.")]
    long_answer, long_prompt = model.attributions.attribute(pairs)
    tokens = model.renderer.tokenizer(pairs[0][1], add_special_tokens=False, return_offsets_mapping=True)
    num_read = len(tokens["input_ids"]) - model.table(pairs).answer_cut[0]
    last_end = tokens["offset_mapping"][num_read - 1][1]
    assert long_answer.tokens[-1] == (pairs[0][1][last_end:], None) and 100 < last_end < 600
    assert all(value is not None for _, value in long_answer.tokens[:-1])
    # The oldest turn goes whole, the next one loses its end, the last one stays.
    values = [value for _, value in long_prompt.prompt_tokens]
    assert long_prompt.prompt_tokens[0] == ("Go on.\n\n", None) and values.count(None) == 2
    assert values[1] is not None and None not in values[-3:] and long_prompt.prompt_tokens[-1][0] == "?"


def test_an_answer_that_is_empty_has_no_pieces(tiny_rm):
    model = RewardModel.load(tiny_rm("bert"))
    empty, blank = model.attributions.attribute([("Say nothing.", ""), ("Say nothing.", "  ")])
    assert empty.tokens == [] and blank.tokens == [("  ", 0.0)]
    assert is_complete(empty) and model.attributions.attribute([]) == []
    assert is_complete(model.attributions.attribute([("", "")])[0])


@pytest.mark.parametrize("encoding", ["text", "chat", "pair"])
@pytest.mark.parametrize("max_length", [48, 512])
def test_a_token_stands_for_the_characters_that_it_spells(encoding, max_length):
    """Turns with roles before them, white space that a chat template trims, look-alikes of control tokens, which are tokenised in pieces, and cuts."""
    tokenizer = tiny_tokenizer("roberta" if encoding == "pair" else "qwen2")
    tokenizer.chat_template = CHAT_TEMPLATE.replace("m['content']", "m['content'] | trim")
    placed = PlacedRenderer(tokenizer, RenderSpec(encoding=encoding, max_length=max_length))
    turns = ["  Go on, and say what <|end|> means. ", "User: that it ends <|end|>.", "Then use it, please. " * 2]
    prompt = [{"role": role, "content": turn} for role, turn in zip(("user", "assistant", "user"), turns, strict=True)]
    answer = " It ends a turn: <|end|> and <|start|> are two of them.\n"
    text = placed.placed((prompt, answer))
    contents = dict(enumerate(turns)) | {-2: answer}
    slots = set()
    for token, place in zip(text.ids, text.places, strict=True):
        if place is not None:
            assert tokenizer.decode([token]).strip() == contents[place.slot][place.start : place.end].strip()
            slots.add(place.slot)
    assert slots >= ({0, 1, 2, -2} if max_length == 512 else {2, -2}) and bool(text.ends) == (max_length == 48)


def test_a_template_that_ends_inside_a_token_gives_it_to_the_text():
    # " Hello" is one byte-level token of which the template wrote the space.
    spec = RenderSpec(template="{prompt} {answer}")
    placed = PlacedRenderer(tiny_tokenizer("gpt2"), spec).placed(("What", "the"))
    assert [place for place in placed.places if place][-1] == (-2, 0, 3)


def test_a_network_without_a_table_of_embeddings_is_refused():
    network, method = bag_of_tokens()
    network.model.get_input_embeddings = lambda: nn.Embedding(500, 4)
    network.model.config = SimpleNamespace(model_type="bag")
    with pytest.raises(ModelError, match="table of input embeddings"):
        method.attribute([("say hi", "Hi there")])


def test_an_exported_model_has_its_words_taken_out(tiny_rm):
    model = RewardModel.load(tiny_rm("bert"))

    class Elsewhere:
        precision = "float32"

        def outputs(self, tokens):
            return model.backend.outputs(tokens)

    exported = RewardModel(Elsewhere(), model.renderer, model.contract)
    assert exported.attributions is None
    assert type(choose(exported)[0]).__name__ == "Occlusion"
    chosen, reason = choose(model)
    assert isinstance(chosen, IntegratedGradients) and "the model brings its own" in reason


@pytest.mark.slow
def test_removing_the_words_named_as_best_lowers_the_score_more_than_removing_others(minilm, tmp_path):
    """On the real MiniLM with a head fitted to the demo pairs: a fifth of the words, against five random draws of as many, on 20 answers."""
    pairs, encoder = embedded_preferences(), FrozenEncoder("minilm", max_length=128)
    fitted = pairs[::3][:300]
    differences = encoder.features([p.chosen_pair for p in fitted]) - encoder.features(
        [p.rejected_pair for p in fitted]
    )
    labels = np.repeat([1, 0], len(fitted))
    head = LogisticRegression(fit_intercept=False, max_iter=2000).fit(
        np.concatenate([differences, -differences]), labels
    )
    network = build_network(minilm, pooling="mean", seed=1, dropout=False)
    with torch.no_grad():
        network.head_module.weight.copy_(torch.from_numpy(head.coef_))
    renderer = Renderer(load_tokenizer(minilm), RenderSpec(max_length=128))
    save(network, renderer, tmp_path / "rm", training_dtype="float32", manifest={})
    model, rng = RewardModel.load(tmp_path / "rm"), np.random.default_rng(0)
    known = {prompt_text(pair.prompt) for pair in fitted}
    sides = [
        side for p in pairs[900:] for side in (p.chosen_pair, p.rejected_pair) if prompt_text(p.prompt) not in known
    ]
    others = {answer: (prompt, answer) for prompt, answer in sides if isinstance(prompt, str)}
    judged = [pair for pair in others.values() if len(word_spans(pair[1])) >= 12 and len(pair[1]) < 200][::3][:20]
    texts = []
    for (prompt, answer), one in zip(judged, model.attributions.attribute(judged), strict=True):
        assert is_complete(one)
        ends = np.cumsum([len(piece) for piece, _ in one.tokens])
        starts, num_removed = ends - [len(piece) for piece, _ in one.tokens], len(ends) // 5
        best = np.argsort([-value for _, value in one.tokens])[:num_removed]
        for removed in (best, *(rng.choice(len(ends), num_removed, replace=False) for _ in range(5))):
            left = answer
            for k in sorted(removed, reverse=True):
                left = without(left, int(starts[k]), int(ends[k]))
            texts.append((prompt, left))
    assert len(judged) == 20
    drops = model.score(judged)[:, None].astype(float) - model.score(texts).reshape(20, 6)
    more = drops[:, 0] - drops[:, 1:].mean(axis=1)
    # Were it chance, 16 of 20 would happen once in 170 times (binomial).
    assert (more > 0).sum() >= 16 and more.mean() > 3 * more.std() / np.sqrt(20)
