"""How each result came to be: model, data, settings, versions, as the documents and the manifest tell it."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from rewardsmith.evaluation.pages.folders import AUDIT, Report, evaluation_of

Rows = list[tuple[str, str]]


@dataclass(frozen=True)
class Origin:
    """Where one model and its numbers come from; `folded` holds what few will read."""

    name: str
    rows: Rows
    folded: dict[str, Rows] = field(default_factory=dict)


def provenance(report: Report) -> list[Origin]:
    """One origin a model, and one an audit."""
    found = []
    for model in report.models:
        if model["report"]["verb"] != AUDIT:
            found.append(_origin(model))
        for audit in model.get("audits") or ():
            found.append(_origin(audit | {"name": f"{model['name']}, audited on {audit['name']}"}))
    return found


def _origin(model: Mapping[str, Any]) -> Origin:
    report, manifest = model["report"], model.get("manifest") or {}
    evaluation = evaluation_of(report)
    named = report.get("model") if isinstance(report.get("model"), Mapping) else {}
    settings = manifest.get("settings") or {}
    command = manifest.get("command") or []
    code = manifest.get("code") or {}
    swap = evaluation.get("swap_test") or {}
    rows = [
        ("made by", f"rewardsmith {report['verb']}"),
        ("command", shlex.join(["rewardsmith", *map(str, command)]) if command else None),
        ("model", (named or {}).get("name")),
        ("base model", (manifest.get("model") or {}).get("source") or settings.get("model")),
        ("architecture", (manifest.get("model") or {}).get("architecture")),
        ("pooling", (manifest.get("model") or {}).get("pooling")),
        ("loss", (settings.get("loss") or {}).get("name")),
        ("seed", report.get("seed", settings.get("seed"))),
        ("precision", _precision(report, manifest)),
        ("backend", report.get("backend")),
        ("device", (manifest.get("device") or {}).get("type")),
        ("code", f"{code['commit']}{' (changed since)' if code.get('dirty') else ''}" if code.get("commit") else None),
        ("began", manifest.get("started")),
        ("ended", manifest.get("ended")),
        ("outcome", manifest.get("outcome")),
        ("scored again with the sides exchanged", _swap(swap)),
    ]
    return Origin(
        model["name"],
        [(name, str(value)) for name, value in rows if value not in (None, "")],
        {
            name: found
            for name, found in {
                "Data": list(_data(report, manifest)),
                "Files of the model": _flat((named or {}).get("files") or {}),
                "How texts are read": _flat(manifest.get("render") or {}),
                "Settings": _flat(settings),
                "Versions": _flat(report.get("versions") or manifest.get("versions") or {}),
            }.items()
            if found
        },
    )


def _precision(report: Mapping[str, Any], manifest: Mapping[str, Any]) -> str | None:
    if report.get("precision"):
        worst = report.get("precision_max_difference")
        return (
            f"{report['precision']}{'' if worst is None else f' (scores differ by at most {worst:.1e} from float32)'}"
        )
    trained = (manifest.get("precision") or {}).get("name")
    return f"trained in {trained}, judged in float32" if trained else None


def _swap(swap: Mapping[str, Any]) -> str | None:
    if not swap:
        return None
    worst = swap["max_difference"]
    scores = f"scores differ by at most {worst:.1e}" if worst else "the same scores"
    return f"{swap['rescored_pairs']:,} pairs: accuracy {swap['accuracy']:.3f} + {swap['swapped_accuracy']:.3f} = 1; {scores}"


def _data(report: Mapping[str, Any], manifest: Mapping[str, Any]) -> Iterable[tuple[str, str]]:
    """The sources with their fingerprints."""
    parts = manifest.get("data") or {}
    if isinstance(report.get("data"), Mapping):
        parts = {"audited on" if report["verb"] == AUDIT else "judged on": report["data"]}
    for name, facts in parts.items():
        if not isinstance(facts, Mapping):
            continue
        for key in ("source", "sha256", "rows", "pairs", "formats", "without", "skipped_bad", "leaked"):
            if facts.get(key) not in (None, {}, []):
                yield f"{name}: {key.replace('_', ' ')}", _value(facts[key])


def _flat(document: Mapping[str, Any], prefix: str = "") -> Rows:
    """Settings within settings as `loss.name`."""
    rows: Rows = []
    for key, value in document.items():
        if isinstance(value, Mapping) and value:
            rows += _flat(value, f"{prefix}{key}.")
        else:
            rows.append((f"{prefix}{key}", _value(value)))
    return rows


def _value(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
