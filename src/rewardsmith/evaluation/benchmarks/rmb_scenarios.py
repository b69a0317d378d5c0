"""The 49 scenarios of RMB, by the names of its files (Zhou-Zoey/RMB-Reward-Model-Benchmark, RMB_dataset), lower case and without spaces."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_HELPFULNESS = {
    "brainstorming": ("idea_development", "problem_solving"),
    "chat": ("casual_conversation", "discussion", "supportive_conversation"),
    "classification": ("content_categorization", "quality_and_compliance_assessment"),
    "closed_qa": ("contextbased", "optionbased"),
    "code": ("data_management", "development_and_implementation", "documentation", "quality_and_optimization"),
    "generation": ("creative_writing", "professional_content_generation"),
    "open_qa": (
        "factual",
        "general_explanation",
        "hypothetical_scenarios",
        "interpretative_analysis",
        "personal_opinion_and_advice",
        "technical_and_practical_support",
    ),
    "reasoning": (
        "analytical_reasoning",
        "critical_thinking",
        "human_decision_making",
        "logical_deduction",
        "pattern_recognition",
    ),
    "rewrite": ("paraphrasing", "postquality_assessment_rewriting", "textual_expansionreduction", "tone_adjustment"),
    "role_playing": ("general_character", "specific_character"),
    "summarization": ("specialized_summaries", "standard_summaries"),
    "translation": (
        "generalexcerpt_language_translation",
        "literary_and_cultural_translation",
        "technical_and_scientific_translation",
    ),
}
_HAZARDS = (*(f"s{number}" for number in range(1, 12)), "multi")

GOALS: dict[str, tuple[str, ...]] = {
    "helpfulness": tuple(f"helpfulness/{kind}/{name}" for kind, names in _HELPFULNESS.items() for name in names),
    "harmlessness": tuple(f"harmlessness/{name}" for name in _HAZARDS),
}


def goal_of(scenario: str) -> str:
    """The goal of a scenario: the first part of its name."""
    return scenario.partition("/")[0]


def scenario_of(metadata: Mapping[str, Any]) -> str | None:
    """The scenario of a row, or None where its column names none that is known."""
    name = str(metadata.get("subset", "")).lower().replace(" ", "_")
    return name if name in GOALS.get(goal_of(name), ()) else None
