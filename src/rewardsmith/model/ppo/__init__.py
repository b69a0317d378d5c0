"""Proximal policy optimisation (Schulman et al. 2017) of a language model against a reward function, on one machine.

    train_ppo(PPOSettings(policy="smollm2", out="runs/ppo", lora=True), Reward(scorer), prompts)

`arithmetic` holds the formulas, `actor` the policy with its value head, `rollouts` what it said and how probable that was, `trainer` a step, `checkpoints` how
a run goes on, `run` the whole of it with its folder.
"""

from rewardsmith.model.ppo.run import PPORun, ppo_run, train_ppo

__all__ = ["PPORun", "ppo_run", "train_ppo"]
