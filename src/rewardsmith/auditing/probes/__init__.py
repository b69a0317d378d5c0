"""The probes that come with rewardsmith, one module a family; importing such a module registers its probes."""

from __future__ import annotations

from importlib import import_module

FAMILIES = (
    "length",
    "formatting",
    "openings",
    "persuasion",
    "intrusions",
    "degenerate",
    "invariance",
    "prompt_use",
    "position",
)


def load() -> None:
    """Register them all, in this order; a second call does nothing."""
    for name in FAMILIES:
        import_module(f"{__name__}.{name}")
