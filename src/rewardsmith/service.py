"""Serving from the command line: load and check the models, then a server around them until it is stopped."""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from rewardsmith.config import ScoringSettings, ServeSettings
from rewardsmith.data.schema import Pair
from rewardsmith.errors import ContractError, MissingExtraError, SettingsError
from rewardsmith.model.published import Published, publish
from rewardsmith.model.reward_model import RewardModel
from rewardsmith.scores import DomainDetector, DomainFlag, Features
from rewardsmith.use.guard_rule import Rule, check_rate, identity_of, stored_rule

try:
    from rewardsmith.serving.guard import read_keys
    from rewardsmith.serving.served import Golden, ServedModel
    from rewardsmith.serving.server import Server
except ModuleNotFoundError as error:
    raise MissingExtraError("the server", str(error.name), "serve") from error


def named(sources: list[str]) -> dict[str, str]:
    """NAME=MODEL or MODEL, which is named after its folder, as {name: source}.

    Raises:
        SettingsError: if two have one name, or a name or a model is empty.
    """
    found: dict[str, str] = {}
    for source in sources:
        name, equals, place = source.partition("=")
        if not equals or Path(source).exists():
            name, place = Path(source).resolve().name, source
        if not name or not place:
            raise SettingsError("MODEL or NAME=MODEL", repr(source), "Give both a name and a model.")
        if name in found:
            raise SettingsError("models of different names", f"{name} twice", "Name them: NAME=MODEL.")
        found[name] = place
    return found


def serve(
    sources: Mapping[str, str],
    settings: ServeSettings,
    scoring: ScoringSettings,
    *,
    console: Console,
    on_started: Callable[[str], None],
) -> None:
    """Serve models until SIGTERM or Ctrl-C.

    Args:
        sources: {name: model folder, run folder, exported folder or Hugging Face name}.
        settings: of the server.
        scoring: device and precision of the models.
        console: for what is said on the way.
        on_started: is told the address, once it listens.

    Raises:
        RewardsmithError: if a model is not what its folder promises, or the address cannot be had.
    """
    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
    keys = read_keys(settings)
    guardrail = read_guardrail(settings.guardrail)
    models: list[ServedModel] = []
    for name, source in sources.items():
        model = RewardModel.load(source, scoring)
        published = publish(model, source)
        domain = None if settings.domain is None else domain_detector(settings.domain, published, source, scoring)
        rule = None if guardrail is None else guard_rule(guardrail, published)
        models.append(served(name, published, settings, domain=domain, guardrail=rule))
        render, golden = model.contract.render, models[-1].golden
        to_check = f"{len(golden.inputs)} golden scores" if golden else "no golden scores to check"
        line = f"{name}: {model.precision}, encoding {render.encoding}, max_length {render.max_length}, {to_check}"
        console.print(line, highlight=False, markup=False, soft_wrap=True)
        if domain is not None:
            line = f"{name}: /v1/score says how far texts lie from the reference of {Path(str(settings.domain)).name}"
            console.print(line, highlight=False, markup=False, soft_wrap=True)
        if rule is not None:
            low, high = rule.bounds
            line = f"{name}: /v1/guard refuses below {low:.3f}, allows from {high:.3f} on"
            console.print(line, highlight=False, markup=False, soft_wrap=True)
    if settings.guardrail is not None and not any(model.guardrail for model in models):
        raise ContractError(
            "a guardrail of a served model", "one of another model", "Scores of two models are not comparable: fit one."
        )
    if settings.domain is not None and not any(model.domain for model in models):
        raise ContractError(
            "a domain detector of a served model", "one of another model", "Save one with the audit of this model."
        )
    console.print(f"{len(keys)} keys let in" if keys else "no key is asked for", highlight=False)
    Server(models, settings, keys, on_started=on_started).serve_until_stopped()


class _InTurn:
    """A detector that several threads may ask: one after the other, for its model would else fight with itself for the cores."""

    def __init__(self, detector: DomainDetector) -> None:
        self._detector, self._lock = detector, threading.Lock()

    def flags(self, pairs: Sequence[Pair]) -> list[DomainFlag]:
        """See `DomainDetector`."""
        with self._lock:
            return self._detector.flags(pairs)


class _OtherModel(Exception):
    """The detector reads the features of another model than this one."""


def domain_detector(folder: str, published: Published, source: str, scoring: ScoringSettings) -> DomainDetector | None:
    """The saved detector for one of the served models; None where it belongs to another model.

    Args:
        folder: that `audit --against` has saved.
        published: the model.
        source: where the model came from.
        scoring: device and precision.

    Raises:
        ContractError: if the folder holds no detector.
        ModelError: if the model has no features, as an exported one.
    """
    from rewardsmith.auditing.outliers import load_detector
    from rewardsmith.model.features import FrozenEncoder

    def features_of(made_by: Mapping[str, Any]) -> Features:
        if "encoder" not in made_by and dict(made_by["files"]) != dict(published.model.contract.files):
            raise _OtherModel
        encoder = made_by.get("encoder", source)
        return FrozenEncoder(encoder, max_length=int(made_by["max_length"]), settings=scoring)

    try:
        return _InTurn(load_detector(Path(folder), features_of))
    except _OtherModel:
        return None


def read_guardrail(wanted: float | str | None) -> float | Rule | None:
    """What `ServeSettings.guardrail` asks for, checked before a model is loaded: a rate, or the rule of a file.

    Raises:
        SettingsError: if the rate is none, or there is no such file.
        ContractError: if the file is no guardrail.
    """
    if isinstance(wanted, str):
        if not Path(wanted).is_file():
            raise SettingsError(
                "a rate as 0.05, or a file of `Guardrail.save`, for `guardrail`",
                f"{wanted!r}, which is no number and no file",
                "Write for example --set guardrail=0.05.",
            )
        return Rule.load(Path(wanted))
    if wanted is not None:
        check_rate(wanted)
    return wanted


def guard_rule(wanted: float | Rule, published: Published) -> Rule | None:
    """The guardrail of one of the served models; None where a saved one is of another model.

    Raises:
        SettingsError: if no threshold is stored with the model for this rate.
    """
    contract = published.model.contract.as_dict()
    if isinstance(wanted, Rule):
        return wanted if wanted.is_of(identity_of(contract)) else None
    return stored_rule(contract, wanted)


def served(
    name: str,
    published: Published,
    settings: ServeSettings,
    *,
    domain: DomainDetector | None = None,
    guardrail: Rule | None = None,
) -> ServedModel:
    """A checked model as the server takes it."""
    model, contract = published.model, published.model.contract
    golden = Golden(published.inputs, published.scores, published.tolerance) if published.inputs else None
    return ServedModel(
        name=name,
        scorer=model,
        max_length=contract.render.max_length,
        precision=model.precision,
        templated_texts=settings.templated_texts,
        temperature=contract.temperature,
        centre=contract.normaliser.mean if contract.normaliser else 0.0,
        contract=published.contract,
        golden=golden,
        domain=domain,
        guardrail=guardrail,
    )
