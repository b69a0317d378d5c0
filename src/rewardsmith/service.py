"""Serving from the command line: load and check the models, then a server around them until it is stopped."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from rich.console import Console

from rewardsmith.config import ScoringSettings, ServeSettings
from rewardsmith.errors import MissingExtraError, SettingsError
from rewardsmith.model.published import Published, publish
from rewardsmith.model.reward_model import RewardModel

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
    models = []
    for name, source in sources.items():
        model = RewardModel.load(source, scoring)
        models.append(served(name, publish(model, source), settings))
        render, golden = model.contract.render, models[-1].golden
        to_check = f"{len(golden.inputs)} golden scores" if golden else "no golden scores to check"
        line = f"{name}: {model.precision}, encoding {render.encoding}, max_length {render.max_length}, {to_check}"
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    console.print(f"{len(keys)} keys let in" if keys else "no key is asked for", highlight=False)
    Server(models, settings, keys, on_started=on_started).serve_until_stopped()


def served(name: str, published: Published, settings: ServeSettings) -> ServedModel:
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
    )
