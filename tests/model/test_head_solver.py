"""The solved head is the minimum of the loss that training uses; strengths are chosen on prompts that the head did not see; many heads at once are each alone."""

import io
import json

import numpy as np
import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file
from sklearn.linear_model import LogisticRegression

import rewardsmith
from rewardsmith.config import HeadSettings, LossSettings, TrainSettings, build
from rewardsmith.errors import DataError, NonFiniteError, SettingsError
from rewardsmith.model import head_solver, head_strength
from rewardsmith.model.artefact import verify
from rewardsmith.model.head_fit import fit_head
from rewardsmith.model.head_solver import HeadProblem, check_head, solve_heads
from rewardsmith.model.head_spread import head_spread, resampled_heads
from rewardsmith.model.head_strength import choose_strength
from rewardsmith.model.losses import BradleyTerry, Labels, VoteShare, batch_loss

ONES = np.ones


def labels_of(n, **columns):
    return Labels(torch.full((n,), 2), **columns)


def problem_of(features, *, has_bias=True, labels=None, objective=None, **loss):
    objective = objective or BradleyTerry(LossSettings(**loss), [])
    return HeadProblem.of(objective, labels or labels_of(len(features) // 2), features, has_bias=has_bias)


def drawn(n, size, seed=0):
    """Features (2n, size) of pairs whose winners follow a linear score, with a level that all texts share."""
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(n, 2, size)) * np.geomspace(1, 0.05, size) + 3
    margins = (features[:, 0] - features[:, 1]) @ rng.normal(size=size)
    lost = rng.random(n) > 1 / (1 + np.exp(-margins))
    features[lost] = features[lost][:, ::-1]
    return features.reshape(2 * n, size)


def solve(problem, l2):
    return solve_heads(problem, ONES((1, len(problem.differences))), np.array([l2]))


def test_one_feature_by_hand():
    """Differences of 1 in 3 pairs and of -1 in one, so r = 1: sigmoid(w) = 3/4 - l2 w. Without a penalty w would be ln 3."""
    features = np.array([[1.0], [0.0]] * 3 + [[0.0], [1.0]])
    for l2 in (1e-9, 0.1, 10.0):
        weight = solve(problem_of(features), l2).weight[0, 0]
        assert 1 / (1 + np.exp(-weight)) == pytest.approx(0.75 - l2 * weight, abs=1e-8)
    assert solve(problem_of(features), 1e-9).weight[0, 0] == pytest.approx(np.log(3), abs=1e-6)


def test_it_is_logistic_regression():
    """scikit-learn minimises C sum(loss) + |w|^2 / 2: its C is 1 / (n l2 r^2). It wants two classes, so every other pair is turned round."""
    features, l2, n = drawn(200, 12), 0.01, 200
    problem = problem_of(features)
    sides = np.where(np.arange(n) % 2 == 0, 1, -1)
    model = LogisticRegression(C=1 / (n * l2 * problem.size**2), fit_intercept=False, tol=1e-10, max_iter=10_000)
    model.fit(problem.differences.numpy() * sides[:, None], sides)
    assert np.allclose(solve(problem, l2).weight[0], model.coef_[0], atol=1e-6)


VARIANTS = {
    "plain": ({}, {}),
    "smoothed": ({"label_smoothing": 0.2}, {}),
    "margins and weights": ({}, {"margin": lambda r, n: r.random(n) * 2, "weight": lambda r, n: r.random(n) * 3}),
    "ties and votes": ({}, {"tie": lambda r, n: r.random(n) < 0.3, "share": lambda r, n: r.random(n)}),
    "centred": ({"centring": 0.05}, {"weight": lambda r, n: r.random(n) + 0.1}),
}


@pytest.mark.parametrize("has_bias", [True, False])
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("size", [6, 90])
def test_the_gradient_of_the_training_loss_and_the_penalty_is_0(size, variant, has_bias):
    """Through the objective's own forward pass, as a step computes it; 40 pairs, so that the 90 features outnumber them."""
    loss, columns = VARIANTS[variant]
    rng = np.random.default_rng(1)
    labels = labels_of(40, **{name: torch.from_numpy(make(rng, 40)) for name, make in columns.items()})
    problem = problem_of(drawn(40, size), has_bias=has_bias, labels=labels, **loss)
    found = solve(problem, 0.003)
    weight = torch.from_numpy(found.weight[0]).requires_grad_()
    bias = torch.from_numpy(found.bias).requires_grad_()
    scores = torch.from_numpy(drawn(40, size)) @ weight + bias
    value = batch_loss(problem.objective(scores[:, None], labels), labels.weight)
    value = value + 0.003 / 2 * (problem.size * weight).square().sum()
    value.backward()
    assert float(weight.grad.abs().max()) < 1e-6
    if loss.get("centring") and has_bias:
        assert abs(float(bias.grad)) < 1e-6 and found.bias[0] != 0
    else:
        assert found.bias[0] == 0
    assert found.gradient_norm < 1e-6


def test_votes_weigh_as_they_do_in_training():
    """Ten votes of which eight are for chosen are ten pairs: with 8 : 2 and nothing else, sigmoid(w) = 0.8 - l2 w / (10 / mean votes) at r = 1."""
    labels = labels_of(1, votes=torch.tensor([[8.0, 2.0]]))
    objective = VoteShare(LossSettings(name="vote_share"), [type("P", (), {"votes": (8, 2)})()])
    problem = problem_of(np.array([[1.0], [0.0]]), labels=labels, objective=objective)
    weight = solve(problem, 0.1).weight[0, 0]
    assert 1 / (1 + np.exp(-weight)) == pytest.approx(0.8 - 0.1 * weight, abs=1e-8)


def test_a_strength_means_the_same_for_features_of_any_size_and_rotation():
    features = drawn(60, 5)
    rotation, _ = np.linalg.qr(np.random.default_rng(3).normal(size=(5, 5)))
    plain = features @ solve(problem_of(features), 0.01).weight[0]
    for other in (features * 1000, features @ rotation):
        assert np.allclose(other @ solve(problem_of(other), 0.01).weight[0], plain, atol=1e-6)


def test_many_heads_at_once_are_each_alone():
    problem, rng = problem_of(drawn(80, 10)), np.random.default_rng(0)
    counts = rng.integers(0, 3, size=(6, 80)).astype(float)
    strengths = np.geomspace(1e-4, 1, 6)
    together = solve_heads(problem, counts, strengths)
    for row, l2, weight in zip(counts, strengths, together.weight, strict=True):
        alone = solve_heads(problem, row[None], np.array([l2]))
        assert np.allclose(weight, alone.weight[0], atol=1e-5)
        # The start does not matter.
        warm = solve_heads(problem, row[None], np.array([l2]), start=rng.normal(size=(1, 10)))
        assert np.allclose(warm.weight, alone.weight, atol=1e-5)


def test_a_resampled_head_is_the_head_of_the_data_drawn():
    """Whole prompts are drawn: a resample is the data with the pairs of each prompt as often as it was drawn."""
    features, prompts = drawn(40, 4), np.arange(40) // 4
    problem = problem_of(features)
    start = solve(problem, 0.01).weight[0]
    heads = resampled_heads(problem, prompts, start, l2=0.01, resamples=3, seed=7)
    counts = np.random.default_rng(7).multinomial(10, np.full(10, 0.1), size=3)
    for times, weight in zip(counts, heads.weight, strict=True):
        pairs = np.repeat(np.arange(40), times[prompts])
        again = problem_of(features.reshape(40, 2, 4)[pairs].reshape(-1, 4))
        # r is of the data as they are, in all resamples.
        alone = solve(again, 0.01 * (problem.size / again.size) ** 2).weight[0]
        assert np.allclose(weight, alone, atol=1e-4)


def test_no_prompt_is_on_both_sides_of_a_fold():
    """Ten equal pairs a prompt, one side of which was drawn to win: seen once, a prompt is known; held out it cannot be, and ln 2 = 0.693 is the best."""
    rng = np.random.default_rng(0)
    prompts = np.repeat(np.arange(40), 10)
    features = np.repeat(rng.normal(size=(40, 2, 60)), 10, axis=0).reshape(-1, 60)
    choice = choose_strength(problem_of(features), prompts, folds=5, seed=0)
    assert choice.l2 == max(head_strength.STRENGTHS)
    assert choice.log_loss.value > 0.69
    leaked = choose_strength(problem_of(features), np.arange(400), folds=5, seed=0)
    assert leaked.log_loss.value < 0.1


def test_a_strength_is_chosen_by_what_was_held_out():
    """Three folds by hand: each pair under a head of the other prompts."""
    features, prompts = drawn(90, 20), np.arange(90) // 3
    problem = problem_of(features)
    choice = choose_strength(problem, prompts, folds=3, seed=0)
    assert choice.log_loss.value == min(one.value for one in choice.log_losses)
    assert choice.alike[0] <= choice.l2 <= choice.alike[1]
    assert choice.log_loss.n == 90 and "30 prompts" in choice.log_loss.method
    losses = np.zeros(90)
    for _, part in head_strength.GroupKFold(3, shuffle=True, random_state=0).split(prompts, groups=prompts):
        counts = ONES((1, 90))
        counts[0, part] = 0
        weight = solve_heads(problem, counts, np.array([choice.l2])).weight[0]
        losses[part] = np.logaddexp(0, -(problem.differences[part].numpy() @ weight))
    assert choice.log_loss.value == pytest.approx(losses.mean(), abs=1e-6)
    # Weak strengths that were three times in a row worse by more than a standard error are left out.
    assert len(choice.strengths) < len(head_strength.STRENGTHS)
    with pytest.raises(DataError, match="at least 50 prompts"):
        choose_strength(problem, prompts, folds=50, seed=0)


def test_the_spread_by_hand():
    """Two heads, 1 and 3, on one feature; the saved one, -1, has the other order of both pairs."""
    # Pair a is 1 over 0, margins 1 and 3; pair b is 0 over 2, margins -2 and -6. Their standard deviations, over n - 1 = 1: sqrt(2) and sqrt(8).
    # Scores 1 0 0 2 and 3 0 0 6, less their means of 3/4 and 9/4: differences between the heads of 1/2, 3/2, 3/2 and 5/2, each over sqrt(2).
    features, prompts = np.array([[1.0], [0.0], [0.0], [2.0]]), np.array([0, 1])
    spread = head_spread(np.array([[1.0], [3.0]]), np.array([-1.0]), features, prompts, part="dev")
    assert spread.margin_sd.value == pytest.approx((np.sqrt(2) + np.sqrt(8)) / 2)
    assert spread.score_sd.value == pytest.approx(6 / 4 / np.sqrt(2))
    assert spread.turned.value == 1.0
    half = head_spread(np.array([[1.0], [-3.0]]), np.array([2.0]), features, prompts, part="dev")
    assert half.turned.value == 0.5


def test_data_without_a_solution_are_refused(monkeypatch):
    with pytest.raises(DataError, match="differ in their features"):
        problem_of(ONES((6, 2)))
    monkeypatch.setattr(head_solver, "_MAX_ITERATIONS", 1)
    with pytest.raises(NonFiniteError, match="after 1 iterations"):
        solve(problem_of(drawn(200, 30)), 1e-6)


def test_resamples_come_with_the_fit():
    features, prompts = drawn(60, 5), np.arange(60) // 2
    settings = HeadSettings(solver="lbfgs", l2=0.01, resamples=20)
    fit = fit_head(
        problem_of(features), prompts, settings, seed=0, spread_on=lambda: (features[:40], prompts[:20], "dev")
    )
    assert fit.choice is None and fit.spread is not None and fit.spread.heads == 20
    assert fit.spread.margin_sd.n == 20 and fit.spread.score_sd.n == 40
    # Four times the data have half the spread, give or take the draw of 20 heads.
    more = np.tile(features.reshape(60, 2, 5), (4, 1, 1)).reshape(-1, 5)
    wide = fit_head(
        problem_of(more), np.arange(240) // 2, settings, seed=0, spread_on=lambda: (features[:40], prompts[:20], "dev")
    )
    assert fit.spread.margin_sd.value / wide.spread.margin_sd.value == pytest.approx(2, rel=0.4)


# ---------------------------------------------------------------- settings and whole runs

BASE = {"model": "m", "data": "d", "out": "no-such-folder", "freeze": "encoder", "head": {"solver": "lbfgs"}}


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"freeze": "none"}, "solves for the head alone"),
        ({"freeze": 1}, "solves for the head alone"),
        ({"loss": "flip_noise"}, "one of the losses bradley_terry, vote_share"),
        ({"loss": "regression"}, "one of the losses"),
        ({"learning_rate": 1e-3}, "learning_rate = 0.001"),
        ({"epochs": 3}, "epochs = 3.0"),
        ({"ema_decay": 0.9}, "takes no steps"),
        ({"trainer": {"save_steps": 5}}, "takes no steps"),
        ({"head": {"solver": "adamw", "l2": 0.1}}, r"head\.l2"),
        ({"head": {"resamples": 100}}, r"head\.resamples"),
        ({"head": {"solver": "lbfgs", "l2": 0.1, "folds": 3}}, r"for head\.folds"),
    ],
)
def test_settings_that_would_not_be_read_are_refused(change, match):
    with pytest.raises(SettingsError, match=match):
        check_head(build(TrainSettings, BASE | change))


@pytest.mark.parametrize(
    "head", [{"l2": 0}, {"l2": -1}, {"l2": "best"}, {"folds": 1}, {"resamples": 1}, {"solver": "sgd"}]
)
def test_a_head_table_that_cannot_be_meant_is_refused(head):
    with pytest.raises(SettingsError):
        build(TrainSettings, BASE | {"head": head})


def test_a_table_that_is_in_order_passes():
    check_head(build(TrainSettings, BASE))
    check_head(build(TrainSettings, BASE | {"head": {}, "learning_rate": 1e-3}))


def run(model, data, out, **more):
    console = Console(file=io.StringIO(), width=400)
    settings = {
        **{"model": model, "data": data, "out": str(out), "max_length": 48, "freeze": "encoder", "device": "cpu"},
        **{"precision": "float32", "dev_share": 0.2, "head": {"solver": "lbfgs", "resamples": 10}},
        **more,
    }
    return rewardsmith.train(settings, console=console), console.file.getvalue()


@pytest.mark.parametrize(("family", "centring"), [("bert", 0.0), ("bert", 0.01), ("qwen2", 0.01), ("distilbert", 0.0)])
def test_a_solved_run_leaves_an_ordinary_folder(family, centring, tiny, toy_pairs, tmp_path):
    report, said = run(tiny(family), toy_pairs, tmp_path / "run", eval_data=toy_pairs, loss={"centring": centring})
    assert report["overfitting"]["train"]["value"] > 0.9
    facts = report["training"]["head"]
    assert facts["solver"] == "lbfgs" and facts["l2_chosen_by"] == "cross-validation" and facts["gradient_norm"] < 1e-6
    assert facts["cross_validation"]["folds"] == 5 and facts["resamples"]["heads"] == 10
    low, high = facts["cross_validation"]["within_one_standard_error"]
    assert low <= facts["l2"] <= high
    assert (
        facts["cross_validation"]["log_loss"]["n"]
        == report["training"]["head"]["cross_validation"]["tried"][0]["log_loss"]["n"]
    )
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    assert manifest["training"]["head"] == facts
    assert [point["step"] for point in report["dev_points"]] == [0, report["training"]["steps"]]
    for words in ("head: solved in", "within one standard error", "10 heads on data drawn again by prompt"):
        assert words in said
    assert all(check.ok for check in verify(str(tmp_path / "run" / "model")))
    assert (tmp_path / "run" / "curves.png").exists()


def test_with_a_set_strength_the_head_depends_on_no_seed(tiny, toy_pairs, tmp_path):
    settings = {"dev_share": 0, "head": {"solver": "lbfgs", "l2": 0.01}}
    for seed in (0, 1):
        run(tiny("bert"), toy_pairs, tmp_path / str(seed), seed=seed, **settings)
    first, second = (load_file(tmp_path / name / "model" / "model.safetensors") for name in ("0", "1"))
    assert torch.allclose(first["classifier.weight"], second["classifier.weight"], atol=1e-6)
    assert float(first["classifier.bias"]) == 0  # Bradley-Terry does not pin the level


def test_steps_arrive_where_the_solver_is(tiny, toy_pairs, tmp_path):
    """Under a weak penalty the solved head has a lower training loss than 40 epochs of steps reach."""
    solved, _ = run(tiny("bert"), toy_pairs, tmp_path / "a", dev_share=0, head={"solver": "lbfgs", "l2": 1e-6})
    stepped, _ = run(
        tiny("bert"), toy_pairs, tmp_path / "b", dev_share=0, head={}, learning_rate=1e-2, weight_decay=0, epochs=40
    )
    assert solved["training"]["head"]["train_loss"] < stepped["history"][-1]["loss"]


def test_features_that_would_change_cannot_be_solved_on(tiny, toy_pairs, tmp_path):
    for family, more in (("bert", {"dropout": True}), ("deberta-v2", {})):
        with pytest.raises(SettingsError, match="features that stay as they are"):
            run(tiny(family), toy_pairs, tmp_path / "run", **more)
        assert not (tmp_path / "run").exists()


def test_a_run_that_was_cut_off_begins_anew(tiny, toy_pairs, tmp_path, monkeypatch):
    from rewardsmith.model import head_fit

    def breaks(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(head_fit, "fit_head", breaks)
    with pytest.raises(KeyboardInterrupt):
        run(tiny("bert"), toy_pairs, tmp_path / "run")
    monkeypatch.setattr(head_fit, "fit_head", fit_head)
    report, _ = run(tiny("bert"), toy_pairs, tmp_path / "run")
    assert [point["step"] for point in report["dev_points"]] == [0, report["training"]["steps"]]
