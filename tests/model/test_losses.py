"""Losses against hand arithmetic, finite differences, and the parameters behind simulated choices."""

import math
from typing import get_args

import numpy as np
import pytest
import torch
from torch.func import functional_call

from rewardsmith.config import LossName, LossSettings
from rewardsmith.data.schema import Group, Preference
from rewardsmith.errors import DataError, SettingsError
from rewardsmith.model.losses import (
    LOSSES,
    Labels,
    batch_loss,
    bradley_terry,
    davidson,
    flip_noise,
    free_of_positive,
    plackett_luce,
    positive,
    rao_kupper,
    soft_bradley_terry,
)

LN2, LN3 = math.log(2), math.log(3)
PAIR_LOSSES = ("bradley_terry", "rao_kupper", "davidson", "vote_share", "flip_noise")
NAN = math.nan
# Two pairs, chosen before rejected: d = 1 and -1.
TWO_PAIRS = torch.tensor([[1.0], [0.0], [0.5], [1.5]], dtype=torch.float64)
TWO = torch.tensor([2, 2])


def softplus(x):
    return math.log1p(math.exp(x))


def doubles(values):
    return torch.tensor(values, dtype=torch.float64)


def pair(identity, **labels):
    return Preference(identity, "prompt", "good", "bad", **labels)


def ranked(identity, count):
    return Group(identity, "prompt", tuple("abcdefgh"[:count]), "ranked")


def rated(identity, *ratings, **columns):
    count = len(ratings) or len(next(iter(columns.values())))
    metadata = {"per_answer": columns} if columns else {}
    return Group(identity, "prompt", tuple("abcdefgh"[:count]), "rated", ratings or None, metadata)


TIED = [pair("a", tie=True, votes=(3, 1)), pair("b", votes=(2, 0)), pair("c", votes=(0, 3))]
DATA = {
    **dict.fromkeys(PAIR_LOSSES, TIED),
    "plackett_luce": [ranked("l", 3)],
    "regression": [rated("r", 1.0, 2.0), rated("s", 6.0)],
    "ordinal": [rated("o", 0.0, 1.0), rated("p", 0.0, 2.0)],
    "attributes": [rated("x", correct=[4, 0], clear=[1, None]), rated("y", correct=[2], clear=[2])],
}


def settings_of(name, **more):
    if name == "attributes":
        more = {"attributes": {"correct": 1.0, "clear": -0.5}} | more
    return LossSettings(name=name, **more)


def objective(name, data=None, **more):
    settings, data = settings_of(name, **more), DATA[name] if data is None else data
    LOSSES[name].check(settings, data)
    return LOSSES[name].build(settings, data).double()


def example(name):
    """Outputs and labels of three examples for any loss."""
    generator = torch.Generator().manual_seed(0)
    if name in PAIR_LOSSES:
        outputs = torch.randn(6, 1, generator=generator, dtype=torch.float64)
        labels = Labels(
            torch.tensor([2, 2, 2]),
            margin=doubles([0.3, 0.0, 1.0]),
            share=doubles([0.8, 1.0, 0.5]),
            tie=torch.tensor([False, False, True]),
            votes=doubles([[4, 1], [1, 0], [1, 1]]),
        )
        return outputs, labels
    columns = 2 if name == "attributes" else 1
    outputs = torch.randn(7, columns, generator=generator, dtype=torch.float64)
    rating = doubles([[2, 0], [1, NAN], [1, 4], [0, 0], [NAN, NAN], [2, 1], [0, 3]])[:, :columns]
    return outputs, Labels(torch.tensor([4, 1, 2]), rating=rating)


def test_every_loss_of_the_settings_is_there():
    assert set(LOSSES) == set(get_args(LossName)) == set(DATA)
    assert {name for name, kind in LOSSES.items() if kind.data == "pairs"} == set(PAIR_LOSSES)


def test_each_loss_says_which_labels_it_reads():
    reads = {name: set(kind.reads) - {"weight"} for name, kind in LOSSES.items()}
    assert reads["bradley_terry"] == {"margin", "votes", "tie"}
    assert reads["rao_kupper"] == reads["davidson"] == reads["flip_noise"] == {"tie"}
    assert reads["vote_share"] == {"votes"} and reads["plackett_luce"] == {"ratings"}
    assert {name for name, kind in LOSSES.items() if "weight" in kind.reads} == set(PAIR_LOSSES)


def test_ties_belong_in_the_dev_part_of_losses_that_give_them_a_likelihood():
    # Of votes a labelled tie is what its votes say; Bradley-Terry and flip noise only make it half a pair each way.
    assert {name for name, kind in LOSSES.items() if kind.models_ties} == {"rao_kupper", "davidson", "vote_share"}


# Bradley-Terry


def test_bradley_terry_by_hand():
    # d = 1, -1: log(1 + e^-1) = 0.313262, log(1 + e) = 1.313262; mean 0.813262
    losses = objective("bradley_terry")(TWO_PAIRS, Labels(TWO))
    assert losses.tolist() == pytest.approx([0.3132617, 1.3132617], abs=1e-6)
    assert batch_loss(losses, None).item() == pytest.approx(0.8132617, abs=1e-6)


def test_weights_are_relative_to_the_batch_size():
    # (2 * 3 + 0.5 * 4) / 2
    assert batch_loss(doubles([3.0, 4.0]), doubles([2.0, 0.5])).item() == pytest.approx(4.0)


def test_margin_shifts_the_difference_unless_it_is_turned_off():
    # d - m = 1 - 0.5, -1 - 2
    labels = Labels(TWO, margin=doubles([0.5, 2.0]))
    assert objective("bradley_terry")(TWO_PAIRS, labels).tolist() == pytest.approx([softplus(-0.5), softplus(3.0)])
    off = objective("bradley_terry", margin=False)(TWO_PAIRS, labels)
    assert off.tolist() == pytest.approx([softplus(-1.0), softplus(1.0)])


def test_label_smoothing_mixes_both_directions():
    losses = objective("bradley_terry", label_smoothing=0.1)(TWO_PAIRS, Labels(TWO))
    # 0.9 softplus(-d) + 0.1 softplus(d)
    assert losses.tolist() == pytest.approx([0.9 * softplus(-d) + 0.1 * softplus(d) for d in (1.0, -1.0)])


def test_label_smoothing_bounds_the_margin():
    """The minimum is at ln((1 - e) / e) = ln 9 = 2.197 for e = 0.1."""
    smoothed = objective("bradley_terry", label_smoothing=0.1)
    scores = doubles([[math.log(9)], [0.0]]).requires_grad_()
    smoothed(scores, Labels(torch.tensor([2]))).sum().backward()
    assert scores.grad.abs().max().item() == pytest.approx(0.0, abs=1e-12)


def test_vote_shares_and_ties():
    # q = 0.75: 0.75 * 0.313262 + 0.25 * 1.313262; q = 0.5 (a tie) at d = -1: (1.313262 + 0.313262) / 2
    expected = [0.75 * softplus(-1) + 0.25 * softplus(1), 0.5 * softplus(1) + 0.5 * softplus(-1)]
    model = objective("bradley_terry")
    assert model(TWO_PAIRS, Labels(TWO, share=doubles([0.75, 0.5]))).tolist() == pytest.approx(expected)
    # A labelled tie is a share of one half, whatever the votes say.
    tie = torch.tensor([False, True])
    assert model(TWO_PAIRS, Labels(TWO, share=doubles([0.75, 0.9]), tie=tie)).tolist() == pytest.approx(expected)
    assert model(TWO_PAIRS, Labels(TWO, tie=tie)).tolist() == pytest.approx([softplus(-1), expected[1]])
    # A share of one half is smallest at a margin of 0, where it is ln 2.
    losses = soft_bradley_terry(doubles([-0.1, 0.0, 0.1]), doubles([0.5, 0.5, 0.5]))
    assert losses[1].item() == pytest.approx(LN2) and losses[1] < losses[0] and losses[1] < losses[2]


@pytest.mark.parametrize("name", PAIR_LOSSES)
def test_centring_penalises_the_sum_not_the_difference(name):
    labels = Labels(TWO, votes=doubles([[1, 0], [0, 1]]))
    plain, centred = objective(name), objective(name, centring=0.01)
    # (1 + 0)^2 = 1, (0.5 + 1.5)^2 = 4
    added = centred(TWO_PAIRS, labels) - plain(TWO_PAIRS, labels)
    assert added.tolist() == pytest.approx([0.01, 0.04])
    assert centred.pins_level and not plain.pins_level


def test_dev_losses_leave_out_smoothing_margin_and_centring_but_keep_votes():
    labels = Labels(TWO, margin=doubles([0.5, 2.0]), share=doubles([1.0, 0.75]))
    found = objective("bradley_terry", label_smoothing=0.2, centring=0.5).dev_losses(TWO_PAIRS, labels)
    assert found.tolist() == pytest.approx([softplus(-1), 0.75 * softplus(1) + 0.25 * softplus(-1)])


# Ties, votes, flips


def test_rao_kupper_by_hand():
    # theta = e^t = 2. Equal answers: win 1 / (1 + 2) = 1/3 each way, tie 1/3. Worths 2 and 1: win 2 / (2 + 2) = 1/2, loss 1 / (1 + 4) = 1/5, tie 3/10.
    difference = doubles([0.0, 0.0, LN2, -LN2, LN2])
    tie = torch.tensor([False, True, False, False, True])
    found = torch.exp(-rao_kupper(difference, tie, doubles(LN2)))
    assert found.tolist() == pytest.approx([1 / 3, 1 / 3, 1 / 2, 1 / 5, 3 / 10])


def test_davidson_by_hand():
    # nu = 1/2. Worths 4 and 1: sqrt(4 * 1) = 2, so 4 : 1 : 1/2 * 2, that is 4/6, 1/6 and a tie 1/6. Equal ones: 1 : 1 : 1/2.
    difference = doubles([math.log(4), -math.log(4), math.log(4), 0.0, 0.0])
    tie = torch.tensor([False, False, True, False, True])
    found = torch.exp(-davidson(difference, tie, doubles(math.log(0.5))))
    assert found.tolist() == pytest.approx([4 / 6, 1 / 6, 1 / 6, 2 / 5, 1 / 5])


@pytest.mark.parametrize(("name", "parameter", "start"), [("rao_kupper", "threshold", LN2), ("davidson", "nu", 1.0)])
def test_a_network_that_knows_nothing_starts_with_the_share_of_ties(name, parameter, start):
    # One tie in three pairs: at d = 0 every outcome has 1/3, which is theta = 2 (see above), and nu = 1.
    model = objective(name)
    assert model.learned() == {parameter: pytest.approx(start, rel=1e-5)}
    losses = model(torch.zeros(4, 1, dtype=torch.float64), Labels(TWO, tie=torch.tensor([True, False])))
    assert losses.tolist() == pytest.approx([LN3, LN3], rel=1e-5)


@pytest.mark.parametrize("name", ["rao_kupper", "davidson"])
def test_outcomes_have_a_probability_of_one_together(name):
    model = objective(name)
    d = torch.linspace(-30, 30, 13, dtype=torch.float64)
    won = model.likelihood(d, Labels(TWO))
    lost = model.likelihood(-d, Labels(TWO))
    tied = model.likelihood(d, Labels(TWO, tie=torch.ones(13, dtype=torch.bool)))
    assert sum(torch.exp(-losses) for losses in (won, lost, tied)).tolist() == pytest.approx([1.0] * 13)


def test_votes_count_one_by_one():
    # (3, 1) at d = 1, (0, 3) at d = -1; the training data have (4 + 2 + 3) / 3 = 3 votes a pair.
    votes = doubles([[3, 1], [0, 3]])
    expected = [(3 * softplus(-1) + softplus(1)) / 3, 3 * softplus(-1) / 3]
    assert objective("vote_share")(TWO_PAIRS, Labels(TWO, votes=votes)).tolist() == pytest.approx(expected)
    # A labelled tie is what its votes say.
    tied = Labels(TWO, votes=votes, tie=torch.tensor([True, True]))
    assert objective("vote_share")(TWO_PAIRS, tied).tolist() == pytest.approx(expected)


def test_flip_noise_by_hand():
    # sigmoid(ln 3) = 3/4: 0.9 * 3/4 + 0.1 * 1/4 = 0.7, and the other way round 0.3
    found = flip_noise(doubles([LN3, -LN3]), 0.1)
    assert torch.exp(-found).tolist() == pytest.approx([0.7, 0.3])
    model = objective("flip_noise", flip_rate=0.1)
    outputs = doubles([[LN3], [0.0], [LN3], [0.0]])
    losses = model(outputs, Labels(TWO, tie=torch.tensor([False, True])))
    # A tie is half a pair each way.
    assert losses.tolist() == pytest.approx([-math.log(0.7), -(math.log(0.7) + math.log(0.3)) / 2])


def test_flip_noise_lets_a_contradicted_pair_go():
    difference = doubles([-20.0]).requires_grad_()
    flip_noise(difference, 0.1).sum().backward()
    # The loss is -log(0.1 + 0.8 sigmoid(-20)): flat. Bradley-Terry would pull with -1.
    assert abs(difference.grad.item()) < 1e-7


# Lists and ratings


def test_plackett_luce_by_hand():
    # Worths 4, 2, 1 in this order: 4/7, then 2/3. The mean of two terms.
    scores = doubles([math.log(4), math.log(2), 0.0])
    found = plackett_luce(scores, doubles([3, 2, 1]), torch.tensor([3]))
    assert found.tolist() == pytest.approx([-(math.log(4 / 7) + math.log(2 / 3)) / 2])
    # The other way round: 1/7, then 2/6.
    found = plackett_luce(scores, doubles([1, 2, 3]), torch.tensor([3]))
    assert found.tolist() == pytest.approx([-(math.log(1 / 7) + math.log(2 / 6)) / 2])


def test_tied_answers_of_a_list_are_compared_with_the_lower_ones_alone():
    scores = doubles([math.log(4), math.log(2), 0.0])
    # 4 over 1: 4/5; 2 over 1: 2/3.
    found = plackett_luce(scores, doubles([5, 5, 3]), torch.tensor([3]))
    assert found.tolist() == pytest.approx([-(math.log(4 / 5) + math.log(2 / 3)) / 2])
    # One best answer: 4/7, one term. An answer without a rating takes no part: 4/5.
    found = plackett_luce(scores.repeat(2), doubles([5, 3, 3, 5, NAN, 3]), torch.tensor([3, 3]))
    assert found.tolist() == pytest.approx([-math.log(4 / 7), -math.log(4 / 5)])


def test_a_list_without_an_order_has_no_loss_and_no_gradient():
    scores = doubles([1.0, 2.0, 3.0]).requires_grad_()
    found = plackett_luce(scores, doubles([2, 2, 2]), torch.tensor([3]))
    found.sum().backward()
    assert found.tolist() == [0.0] and scores.grad.tolist() == [0.0, 0.0, 0.0]


def test_a_list_of_two_is_bradley_terry():
    found = objective("plackett_luce")(TWO_PAIRS, Labels(TWO, rating=doubles([[2], [1], [2], [1]])))
    assert found.tolist() == pytest.approx(bradley_terry(doubles([1.0, -1.0])).tolist())


def test_regression_is_the_mean_squared_error_of_an_examples_answers():
    model = objective("regression")
    labels = Labels(torch.tensor([2, 1, 1]), rating=doubles([[1], [3], [5], [NAN]]))
    # ((2 - 1)^2 + (0 - 3)^2) / 2 = 5, (1 - 5)^2 = 16; an unknown rating has no loss.
    assert model(doubles([[2], [0], [1], [9]]), labels).tolist() == pytest.approx([5.0, 16.0, 0.0])
    # (1 + 2 + 6) / 3
    assert model.initial_bias().tolist() == pytest.approx([3.0]) and model.pins_level


def test_attributes_mask_what_is_unknown_and_reduce_as_declared():
    model = objective("attributes")
    outputs = doubles([[1.0, 2.0], [3.0, 4.0]])
    # The first answer has both attributes, the second one: ((1 - 0)^2 + (2 - 4)^2 + (3 - 6)^2) / 3 = 14 / 3.
    labels = Labels(torch.tensor([2]), rating=doubles([[0, 4], [6, NAN]]))
    assert model(outputs, labels).tolist() == pytest.approx([14 / 3])
    # Weights 1 and -1/2: 1 - 1 = 0, 3 - 2 = 1.
    assert model.score(outputs).tolist() == pytest.approx([0.0, 1.0])
    # correct: (4 + 0 + 2) / 3; clear: (1 + 2) / 2
    assert model.num_outputs == 2 and model.initial_bias().tolist() == pytest.approx([2.0, 1.5])


def test_an_unknown_attribute_has_a_gradient_of_zero():
    outputs = torch.zeros(1, 2, dtype=torch.float64, requires_grad=True)
    objective("attributes")(outputs, Labels(torch.tensor([1]), rating=doubles([[NAN, 3]]))).sum().backward()
    # d/do (o - 3)^2 = -6
    assert outputs.grad.tolist() == [[0.0, -6.0]]


def test_ordinal_by_hand():
    # Levels 0, 0, 1, 2: thresholds logit(1/2) = 0 and logit(3/4) = ln 3.
    model = objective("ordinal")
    assert model.learned() == {"levels": [0.0, 1.0, 2.0], "thresholds": pytest.approx([0.0, LN3], abs=1e-6)}
    labels = Labels(torch.tensor([1] * 6), rating=doubles([[0], [1], [2], [0], [1], [2]]))
    # s = 0: 1/2, 3/4 - 1/2, 1 - 3/4. s = ln 3: sigmoid(-ln 3) = 1/4, sigmoid(0) - 1/4, 1 - 1/2.
    losses = model(doubles([[0], [0], [0], [LN3], [LN3], [LN3]]), labels)
    assert torch.exp(-losses).tolist() == pytest.approx([1 / 2, 1 / 4, 1 / 4, 1 / 4, 1 / 4, 1 / 2], rel=1e-5)


def test_two_levels_are_logistic_regression():
    model = objective("ordinal", [rated("a", 0.0, 1.0)])
    losses = model(doubles([[1.0], [1.0]]), Labels(torch.tensor([1, 1]), rating=doubles([[1], [0]])))
    assert losses.tolist() == pytest.approx([softplus(-1.0), softplus(1.0)])


def test_a_rating_that_training_never_saw_is_the_nearest_level():
    model = objective("ordinal")
    scores, sizes = doubles([[0.3]] * 4), torch.ones(4, dtype=torch.int64)
    seen = model(scores, Labels(sizes, rating=doubles([[0], [0], [1], [2]])))
    unseen = model(scores, Labels(sizes, rating=doubles([[-7], [0.5], [1.4], [9]])))
    assert unseen.tolist() == seen.tolist()


@pytest.mark.parametrize("name", ["regression", "ordinal", "attributes", "plackett_luce"])
def test_only_squared_errors_pin_the_level_among_losses_of_groups(name):
    model = objective(name)
    assert model.pins_level == (name in ("regression", "attributes"))
    if not model.pins_level:
        assert model.initial_bias().tolist() == [0.0]


# What all of them keep


@pytest.mark.parametrize("name", LOSSES)
def test_gradients_equal_finite_differences(name):
    variants = [{}, {"centring": 0.1}] if name in PAIR_LOSSES else [{}]
    if name == "bradley_terry":
        variants.append({"label_smoothing": 0.2, "centring": 0.1})
    outputs, labels = example(name)
    for more in variants:
        model = objective(name, **more)
        names = list(dict(model.named_parameters()))

        def losses(outputs, *values, model=model, names=names):
            return functional_call(model, dict(zip(names, values, strict=True)), (outputs, labels))

        inputs = (outputs.clone().requires_grad_(), *model.parameters())
        assert torch.autograd.gradcheck(losses, inputs, eps=1e-6)


@pytest.mark.parametrize("name", LOSSES)
def test_losses_and_gradients_are_finite_however_far_the_scores(name):
    model = objective(name).float()
    for far in (1e4, -1e4):
        outputs, labels = example(name)
        outputs = (far * torch.linspace(-0.5, 0.5, outputs.numel())).view_as(outputs).requires_grad_()
        labels = Labels(**{key: _single(value) for key, value in vars(labels).items()})
        losses = model(outputs, labels)
        losses.sum().backward()
        gradients = [outputs.grad, *(parameter.grad for parameter in model.parameters())]
        assert all(torch.isfinite(tensor).all() for tensor in (losses, *gradients)), (name, far)


def _single(value):
    return value.float() if value is not None and value.is_floating_point() else value


def test_far_scores_have_the_losses_of_the_formula():
    d, no, yes = torch.tensor([1e4, -1e4]), torch.tensor([False, False]), torch.tensor([True, True])
    one, zero = torch.tensor(1.0), torch.tensor(0.0)
    assert bradley_terry(d).tolist() == pytest.approx([0.0, 1e4])
    # -log sigmoid(d - 1); a tie: |d| - 1 - log(1 - e^-2), which is |d| less 0.85
    assert rao_kupper(d, no, one).tolist() == pytest.approx([0.0, 1e4 + 1])
    assert rao_kupper(d, yes, one).tolist() == pytest.approx([1e4 - 1 - math.log(1 - math.exp(-2))] * 2)
    # e^(-d/2) against 1 and e^-d: a win at -1e4 has odds e^-1e4, a tie e^-5e3.
    assert davidson(d, no, zero).tolist() == pytest.approx([0.0, 1e4])
    assert davidson(d, yes, zero).tolist() == pytest.approx([5e3, 5e3])
    assert flip_noise(d, 0.1).tolist() == pytest.approx([-math.log(0.9), -math.log(0.1)])


@pytest.mark.parametrize("name", LOSSES)
def test_permuted_examples_have_permuted_losses(name):
    outputs, labels = example(name)
    model, order = objective(name), torch.tensor([2, 0, 1])
    blocks = torch.split(torch.arange(len(outputs)), labels.sizes.tolist())
    answers = torch.cat([blocks[i] for i in order])

    def permuted(key, value):
        return None if value is None else value[answers if key == "rating" else order]

    shuffled = Labels(**{key: permuted(key, value) for key, value in vars(labels).items()})
    assert model(outputs[answers], shuffled).tolist() == pytest.approx(model(outputs, labels)[order].tolist())


@pytest.mark.parametrize("name", ["plackett_luce", "regression", "ordinal", "attributes"])
def test_the_order_of_answers_inside_an_example_says_nothing(name):
    outputs, labels = example(name)
    answers = torch.tensor([3, 1, 0, 2, 4, 6, 5])  # sizes 4, 1, 2
    found = objective(name)(outputs[answers], Labels(labels.sizes, rating=labels.rating[answers]))
    assert found.tolist() == pytest.approx(objective(name)(outputs, labels).tolist())


def test_thresholds_are_in_order_after_any_step():
    groups = [rated("a", 1.0, 2.0, 3.0, 4.0, 5.0)]
    generator = torch.Generator().manual_seed(0)
    for size in (1.0, 30.0, 1000.0):
        model = objective("ordinal", groups).float()
        with torch.no_grad():
            model.steps.add_(size * torch.randn(4, generator=generator))
        thresholds = model.learned()["thresholds"]
        assert thresholds == sorted(thresholds)
        losses = model(torch.zeros(5, 1), Labels(torch.tensor([5]), rating=torch.arange(1.0, 6.0)[:, None]))
        losses.sum().backward()
        assert torch.isfinite(losses).all() and torch.isfinite(model.steps.grad).all()


def test_a_threshold_of_ties_stays_positive_after_any_step():
    model = objective("rao_kupper").float()
    with torch.no_grad():
        model.free_threshold.fill_(-1000.0)
    losses = model(torch.zeros(2, 1), Labels(torch.tensor([2]), tie=torch.tensor([True])))
    assert model.learned()["threshold"] > 0 and torch.isfinite(losses).all()


@pytest.mark.parametrize("value", [2e-6, 0.1, 1.0, 40.0])
def test_the_free_form_of_a_positive_number_comes_back(value):
    assert positive(doubles(free_of_positive(value))).item() == pytest.approx(value)


# Refusals


@pytest.mark.parametrize(
    ("name", "more", "words"),
    [
        ("rao_kupper", {"label_smoothing": 0.1}, "loss.label_smoothing"),
        ("davidson", {"margin": False}, "loss.margin"),
        ("vote_share", {"votes": False}, "loss.votes"),
        ("bradley_terry", {"flip_rate": 0.2}, "loss.flip_rate"),
        ("plackett_luce", {"centring": 0.01}, "loss.centring"),
        ("regression", {"centring": 0.01}, "loss.centring"),
        ("plackett_luce", {"rating": "quality"}, "loss.rating"),
    ],
)
def test_a_setting_that_the_loss_would_not_read_is_refused(name, more, words):
    with pytest.raises(SettingsError, match=f"{words}.*{name}"):
        LOSSES[name].check(settings_of(name, **more), DATA[name])


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        ("bradley_terry", [ranked("g", 3)], "1 rows that are none, the first `g`"),
        ("rao_kupper", [pair("a"), pair("b")], "0 ties among 2 pairs.*bradley_terry"),
        ("rao_kupper", [pair("a", tie=True)], "1 ties among 1 pairs.*bradley_terry"),
        ("davidson", [pair("a"), pair("b")], "0 ties among 2 pairs.*bradley_terry"),
        ("davidson", [pair("a", tie=True)], "1 ties among 1 pairs.*bradley_terry"),
        ("vote_share", [pair("a", votes=(1, 0)), pair("b")], "the first `b`"),
        ("vote_share", [pair("a", votes=(1, 0)), pair("b", tie=True)], "the first `b`"),
        ("plackett_luce", [pair("a")], "1 rows that are single pairs"),
        ("plackett_luce", [ranked("a", 2), ranked("b", 2)], "three or more.*2 without.*bradley_terry"),
        ("plackett_luce", [ranked("a", 2), rated("b", 1.0, 1.0, 1.0)], "three or more"),
        ("plackett_luce", [ranked("a", 3), Group("b", "p", ("x", "y"), "none")], "the first `b`"),
        ("plackett_luce", [ranked("a", 3), rated("b", 1.0)], "the first `b`"),
        ("plackett_luce", [ranked("a", 3), rated("b", 1.0, NAN)], "finite rating.*the first `b`"),
        ("regression", [rated("a", 1.0, 2.0), ranked("b", 3)], "the first `b`"),
        ("regression", [rated("a", 1.0, NAN)], "finite rating.*the first `a`"),
        ("regression", [rated("a", 2.0, 2.0)], "one and the same"),
        ("ordinal", [rated("a", 1.0, 2.0), ranked("b", 3)], "the first `b`"),
        ("ordinal", [rated("a", 2.0, 2.0)], "1 different ratings"),
        ("ordinal", [rated(f"g{i}", float(i)) for i in range(21)], "21 different ratings.*regression"),
        ("attributes", [pair("a")], "1 rows that are single pairs"),
        ("attributes", [rated("a", correct=[1, 2])], r"none named clear \(the data's columns: correct\)"),
        ("attributes", [rated("a", correct=[1, 2], clear=[1, "2"])], "'2' in group `a`"),
        ("attributes", [rated("a", correct=[1, 2], clear=[1, True])], "True in group `a`"),
        ("attributes", [rated("a", correct=[1, 2], clear=[1, math.inf])], "inf in group `a`"),
        ("attributes", [rated("a", correct=[1, 2], clear=[3, 3])], "two different values in `per_answer.clear`"),
        ("attributes", [rated("a", correct=[0, 1], clear=[0, 11])], "range of 11 in `clear` and of 1 in `correct`"),
        ("attributes", [rated("a", correct=[1, 2], clear=[1, 2]), ranked("b", 2)], "the first `b`"),
    ],
)
def test_data_that_a_loss_cannot_use_are_refused(name, data, words):
    with pytest.raises(DataError, match=words):
        LOSSES[name].check(settings_of(name), data)


def test_dev_data_need_what_every_row_needs_and_no_more():
    for name, data in [
        ("rao_kupper", [pair("a")]),
        ("plackett_luce", [ranked("a", 2)]),
        ("ordinal", [rated("a", 7.0)]),
    ]:
        LOSSES[name].check_rows(settings_of(name), data)
    with pytest.raises(DataError, match="the first `a`"):
        LOSSES["vote_share"].check_rows(settings_of("vote_share"), [pair("a")])


# Parameters behind simulated choices

WEIGHTS = np.array([1.0, -0.7, 0.4])


def assert_recovered(model, features, labels, truth):
    """Fit a linear score and what the loss learns by maximum likelihood; every parameter lies within four standard errors of the truth.

    `features` (n, K, F) are of n examples of K answers; `truth` holds the weights, output by output, then the loss's own parameters in their free form.
    Standard errors are those of an M-estimator, H^-1 J^T J H^-1, which also hold where the loss is no full likelihood.
    """
    n, count, width = features.shape
    names, parameters = list(dict(model.named_parameters())), list(model.parameters())
    answers = torch.from_numpy(features).reshape(n * count, width)
    cuts = range(0, n, 100)  # small batches: losses of lists compare all answers of a batch

    def losses(point):
        weights, rest = (
            point[: width * model.num_outputs].view(model.num_outputs, width),
            point[width * model.num_outputs :],
        )
        values = torch.split(rest, [parameter.numel() for parameter in parameters])
        own = {name: value.view_as(p) for name, value, p in zip(names, values, parameters, strict=True)}
        outputs = answers @ weights.T
        return torch.cat(
            [functional_call(model, own, (outputs[c * count : (c + 100) * count], labels(c, c + 100))) for c in cuts]
        )

    def gradient(point):
        point = point.detach().requires_grad_()
        return torch.autograd.grad(losses(point).mean(), point)[0]

    truth = doubles(truth)
    start = torch.cat([torch.zeros(width * model.num_outputs), *(p.detach().reshape(-1) for p in parameters)])
    point = start.double().requires_grad_()
    optimiser = torch.optim.LBFGS(
        [point], max_iter=100, line_search_fn="strong_wolfe", tolerance_grad=1e-9, tolerance_change=0
    )

    def closure():
        optimiser.zero_grad()
        loss = losses(point).mean()
        loss.backward()
        return loss

    optimiser.step(closure)
    found, step = point.detach(), 1e-4
    assert gradient(found).abs().max() < 1e-6
    moves = step * torch.eye(len(found), dtype=torch.float64)
    hessian = torch.stack([(gradient(found + move) - gradient(found - move)) / (2 * step) for move in moves])
    jacobian = torch.stack(
        [(losses(found + move) - losses(found - move)).detach() / (2 * step) for move in moves], dim=1
    )
    bread = torch.linalg.inv(hessian)
    errors = (bread @ (jacobian.T @ jacobian / n) @ bread / n).diagonal().sqrt()
    assert errors.max() < 0.2, "too few data for the test to mean anything"
    assert ((found - truth).abs() < 4 * errors).all(), (found, truth, errors)


def simulated_pairs(seed, n=4000):
    """(generator, features (n, 2, 3), worths (n, 2))."""
    generator = np.random.default_rng(seed)
    features = generator.normal(size=(n, 2, 3))
    return generator, features, np.exp(features @ WEIGHTS)


def chosen_first(features, first_wins):
    """Features with the chosen answer first."""
    return np.where(first_wins[:, None, None], features, features[:, ::-1])


def pair_labels(**columns):
    """A function of (start, stop) to the labels of those pairs."""
    tensors = {name: torch.from_numpy(column) for name, column in columns.items()}

    def labels(start, stop):
        parts = {name: tensor[start:stop] for name, tensor in tensors.items()}
        return Labels(torch.full((stop - start,), 2), **parts)

    return labels


def rating_labels(ratings):
    """A function of (start, stop) to the labels of those examples, ratings (n, K, A)."""
    n, count, columns = ratings.shape
    return lambda start, stop: Labels(
        torch.full((stop - start,), count), rating=torch.from_numpy(ratings[start:stop]).reshape(-1, columns)
    )


def outcomes(generator, chances):
    """One outcome a row of (n, outcomes) chances, by a uniform draw."""
    return (generator.random(len(chances))[:, None] > np.cumsum(chances, axis=1)).sum(1)


def test_rao_kupper_recovers_scores_and_threshold():
    generator, features, worths = simulated_pairs(1)
    theta = 1.8
    first = worths[:, 0] / (worths[:, 0] + theta * worths[:, 1])
    second = worths[:, 1] / (worths[:, 1] + theta * worths[:, 0])
    outcome = outcomes(generator, np.stack([first, second, 1 - first - second], axis=1))
    model = objective("rao_kupper", [pair("p", tie=bool(tie)) for tie in outcome == 2])
    truth = [*WEIGHTS, free_of_positive(math.log(theta))]
    assert_recovered(model, chosen_first(features, outcome != 1), pair_labels(tie=outcome == 2), truth)


def test_davidson_recovers_scores_and_nu():
    generator, features, worths = simulated_pairs(2)
    nu = 0.7
    masses = np.stack([worths[:, 0], worths[:, 1], nu * np.sqrt(worths[:, 0] * worths[:, 1])], axis=1)
    outcome = outcomes(generator, masses / masses.sum(1, keepdims=True))
    model = objective("davidson", [pair("p", tie=bool(tie)) for tie in outcome == 2])
    assert_recovered(
        model, chosen_first(features, outcome != 1), pair_labels(tie=outcome == 2), [*WEIGHTS, math.log(nu)]
    )


def test_vote_share_recovers_scores():
    generator, features, worths = simulated_pairs(3, n=2000)
    voters = generator.integers(1, 8, size=len(features))
    votes = generator.binomial(voters, worths[:, 0] / worths.sum(1))
    both = np.stack([votes, voters - votes], axis=1).astype(float)
    model = objective("vote_share", [pair("p", votes=tuple(row)) for row in both.astype(int).tolist()])
    assert_recovered(model, features, pair_labels(votes=both), WEIGHTS)


def test_flip_noise_recovers_scores_from_labels_of_which_a_fifth_are_flipped():
    generator, features, worths = simulated_pairs(4)
    first = generator.random(len(features)) < worths[:, 0] / worths.sum(1)
    flipped = generator.random(len(features)) < 0.2
    model = objective("flip_noise", flip_rate=0.2)
    assert_recovered(model, chosen_first(features, first ^ flipped), pair_labels(), WEIGHTS)


@pytest.mark.parametrize("places", [[4.0, 3.0, 2.0, 1.0], [2.0, 1.0, 0.0, 0.0]])
def test_plackett_luce_recovers_scores_from_whole_rankings_and_from_the_first_places(places):
    generator = np.random.default_rng(5)
    features = generator.normal(size=(1200, 4, 3))
    worths = np.exp(features @ WEIGHTS)
    ratings = np.empty((len(features), 4, 1))
    left = np.ones((len(features), 4), dtype=bool)
    # One answer after the other is drawn from those left, in proportion to its worth.
    for place in places:
        masses = worths * left
        taken = outcomes(generator, masses / masses.sum(1, keepdims=True))
        ratings[np.arange(len(features)), taken, 0] = place
        left[np.arange(len(features)), taken] = False
    assert_recovered(objective("plackett_luce"), features, rating_labels(ratings), WEIGHTS)


def test_ordinal_recovers_scores_and_thresholds():
    generator = np.random.default_rng(6)
    features = generator.normal(size=(1500, 2, 3))
    thresholds = np.array([-1.5, 0.2, 1.0])
    # y <= k exactly when s + logistic noise <= theta_k
    latent = features @ WEIGHTS + generator.logistic(size=features.shape[:2])
    levels = np.searchsorted(thresholds, latent).astype(float)
    model = objective("ordinal", [rated("g", *row) for row in levels.tolist()])
    truth = [*WEIGHTS, thresholds[0], *(free_of_positive(gap) for gap in np.diff(thresholds).tolist())]
    assert_recovered(model, features, rating_labels(levels[:, :, None]), truth)


def test_attributes_recover_each_output_where_a_third_of_the_ratings_are_unknown():
    generator = np.random.default_rng(7)
    features = generator.normal(size=(1500, 2, 3))
    weights = np.stack([WEIGHTS, -2 * WEIGHTS])
    ratings = features @ weights.T + generator.normal(size=(1500, 2, 2))
    ratings[generator.random(ratings.shape) < 1 / 3] = NAN
    assert_recovered(objective("attributes"), features, rating_labels(ratings), weights.reshape(-1))
