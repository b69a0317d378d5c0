"""The probes that come with rewardsmith, one module a family; importing this package registers them, in the order of the families."""

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

for _name in FAMILIES:
    import_module(f"{__name__}.{_name}")
