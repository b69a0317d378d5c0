"""Who this process is among those that `torchrun` or `accelerate launch` started: by the environment, and without torch."""

from __future__ import annotations

import os


def count() -> int:
    """How many processes do the work together."""
    return int(os.environ.get("WORLD_SIZE") or 1)


def place() -> int:
    """This process's place among them, from 0."""
    return int(os.environ.get("RANK") or 0) if count() > 1 else 0


def is_first() -> bool:
    """Whether this process writes, and talks to people."""
    return place() == 0
