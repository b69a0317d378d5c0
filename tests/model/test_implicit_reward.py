"""DPO's implicit reward of tiny random models against sums by hand, and what is refused."""

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from rewardsmith.config import ScoringSettings
from rewardsmith.errors import ModelError, SettingsError
from rewardsmith.model.implicit_reward import ImplicitReward
from rewardsmith.scores import TableScorer
from rewardsmith.use.answers_matched import match_answers
from rewardsmith.use.win_rates import win_rates
from tests.tiny_models import save_causal

CONVERSATION = [
    {"role": "user", "content": "Hm?"},
    {"role": "assistant", "content": "Yes?"},
    {"role": "user", "content": "Go on."},
]
PAIRS = [
    ("Hi?", "Hello there."),
    ("How do I mend item 3?", "Gladly use glue number 3, and wait."),
    (CONVERSATION, "No."),
]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """models("llama", chat=True) is (policy, reference): the policy is the reference with its weights moved."""
    made = {}

    def build(family, chat=False):
        if (family, chat) not in made:
            folder = tmp_path_factory.mktemp("dpo")
            reference = save_causal(family, folder / "reference", chat=chat)
            model = AutoModelForCausalLM.from_pretrained(reference)
            torch.manual_seed(3)
            with torch.no_grad():
                for tensor in model.parameters():
                    tensor.add_(0.02 * torch.randn_like(tensor))
            model.save_pretrained(folder / "policy")
            AutoTokenizer.from_pretrained(reference).save_pretrained(folder / "policy")
            made[family, chat] = str(folder / "policy"), reference
        return made[family, chat]

    return build


def by_hand(folder, prompt_text, answer_text):
    """Sum of the log-probabilities of the tokens after the prompt's, one text, no padding."""
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder).eval()
    before = tokenizer(prompt_text, add_special_tokens=False).input_ids
    whole = tokenizer(prompt_text + answer_text, add_special_tokens=False).input_ids
    assert whole[: len(before)] == before
    with torch.no_grad():
        steps = model(torch.tensor([whole])).logits[0].double().log_softmax(dim=-1)
    return sum(float(steps[i - 1, whole[i]]) for i in range(len(before), len(whole)))


def test_it_is_the_sum_over_the_answer_and_what_closes_it_by_a_chat_template(models):
    policy, reference = models("llama", chat=True)
    scorer = ImplicitReward(policy, reference, beta=0.5)
    assert isinstance(scorer, TableScorer)
    expected = []
    for prompt, answer in PAIRS:
        turns = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
        opened = "<s>" + "".join(f"<|start|>{turn['role']}\n{turn['content']}<|end|>\n" for turn in turns)
        opened += "<|start|>assistant\n"
        sums = [by_hand(folder, opened, f"{answer}<|end|>\n") for folder in (policy, reference)]
        expected.append(0.5 * (sums[0] - sums[1]))
    assert scorer.score(PAIRS) == pytest.approx(expected, abs=1e-4)
    assert min(np.abs(expected)) > 1e-3


def test_without_a_chat_template_the_end_token_closes_the_default_text(models):
    policy, reference = models("gpt2")
    opened = "### Prompt:\nHi?\n\n### Answer:\n"
    for count_end, closing in ((True, "<|endoftext|>"), (False, "")):
        scorer = ImplicitReward(policy, reference, count_end=count_end)
        sums = [by_hand(folder, opened, f"Hello there.{closing}") for folder in (policy, reference)]
        assert scorer.score(PAIRS[:1])[0] == pytest.approx(0.1 * (sums[0] - sums[1]), abs=1e-4)
    empty = [by_hand(folder, opened, "<|endoftext|>") for folder in (policy, reference)]
    assert ImplicitReward(policy, reference).log_ratios([("Hi?", "")]) == pytest.approx(empty[0] - empty[1], abs=1e-4)
    assert ImplicitReward(policy, reference, count_end=False).log_ratios([("Hi?", "")]) == [0.0]


def test_the_company_of_a_batch_changes_nothing(models):
    policy, reference = models("llama", chat=True)
    together = ImplicitReward(policy, reference).score(PAIRS)
    singly = ImplicitReward(policy, reference, settings=ScoringSettings(batch_tokens=1)).score(PAIRS[::-1])[::-1]
    assert np.abs(together - singly).max() <= 1e-5
    assert ImplicitReward(policy, reference).score([]).shape == (0,)


def test_a_cut_answer_is_told_and_its_end_is_not_counted(models):
    """At 40 tokens only the beginning of the answer is read; the sum is that of the read tokens without the end that follows the cut."""
    policy, reference = models("gpt2")
    scorer = ImplicitReward(policy, reference, max_length=40)
    table = scorer.table([("Hi?", "word " * 60)])
    assert table.truncated[0] and table.answer_cut[0] > 20 and table.tokens[0] == 40
    tokenizer = AutoTokenizer.from_pretrained(policy)
    ids = scorer._placed.encode([("Hi?", "word " * 60)]).row(0).tolist()
    assert ids[-1] == tokenizer.eos_token_id
    opened = "### Prompt:\nHi?\n\n### Answer:\n"
    read = tokenizer.decode(ids[:-1])[len(opened) :]
    sums = [by_hand(folder, opened, read) for folder in (policy, reference)]
    assert table.score[0] == pytest.approx(0.1 * (sums[0] - sums[1]), abs=1e-4)


def test_beta_scales_rewards_and_moves_no_win(models):
    policy, reference = models("llama", chat=True)
    from rewardsmith.data.schema import Single

    a = [Single(str(i), f"How do I mend item {i}?", f"Gladly use glue number {i}.") for i in range(8)]
    b = [Single(str(i), f"How do I mend item {i}?", f"No idea {i}!") for i in range(8)]
    rates = [win_rates(ImplicitReward(policy, reference, beta=beta), match_answers(a, b)) for beta in (0.1, 2.0)]
    assert rates[0].win_rate == rates[1].win_rate
    assert rates[1].mean_margin.value == pytest.approx(20 * rates[0].mean_margin.value, rel=1e-4)


def test_what_cannot_be_subtracted_is_refused(models, tmp_path):
    policy, reference = models("llama", chat=True)
    with pytest.raises(ModelError, match="one vocabulary"):
        ImplicitReward(policy, models("gpt2")[1])
    with pytest.raises(SettingsError, match="twice"):
        ImplicitReward(policy, policy)
    with pytest.raises(SettingsError, match="beta above 0"):
        ImplicitReward(policy, reference, beta=0.0)
    # Control tokens that were added for the policy alone: no word differs, but the reference has no row for one that occurs.
    grown, tokenizer = tmp_path / "grown", AutoTokenizer.from_pretrained(reference)
    tokenizer.add_special_tokens({"additional_special_tokens": [f"<|new{i}|>" for i in range(12)]})
    tokenizer.chat_template = tokenizer.chat_template.replace("<|start|>", "<|new11|>")
    model = AutoModelForCausalLM.from_pretrained(reference)
    model.resize_token_embeddings(len(tokenizer))
    model.save_pretrained(grown)
    tokenizer.save_pretrained(grown)
    with pytest.raises(ModelError, match="token ids below"):
        ImplicitReward(grown, reference).score(PAIRS[:1])


def test_it_sums_over_what_trls_dpo_trainer_sums_over(models, tmp_path):
    """The log-probabilities of TRL's own forward pass, by its own rendering and mask."""
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    # Of a family whose tokenizer puts nothing before a text: TRL leaves out a first token that the template does not write, and we do not.
    policy, reference = models("gpt2", chat=True)
    rows = [
        {
            "prompt": [{"role": "user", "content": f"How do I mend item {i}?"}],
            "chosen": [{"role": "assistant", "content": f"Gladly use glue number {i}."}],
            "rejected": [{"role": "assistant", "content": "No."}],
        }
        for i in range(3)
    ]
    trainer = DPOTrainer(
        AutoModelForCausalLM.from_pretrained(policy),
        ref_model=AutoModelForCausalLM.from_pretrained(reference),
        args=DPOConfig(output_dir=str(tmp_path), report_to=[], use_cpu=True, per_device_train_batch_size=3, bf16=False),
        train_dataset=Dataset.from_list(rows),
        processing_class=AutoTokenizer.from_pretrained(policy),
    )
    batch = trainer.data_collator([trainer.train_dataset[i] for i in range(3)])
    batch = {name: value for name, value in batch.items() if isinstance(value, torch.Tensor)}
    trainer.model.eval()
    sums = [trainer.compute_ref_log_probs(model, batch) for model in (trainer.model, trainer.ref_model)]
    expected = [[float(value) for value in mine - theirs] for mine, theirs in zip(*sums, strict=True)]
    scorer = ImplicitReward(policy, reference)
    for side, wanted in zip(("chosen", "rejected"), expected, strict=True):
        pairs = [(row["prompt"], row[side][0]["content"]) for row in rows]
        assert scorer.log_ratios(pairs) == pytest.approx(wanted, abs=1e-3)
