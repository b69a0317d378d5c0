"""The details on which PPO breaks, one by one, on tiny random models."""

import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from rewardsmith.config import LoraSettings, PPOSettings, ScoringSettings
from rewardsmith.errors import NonFiniteError, SettingsError
from rewardsmith.model.policy import Policy
from rewardsmith.model.ppo.actor import add_adapters
from rewardsmith.model.ppo.rollouts import Request, batch_of
from rewardsmith.model.ppo.trainer import PPOTrainer, accelerator_for
from rewardsmith.use import Reward
from tests.model.ppo.word_policies import END, save_word_policy

WORDS = ["yes", "no", "good", "bad", "so", "it"]
PROMPTS = ["go", "one two three four five six seven", "a b c"]


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    return save_word_policy(tmp_path_factory.mktemp("words") / "policy", WORDS, layers=2, dropout=0.5)


def settings_of(policy, out="unused", **changes):
    values = {
        "policy": policy,
        "out": str(out),
        "steps": 4,
        "prompts_per_step": 4,
        "max_new_tokens": 6,
        "learning_rate": 1e-2,
        "device": "cpu",
    }
    return PPOSettings(**(values | changes))


def trainer_of(policy, *, reward=None, prompts=PROMPTS, kind=PPOTrainer, **changes):
    settings = settings_of(policy, **changes)
    made = Policy(
        policy,
        temperature=settings.temperature,
        max_new_tokens=settings.max_new_tokens,
        settings=ScoringSettings(device="cpu"),
    )
    torch.manual_seed(settings.seed)
    if settings.lora is not None:
        add_adapters(made.model, settings.lora)
    score = reward or (lambda prompt, answer: answer.count("good"))
    accelerator = accelerator_for(settings, "float32")
    return kind(settings, made, Reward(score), prompts, accelerator=accelerator)


def requests(trainer, count):
    return [Request(prompt, k) for prompt in trainer.prompts for k in range(count)]


def always(kl):
    return True


def test_log_probabilities_are_those_of_the_draws(words):
    """Read again one by one without padding, at the temperature of the draws and over the ids that can be drawn."""
    trainer = trainer_of(words, temperature=2.0)
    rollouts = trainer.roll_out(requests(trainer, 4), 1)
    model = trainer.policy.model
    for i, (prompt, answer) in enumerate(zip(rollouts.drawn.prompts, rollouts.drawn.answers, strict=True)):
        with torch.no_grad():
            logits = model(torch.tensor([[*prompt, *answer]])).logits[0, len(prompt) - 1 : -1] / 2
        expected = logits[:, : len(trainer.policy.tokenizer)].log_softmax(-1)
        found = rollouts.log_probs[i, : len(answer)]
        torch.testing.assert_close(found, expected[torch.arange(len(answer)), answer], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(
            rollouts.entropy[i, : len(answer)], -(expected.exp() * expected).sum(-1), atol=1e-5, rtol=1e-5
        )


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_padding_on_the_left_changes_nothing(family, tmp_path):
    """Beside longer prompts or alone, the same answers, log-probabilities and values."""
    from tests.tiny_models import save_causal

    trainer = trainer_of(save_causal(family, tmp_path / family))
    torch.nn.init.normal_(trainer.actor.value_head.weight)
    asked = requests(trainer, 2)
    together = trainer.roll_out(asked, 1)
    assert len({len(prompt) for prompt in together.drawn.prompts}) == 3
    for i, request in enumerate(asked):
        alone = trainer.roll_out([request], 1)
        assert alone.drawn.answers[0] == together.drawn.answers[i] and alone.samples[0].answer
        size = len(alone.drawn.answers[0])
        for name in ("log_probs", "reference_log_probs", "values"):
            torch.testing.assert_close(
                getattr(alone, name)[0, :size], getattr(together, name)[i, :size], atol=2e-5, rtol=2e-5
            )
        assert alone.values.abs().min() > 0


def test_masks_end_with_the_end_token(words):
    """The end token is the last that counts, and the last that is rewarded; a cut answer counts to its last token and is not finished."""
    trainer = trainer_of(words)
    rollouts = trainer.roll_out(requests(trainer, 8), 1)
    ends = trainer.policy.stop_ids
    assert trainer.policy.tokenizer.convert_tokens_to_ids(END) in ends
    kinds = set()
    for ids, mask, sample in zip(rollouts.drawn.answers, rollouts.mask, rollouts.samples, strict=True):
        assert mask.sum() == len(ids) == sample.num_tokens and mask[: len(ids)].all()
        assert not set(ends) & set(ids[:-1]) and sample.is_finished == (ids[-1] in ends)
        assert sample.is_finished or len(ids) == 6
        assert END not in sample.answer and len(sample.answer.split()) == len(ids) - sample.is_finished
        kinds.add((sample.is_finished, len(ids) < 6))
    assert (True, True) in kinds and (False, False) in kinds
    batch = batch_of(rollouts.drawn, range(len(rollouts.samples)), pad_id=trainer.policy.pad_id, device="cpu")
    assert torch.equal(batch.mask, rollouts.mask)
    for name in ("log_probs", "reference_log_probs", "values", "entropy", "kl"):
        assert (getattr(rollouts, name)[~rollouts.mask] == 0).all()


def test_nothing_after_an_end_reaches_the_gradient(words):
    """Answers of one minibatch, taken whole or one at a time, give the same gradient: padding has no part in it."""
    gradients = []
    for batch_tokens in (4096, 1):
        trainer = trainer_of(words, batch_tokens=batch_tokens, minibatches=1, epochs=1)
        torch.nn.init.normal_(trainer.actor.value_head.weight, std=0.1)
        rollouts = trainer.roll_out(requests(trainer, 4), 1)
        assert not rollouts.mask.all()
        advantages = torch.randn(rollouts.mask.shape, generator=torch.Generator().manual_seed(0))
        returns = advantages * 2
        if batch_tokens == 1:  # what stands at padding is never looked at
            advantages = advantages.masked_fill(~rollouts.mask, 1e6)
            returns = returns.masked_fill(~rollouts.mask, torch.nan)
        trainer._update(rollouts, advantages, returns, 1)
        gradients.append({name: p.grad.clone() for name, p in trainer.parameters.items()})
    assert any(g.abs().max() > 1e-3 for g in gradients[0].values())
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, atol=1e-5, rtol=1e-3)


def test_dropout_is_off_in_drawing_and_learning(words):
    """The checkpoint asks for a dropout of one half; the model stays the same function even when somebody calls train()."""
    trainer = trainer_of(words)
    asked = requests(trainer, 2)
    first = trainer.roll_out(asked, 1)
    trainer.model.train()
    trainer.policy.model.train()
    again = trainer.roll_out(asked, 1)
    assert torch.equal(first.log_probs, again.log_probs)
    batch = batch_of(first.drawn, range(len(asked)), pad_id=0, device="cpu")
    logits, _ = trainer.model(*batch.inputs)
    found = logits.log_softmax(-1).gather(-1, batch.tokens[..., None])[..., 0]
    torch.testing.assert_close(found[batch.mask], first.log_probs[batch.mask], atol=1e-5, rtol=1e-5)


def test_the_value_head_starts_at_0_and_learns(words):
    """At first all values are 0, so that advantages are made of rewards alone; after a step they are not."""
    trainer = trainer_of(words)
    first = trainer.roll_out(requests(trainer, 2), 1)
    assert (first.values == 0).all()
    trainer.step(1, always)
    later = trainer.roll_out(requests(trainer, 2), 2)
    assert later.values[later.mask].abs().min() > 0


@pytest.mark.parametrize("batch_tokens", [4096, 40])
def test_losses_are_means_over_the_tokens_of_a_minibatch(words, batch_tokens):
    """All values are 0 and all returns 1: the gradient of 0.1 x mean of (v - 1)^2 / 2 at the bias of the value head is 0.1 x (0 - 1), in however many parts."""
    trainer = trainer_of(words, epochs=1, minibatches=1, batch_tokens=batch_tokens, max_gradient_norm=float("inf"))
    rollouts = trainer.roll_out(requests(trainer, 4), 1)
    trainer._update(rollouts, torch.zeros(rollouts.mask.shape), torch.ones(rollouts.mask.shape), 1)
    assert trainer.actor.value_head.bias.grad.item() == pytest.approx(-0.1, rel=1e-5)


@pytest.mark.parametrize("detach", [False, True])
def test_a_detached_value_loss_leaves_the_policy_alone(words, detach):
    """Advantages of 0 leave the policy loss without a gradient: what reaches the trunk comes from the value loss."""
    trainer = trainer_of(words, detach_value=detach, epochs=1, minibatches=1)
    torch.nn.init.normal_(trainer.actor.value_head.weight)
    rollouts = trainer.roll_out(requests(trainer, 2), 1)
    trainer._update(rollouts, torch.zeros(rollouts.mask.shape), torch.ones(rollouts.mask.shape), 1)
    trunk = [p.grad for name, p in trainer.parameters.items() if not name.startswith("value_head.")]
    largest = max(0.0 if grad is None else float(grad.abs().max()) for grad in trunk)
    assert (largest == 0) == detach
    assert trainer.actor.value_head.weight.grad.abs().max() > 0


@pytest.mark.parametrize("lora", [None, LoraSettings(rank=4)])
def test_ratios_are_1_and_kl_is_0_before_anything_is_learned(words, lora):
    trainer = trainer_of(words, lora=lora)
    row, _, _ = trainer.step(1, always)
    assert row["first_ratio_error"] < 2e-6 and row["kl"] == pytest.approx(0, abs=1e-9) and row["kl_sampled"] == 0
    second, _, _ = trainer.step(2, always)
    assert second["first_ratio_error"] < 2e-6 and second["kl"] > 1e-4
    assert second["update_kl"] > 1e-6  # within a step it moves


@pytest.mark.parametrize("lora", [None, LoraSettings(rank=4)])
def test_the_reference_stays_what_the_policy_was(words, lora):
    """After three steps, log-probabilities by the reference are those of the untouched checkpoint, and the policy's are not."""
    trainer = trainer_of(words, lora=lora)
    for step in (1, 2, 3):
        trainer.step(step, always)
    rollouts = trainer.roll_out(requests(trainer, 2), 4)
    untouched = AutoModelForCausalLM.from_pretrained(words).eval()
    batch = batch_of(rollouts.drawn, range(len(rollouts.samples)), pad_id=0, device="cpu")
    positions = (batch.attention_mask.cumsum(1) - 1).clamp(min=0)
    with torch.no_grad():
        logits = untouched(batch.input_ids, attention_mask=batch.attention_mask, position_ids=positions).logits
    expected = logits[:, -batch.num_places :].log_softmax(-1).gather(-1, batch.tokens[..., None])[..., 0]
    mask = batch.mask
    torch.testing.assert_close(rollouts.reference_log_probs[mask], expected[mask], atol=1e-5, rtol=1e-5)
    assert (rollouts.log_probs - rollouts.reference_log_probs)[mask].abs().max() > 1e-2


def test_kl_over_the_vocabulary_and_of_the_draws_have_one_mean(words):
    """Over 600 answers of a policy that has learned, the two means differ by less than four standard errors, and the first has the smaller spread."""
    trainer = trainer_of(words, learning_rate=3e-3)
    for step in range(1, 6):
        trainer.step(step, always)
    rollouts = trainer.roll_out(requests(trainer, 200), 9)
    exact = rollouts.kl_of_answers
    drawn = np.array([sample.kl for sample in rollouts.samples])
    assert exact.mean() > 0.05
    assert abs(exact.mean() - drawn.mean()) < 4 * (drawn - exact).std() / np.sqrt(len(drawn))
    assert exact.std() < drawn.std() and exact.min() > -1e-6


def test_an_adaptive_coefficient_follows_the_kl(words):
    """Above its target the KL raises the coefficient by 20 % an update at most, below it lowers it: horizon 4 is one step of four answers."""
    rises = trainer_of(words, kl_target=1e-4, kl_horizon=4, learning_rate=0.02)
    rises.step(1, always)
    assert rises.controller.coefficient == pytest.approx(0.05 * 0.8)  # at first the KL is 0, below any target
    rises.step(2, always)
    assert rises.controller.coefficient == pytest.approx(0.05 * 0.8 * 1.2)
    fixed = trainer_of(words)
    fixed.step(1, always)
    assert fixed.controller.coefficient == 0.05


def test_prompts_come_once_each_before_any_comes_again(words):
    trainer = trainer_of(words, prompts=[f"prompt {i}" for i in range(7)], prompts_per_step=3, minibatches=1)
    order = [request.prompt for step in range(1, 8) for request in trainer.requests_of(step)]
    rounds = [order[i : i + 7] for i in (0, 7, 14)]
    assert all(sorted(one) == sorted(trainer.prompts) for one in rounds) and rounds[0] != rounds[1]
    # More prompts a step than there are: those that come again get answers of their own.
    few = trainer_of(words, prompts=["go"], prompts_per_step=3, answers_per_prompt=2)
    assert [request.number for request in few.requests_of(1)] == [0, 1, 2, 3, 4, 5]
    # The same where the caller wrote a prompt down several times.
    same = trainer_of(words, prompts=["go"] * 3, prompts_per_step=3, answers_per_prompt=2)
    assert [request.number for request in same.requests_of(1)] == [0, 1, 2, 3, 4, 5]


def test_a_prompt_that_comes_again_gets_other_answers(words):
    """In a later step by the number of the step, in the same step by the number of the answer, in another run by the seed."""
    trainer, other = trainer_of(words), trainer_of(words, seed=1)
    asked = requests(trainer, 8)
    first = trainer.roll_out(asked, 1).drawn.answers
    assert trainer.roll_out(asked, 1).drawn.answers == first
    assert trainer.roll_out(asked, 2).drawn.answers != first != other.roll_out(asked, 1).drawn.answers
    assert len({tuple(answer) for answer in first[:8]}) > 3


def test_updates_stop_when_the_policy_has_moved_far_enough(words):
    free, _, _ = trainer_of(words, epochs=4, learning_rate=0.05).step(1, always)
    row, _, _ = trainer_of(words, epochs=4, learning_rate=0.05, update_kl=1e-3).step(1, always)
    assert free["updates"] == 8 and not free["stopped_early"]
    assert 1 <= row["updates"] < 8 and row["stopped_early"]


def test_a_bonus_for_entropy_raises_entropy(words):
    """Rewards are equal, so that the bonus alone moves the policy."""
    found = []
    for coefficient in (0.0, 1.0):
        trainer = trainer_of(
            words, entropy_coefficient=coefficient, reward=lambda prompt, answer: 0.0, kl_coefficient=0
        )
        rows = [trainer.step(step, always)[0] for step in (1, 2, 3, 4)]
        found.append(rows[-1]["entropy"] - rows[0]["entropy"])
    assert found[1] > found[0] + 0.02


def test_normalised_rewards_do_not_depend_on_their_unit(words):
    """Rewards of r and of 100 r + 7 lead to the same policy."""
    weights = []
    for factor, shift in ((1.0, 0.0), (100.0, 7.0)):
        trainer = trainer_of(
            words,
            normalise_rewards=True,
            reward=lambda prompt, answer, a=factor, b=shift: a * answer.count("good") + b,
        )
        for step in (1, 2):
            trainer.step(step, always)
        weights.append(trainer.trained())
    for name, tensor in weights[0].items():
        torch.testing.assert_close(weights[1][name], tensor, atol=1e-4, rtol=1e-3)


def test_a_linear_schedule_ends_at_0(words):
    trainer = trainer_of(words, schedule="linear", steps=4)
    rates = [trainer.step(step, always)[0]["learning_rate"] for step in (1, 2, 3, 4)]
    assert rates == pytest.approx([0.01, 0.0075, 0.005, 0.0025])
    # What the optimiser goes by: matrices and vectors of the policy, and the value head's own rate.
    assert [group["lr"] for group in trainer.optimiser.param_groups] == pytest.approx([0.0025, 0.0025, 0.00025])


def test_a_loss_that_is_not_finite_stops_the_run(words):
    trainer = trainer_of(words)
    with torch.no_grad():
        trainer.actor.value_head.weight.fill_(torch.inf)
    with pytest.raises(NonFiniteError, match="step 1"):
        trainer.step(1, always)


class KeptLessons(PPOTrainer):
    """A trainer that keeps what its updates learn from."""

    def _update(self, rollouts, advantages, returns, step):
        self.lesson = (rollouts, advantages, returns)
        return super()._update(rollouts, advantages, returns, step)


@pytest.mark.parametrize("whiten", [False, True])
def test_a_step_learns_from_its_rewards_penalties_and_values(words, whiten):
    """The lesson of a third step, worked out answer by answer: r_t = -0.3 log-ratio_t, the reward added to the last; d_t = r_t + 0.9 V_(t+1) - V_t; A_t = d_t + 0.9 x 0.7 A_(t+1)."""
    changes = {"kl_coefficient": 0.3, "gamma": 0.9, "gae_lambda": 0.7, "whiten_advantages": whiten}
    trainer = trainer_of(words, kind=KeptLessons, learning_rate=5e-3, value_learning_rate=0.1, **changes)
    for step in (1, 2):
        trainer.step(step, always)
    _, answered, _ = trainer.step(3, always)
    rollouts, advantages, returns = trainer.lesson
    expected, targets = [], []
    for i, ids in enumerate(rollouts.drawn.answers):
        values = [*rollouts.values[i, : len(ids)].tolist(), 0.0]
        ratios = (rollouts.log_probs - rollouts.reference_log_probs)[i, : len(ids)].tolist()
        assert max(map(abs, ratios)) > 1e-3 and max(map(abs, values)) > 1e-2
        earned = [-0.3 * ratio for ratio in ratios]
        earned[-1] += answered.rewards.value[i]
        found = [0.0]
        for t in reversed(range(len(ids))):
            found.insert(0, earned[t] + 0.9 * values[t + 1] - values[t] + 0.9 * 0.7 * found[0])
        expected += found[:-1]
        targets += [a + v for a, v in zip(found[:-1], values, strict=False)]
    if whiten:
        expected = (np.array(expected) - np.mean(expected)) / np.std(expected)
    np.testing.assert_allclose(advantages[rollouts.mask].numpy(), expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(returns[rollouts.mask].numpy(), targets, rtol=1e-4, atol=1e-5)


def test_a_process_without_an_answer_in_a_minibatch_is_refused(words):
    """Four answers in two processes are two for each: three minibatches would leave one empty."""
    trainer = trainer_of(words, minibatches=3)
    two = SimpleNamespace(num_processes=2)
    with pytest.raises(SettingsError, match="2 answers in each of 2"):
        PPOTrainer(trainer.settings, trainer.policy, trainer.reward, PROMPTS, accelerator=two)


def test_a_policy_that_became_nan_is_told(words):
    trainer = trainer_of(words)
    with torch.no_grad():
        next(iter(trainer.parameters.values())).fill_(torch.nan)
    with pytest.raises(NonFiniteError, match="next token"):
        trainer.step(1, always)


def test_a_padding_token_that_the_model_has_no_row_for_is_not_taken(words, tmp_path):
    """The tokenizer's own would be id 8 of a table of 8 rows."""
    folder = tmp_path / "policy"
    shutil.copytree(words, folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    tokenizer.save_pretrained(folder)
    trainer, plain = trainer_of(str(folder)), trainer_of(words)
    assert trainer.policy.tokenizer.pad_token_id == 8
    first, second = (one.roll_out(requests(one, 2), 1) for one in (trainer, plain))
    assert first.drawn.answers == second.drawn.answers
