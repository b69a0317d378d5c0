"""SmolLM2-135M-Instruct is trained by TRL's GRPOTrainer (LoRA, on a CPU) to please a reward model; how far it got is measured on prompts that it never saw.

    python examples/grpo_trl.py --reward-model runs/demo --prompts train.jsonl --eval-prompts eval.jsonl --out runs/grpo

Prompts are rows of any kind that data may have; only their prompts are read. Before and after, the policy answers each held-out prompt, drawn by the same numbers, so the
differences are paired. OUT gets report.json (also on stdout), samples.jsonl with both answers to each prompt, and policy/, the trained model. What the reward model pays for may be
length or repetition: the report says how both changed; `rewardsmith audit` says more.
"""

import argparse
import contextlib
import json
import sys
import tempfile
from pathlib import Path

import numpy as np

from rewardsmith.config import ScoringSettings
from rewardsmith.data import io
from rewardsmith.data.schema import prompt_key
from rewardsmith.data.texts import read_prompts
from rewardsmith.errors import DataError, MissingExtraError, RewardsmithError, SettingsError
from rewardsmith.loading import described, load_source, papers
from rewardsmith.manifest import without_paths
from rewardsmith.stats import cluster_codes, mean
from rewardsmith.storage import check_result_folder, write_json
from rewardsmith.use import Reward, Sample, Shaping, trl_reward_function
from rewardsmith.use.repetition import repeated_share
from rewardsmith.use.rewards import check_needs


def arguments(words):
    """What the command line says."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--reward-model", required=True, help="a MODEL: a folder, the URL of a server, FILE.py:NAME")
    parser.add_argument("--prompts", required=True, help="to train on")
    parser.add_argument("--eval-prompts", required=True, help="to measure on; none of them is trained on")
    parser.add_argument("--out", required=True, type=Path)
    parser.add_argument("--policy", default="smollm2", help="a causal language model with a chat template")
    parser.add_argument("--shaping", help="a file of Shaping.save")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--prompts-per-step", type=int, default=4)
    parser.add_argument("--generations", type=int, default=4, help="answers a prompt")
    parser.add_argument("--max-new-tokens", type=int, default=64)
    parser.add_argument(
        "--max-prompt-characters", type=int, default=600, help="longer prompts are left out and counted"
    )
    parser.add_argument("--max-eval-prompts", type=int, default=100)
    parser.add_argument("--learning-rate", type=float, default=1e-4)
    parser.add_argument("--beta", type=float, default=0.05, help="coefficient of the KL penalty in the loss")
    parser.add_argument("--kl-budget", type=float, default=10.0, help="nats an answer; whether it was kept is reported")
    parser.add_argument("--rank", type=int, default=16, help="of LoRA")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--overwrite", action="store_true")
    parser.add_argument("--tiny", action="store_true", help="two short steps, to see it run")
    found = parser.parse_args(words)
    if found.tiny:
        found.steps, found.prompts_per_step, found.generations, found.max_new_tokens = 2, 2, 2, 8
        found.max_eval_prompts = min(found.max_eval_prompts, 12)
    return found


def check_settings(options):
    """Refuse what TRL would refuse, or never get through, after minutes of answers.

    Raises:
        SettingsError: naming the option.
    """
    least = {"generations": 2, "steps": 1, "prompts_per_step": 1, "max_new_tokens": 1, "max_eval_prompts": 2, "rank": 1}
    for name, number in least.items():
        if (came := getattr(options, name)) < number:
            raise SettingsError(f"--{name.replace('_', '-')} of at least {number}", f"{came}", "Raise it.")


def policy_folder(policy):
    """Where the policy is, as transformers takes it.

    Raises:
        ModelError: if there is none.
        SettingsError: if it has no chat template.
    """
    from transformers import AutoTokenizer

    from rewardsmith.model.network import read_config, source_folder

    folder = source_folder(policy)
    read_config(folder)
    if not AutoTokenizer.from_pretrained(folder).chat_template:
        raise SettingsError("a policy with a chat template", policy, "Take an instruction-tuned one.")
    return folder


def prompts_for(options):
    """(prompts to train on, prompts to measure on, how many were left out and why)."""
    train, held = (
        [
            prompt if isinstance(prompt, list) else [{"role": "user", "content": prompt}]
            for prompt in read_prompts(source)
        ]
        for source in (options.prompts, options.eval_prompts)
    )
    seen = {prompt_key(prompt) for prompt in held}
    fresh = [prompt for prompt in train if prompt_key(prompt) not in seen]
    short = [[one for one in some if len(prompt_key(one)) <= options.max_prompt_characters] for some in (fresh, held)]
    if not all(short):
        raise DataError("prompts to train on and others to measure on", "none of one kind", "Check both files.")
    left_out = {
        "also_held_out": len(train) - len(fresh),
        "too_long": len(fresh) - len(short[0]),
        "held_out_too_long": len(held) - len(short[1]),
    }
    rng = np.random.default_rng(options.seed)
    chosen = sorted(rng.permutation(len(short[1]))[: options.max_eval_prompts].tolist())
    return short[0], [short[1][i] for i in chosen], left_out


def answers_of(policy, prompts, options):
    """One answer to each prompt as samples; the same numbers draw them whatever the policy."""
    from rewardsmith.model.policy import Policy

    drawer = Policy(policy, max_new_tokens=options.max_new_tokens)
    drawn = [one for (one,) in drawer.draw(prompts, 1, seed=options.seed)]
    counts = [len(drawer.tokenizer(one.answer, add_special_tokens=False)["input_ids"]) for one in drawn]
    return [
        Sample(prompt, one.answer, is_finished=not one.is_cut, num_tokens=count + (not one.is_cut))
        for prompt, one, count in zip(prompts, drawn, counts, strict=True)
    ]


def log_ratios(samples, policy, reference):
    """The estimate k1 of each answer's KL in nats, log policy(answer) - log reference(answer), (n,).

    Of its text as the tokenizer reads it again. The end counts where the policy wrote one, with what the chat template closes a turn by (of ChatML a line break,
    which the policy did not draw).
    """
    from rewardsmith.model.implicit_reward import ImplicitReward

    both, found = ImplicitReward(policy, reference), np.zeros(len(samples))
    for finished in (True, False):
        rows = [i for i, sample in enumerate(samples) if sample.is_finished == finished]
        both.count_end = finished
        found[rows] = both.log_ratios([samples[i].pair for i in rows])
    return found


def train(options, prompts, reward_model, shaping, reference, *, folder):
    """Train; returns what each step logged. The trained policy is at OUT/policy."""
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import GRPOConfig, GRPOTrainer

    tokenizer = AutoTokenizer.from_pretrained(reference)
    model = AutoModelForCausalLM.from_pretrained(reference, dtype=torch.float32)
    ends = model.generation_config.eos_token_id
    function = trl_reward_function(
        reward_model, shaping, tokenizer=tokenizer, end_token_ids=[ends] if isinstance(ends, int) else ends
    )
    settings = GRPOConfig(
        output_dir=folder,
        max_steps=options.steps,
        per_device_train_batch_size=options.prompts_per_step * options.generations,
        num_generations=options.generations,
        max_completion_length=options.max_new_tokens,
        learning_rate=options.learning_rate,
        lr_scheduler_type="constant",
        beta=options.beta,
        seed=options.seed,
        use_cpu=not torch.cuda.is_available(),
        bf16=False,
        gradient_checkpointing=False,
        logging_steps=1,
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
    )
    trainer = GRPOTrainer(
        model=model,
        reward_funcs=function,
        args=settings,
        train_dataset=Dataset.from_list([{"prompt": prompt} for prompt in prompts]),
        processing_class=tokenizer,
        peft_config=LoraConfig(
            r=options.rank, lora_alpha=2 * options.rank, target_modules="all-linear", task_type="CAUSAL_LM"
        ),
    )
    trainer.train()
    trainer.model.merge_and_unload().save_pretrained(options.out / "policy")
    tokenizer.save_pretrained(options.out / "policy")
    keys = (
        "reward",
        "reward_std",
        "kl",
        "frac_reward_zero_std",
        "completions/mean_length",
        "completions/clipped_ratio",
    )
    return [
        {key: row[key] for key in ("step", *keys) if key in row}
        | {k: v for k, v in row.items() if "reward_model/" in k}
        for row in trainer.state.log_history
        if "reward" in row
    ]


def measured(samples, rewards):
    """One row of numbers a kind, (n,)."""
    return {
        "reward": rewards.value,
        "score": rewards.score.astype(np.float64),
        "characters": np.array([len(one.answer) for one in samples], np.float64),
        "tokens": np.array([one.num_tokens for one in samples], np.float64),
        "repeated_trigrams": np.array([repeated_share(one.answer) for one in samples]),
        "unfinished": np.array([not one.is_finished for one in samples], np.float64),
    }


def settings_of(options):
    """As given, but for where files lie; what the reward model was stands in the report already, and its address may hold a password."""
    given = {key: str(value) if isinstance(value, Path) else value for key, value in vars(options).items()}
    return without_paths({key: value for key, value in given.items() if key != "reward_model"})


def report(options, source, before, after, *, rewards, ratios, logs, facts):
    """The document."""
    clusters = cluster_codes([sample.group for sample in before])
    numbers = [measured(*both) for both in zip((before, after), rewards, strict=True)]

    def told(values):
        return mean(values, clusters, seed=options.seed).as_dict()

    kl = told(ratios)
    return {
        "verb": "grpo_trl",
        "reward_model": described(source),
        "settings": settings_of(options),
        "before": {name: told(values) for name, values in numbers[0].items()},
        "after": {name: told(values) for name, values in numbers[1].items()},
        "difference": {name: told(numbers[1][name] - numbers[0][name]) for name in numbers[0]},
        "kl": kl,
        "kl_within_budget": kl["high"] <= options.kl_budget,
        "steps": logs,
        "papers": papers(facts, options.seed),
    }


def run(options):
    """The whole of it; everything that can be wrong with inputs is looked at before a model is loaded."""
    check_result_folder(options.out, "grpo_trl", options.prompts, options.eval_prompts, overwrite=options.overwrite)
    check_settings(options)
    shaping = Shaping.load(options.shaping) if options.shaping else None
    # Before and after, there is one answer to each prompt; what is trained on must be what is measured.
    check_needs(shaping, {"kl": "Set --beta.", "groups": "Leave the step out: GRPO normalises groups itself."})
    prompts, held_out, left_out = prompts_for(options)
    if len(prompts) < options.prompts_per_step:
        came = f"{len(prompts)}, fewer than the {options.prompts_per_step} of a step"
        raise SettingsError("prompts to train on for at least one step", came, "Lower --prompts-per-step.")
    if shaping is not None and shaping.references is not None and "references" in shaping.needs:
        shaping.references.of([Sample(prompt, "") for prompt in (*prompts, *held_out)])
    try:
        import peft  # noqa: F401
        import trl  # noqa: F401
    except ModuleNotFoundError as error:
        raise MissingExtraError("this example", error.name or "trl", "rl,lora") from error
    reference = policy_folder(options.policy)
    source = load_source(options.reward_model, ScoringSettings(), threads=options.threads, seed=options.seed)
    from rewardsmith.model.precision import prepare_process

    prepare_process(threads=options.threads, seed=options.seed)  # a server or a function has not done so
    reward = Reward(source.scorer, shaping)
    before = answers_of(reference, held_out, options)
    rewards = [reward.rewards(before)]
    options.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(sys.stderr):  # stdout is for the report
        logs = train(options, prompts, source.scorer, shaping, reference, folder=folder)
    after = answers_of(options.out / "policy", held_out, options)
    rewards.append(reward.rewards(after))
    ratios = log_ratios(after, options.out / "policy", reference)
    facts = {"prompts": len(prompts), "eval_prompts": len(held_out), "left_out": left_out}
    document = report(options, source, before, after, rewards=rewards, ratios=ratios, logs=logs, facts=facts)
    rows = [
        {
            "prompt": one.prompt,
            "before": one.answer,
            "after": other.answer,
            "reward_before": float(rewards[0].value[i]),
            "reward_after": float(rewards[1].value[i]),
            "kl": float(ratios[i]),
            "finished_after": other.is_finished,
        }
        for i, (one, other) in enumerate(zip(before, after, strict=True))
    ]
    io.write_rows(options.out / "samples.jsonl", rows)
    write_json(options.out / "report.json", document)
    return document


def main(words=None):
    """The exit code."""
    try:
        document = run(arguments(words))
    except RewardsmithError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return error.exit_code
    print(json.dumps(document, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
