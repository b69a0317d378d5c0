"""A reward model put to work: rewards for reinforcement learning, best-of-n, win rates, guardrails. Nothing here loads torch."""
