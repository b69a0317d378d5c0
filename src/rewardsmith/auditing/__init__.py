"""Before any reinforcement learning: what a policy would exploit in a reward model, measured on anything that scores."""
