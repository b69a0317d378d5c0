"""Training above frozen layers: without them, on states that they left once, by the same trainer, losses and order as ever.

Nothing but the network's forward knows of it. Which texts a batch holds is found by their ids, so batches, packed or padded, dev scores and checkpoints are those of the whole network.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from torch import Tensor

from rewardsmith import launched
from rewardsmith.config import TrainSettings
from rewardsmith.model.batching import Batch
from rewardsmith.model.batching_choice import PACKED_FAMILIES
from rewardsmith.model.examples import ExampleTable
from rewardsmith.model.feature_cache import FeatureReader
from rewardsmith.model.layers import LayerStack, layer_stack, num_frozen_layers
from rewardsmith.model.learner import Learner, Say
from rewardsmith.model.network import Network
from rewardsmith.model.packing import PackedBatch
from rewardsmith.model.precision import Format
from rewardsmith.model.render import TokenTable
from rewardsmith.model.scoring import score_tokens
from rewardsmith.model.trunk_states import FOLDER, Trunk, TrunkPlan, TrunkStates, plan_states
from rewardsmith.scores import Scores
from rewardsmith.storage import remove_abandoned

# Families whose scores and gradients above known states a test compares with those of the whole network, in float64 (Gemma 2, whose attention is of float32, in float32).
TRUNK_FAMILIES = PACKED_FAMILIES | {"deberta-v2", "gemma2"}
# Of a step's arithmetic: less is not worth the disk.
LEAST_SHARE = 0.1
# Times that each text is read: from there on the file is worth writing.
LEAST_READS = 2
# Of the disk's free space: as much is left to others.
_OF_FREE = 0.5


@dataclass(kw_only=True)
class TrunkNetwork(Network):
    """A network whose frozen layers are not run on texts whose states are known; on others it is the whole one.

    Args:
        trunk: its frozen layers.
        states: that are known.
    """

    trunk: Trunk
    states: TrunkStates

    def outputs(self, batch: Batch | PackedBatch) -> Tensor:
        """See `Network`."""
        states = self.states.of(batch)
        if states is None:
            return super().outputs(batch)
        with self.trunk.given(states):
            return super().outputs(batch)


@dataclass(frozen=True)
class TrunkLearner(Learner):
    """The layers above the frozen ones, over states.

    Args:
        plan: what was read.
        states: of all texts of both tables.
    """

    plan: TrunkPlan
    states: TrunkStates

    def score(self, tokens: TokenTable) -> Scores:
        """See `Learner`; float32 states spare the frozen layers."""
        if self.plan.precision != "float32":
            return super().score(tokens)
        pad_id, with_types = self.reader.padding
        return score_tokens(self.network, tokens, pad_id=pad_id, with_types=with_types, device=self.reader.device)

    def facts(self) -> dict[str, Any]:
        """See `Learner`."""
        plan = self.plan
        return {
            "frozen_layers": {
                "layers": plan.trunk.count,
                "texts": len(plan.texts),
                "tokens": plan.shape[0],
                "bytes": plan.num_bytes,
                "precision": plan.precision,
                "cache": self.states.origin,
            }
        }


def choose_above(
    reader: FeatureReader,
    table: ExampleTable,
    dev_table: ExampleTable | None,
    settings: TrainSettings,
    *,
    precision: Format,
    say: Say,
) -> Learner:
    """What stands above the frozen layers, over states, where that is exact and pays; else the network as it is. See `frozen_features.choose_learner`."""
    plain = Learner(reader.network, table, dev_table, reader)
    if not isinstance(settings.freeze, int):
        return plain
    stack = layer_stack(reader.network)
    count = num_frozen_layers(settings.freeze, stack)
    if reason := obstacle(reader.network, stack, count, settings):
        say(f"frozen layers: run at every step, for {reason}")
        return plain
    tables = [table] if dev_table is None else [table, dev_table]
    tokens = TokenTable.join([one.tokens for one in tables])
    plan = plan_states(reader, tokens, stack, count, precision=precision)
    reads = num_reads(settings, len(table))
    remove_abandoned(plan.path.parent)  # what a killed run left there would count towards the limit for good
    if reason := objection(plan, settings, reads=reads):
        say(f"frozen layers: run at every step, for {reason}")
        return plain
    size = f"{_size(plan.num_bytes)} on disk, of at most {settings.frozen_cache_gb:g} GB"
    say(f"frozen layers: states of {len(plan.texts):,} texts, {plan.shape[0]:,} tokens ({size})")
    states = plan.read()
    if states is None:
        say("frozen layers: run at every step, for the states could not be written")
        return plain
    done = "cache hit" if states.origin == "hit" else "computed"
    saved = f"layers 1 to {count} of {stack.count} are {share_of(count, stack):.0%} of its arithmetic"
    say(f"frozen layers: {done} in {states.seconds:.1f} s; a step runs what stands above them (auto: {saved})")
    whole = {one.name: getattr(reader.network, one.name) for one in fields(reader.network)}
    above = TrunkNetwork(**whole, trunk=plan.trunk, states=states)
    return TrunkLearner(above, table, dev_table, reader, plan, states)


def obstacle(network: Network, stack: LayerStack, count: int, settings: TrainSettings) -> str | None:
    """Why states of the frozen layers are not kept, as far as settings and architecture show it; None where they can be."""
    if not count:
        return "only the embeddings are frozen"
    if settings.dropout:
        return "dropout changes their states at every step"
    if not settings.cache:
        return "cache = false"
    if not settings.frozen_cache_gb:
        return "frozen_cache_gb = 0"
    if settings.trainer.get("torch_compile"):
        return "a compiled model cannot pass them over (torch_compile)"
    if launched.count() > 1:
        return "each of several processes would keep the states of all texts"
    if network.backbone_type not in TRUNK_FAMILIES:
        return f"passing them over is not proven for {network.backbone_type}"
    if (share := share_of(count, stack)) < LEAST_SHARE:
        return f"they are {share:.0%} of a step's arithmetic, which does not pay for the disk"
    return None


def objection(plan: TrunkPlan, settings: TrainSettings, *, reads: float) -> str | None:
    """Why the states of a run are not kept, as far as its texts and the disk show it; None where they can be."""
    if plan.trunk.trained_below:
        return "a part that is trained acts below them"
    path = plan.path
    if path.exists():
        return None
    if reads < LEAST_READS:
        return f"each text is read {reads:.3g} times, and writing its states pays from {LEAST_READS} on"
    limit, held = settings.frozen_cache_gb * 1e9, _held(path.parent)
    if plan.num_bytes + held > limit:
        there = f" beside {_size(held)} of earlier runs in {FOLDER}/ of the cache folder" if held else ""
        return (
            f"their states take {_size(plan.num_bytes)} on disk{there}, more than frozen_cache_gb = {settings.frozen_cache_gb:g} allows; "
            "raise it, or delete files there"
        )
    free = _free(path.parent)
    if plan.num_bytes > _OF_FREE * free:
        return f"their states take {_size(plan.num_bytes)} on disk, more than half of the {_size(free)} that are free"
    return None


def share_of(count: int, stack: LayerStack) -> float:
    """The share of a step's arithmetic that frozen layers take: one forward pass, where a trained layer takes three times as much.

    >>> share_of(4, LayerStack("encoder.layer.", 6))
    0.4
    """
    return count / (count + 3 * (stack.count - count))


def num_reads(settings: TrainSettings, num_examples: int) -> float:
    """How often a run reads each example."""
    steps = int(settings.trainer.get("max_steps", -1))
    return steps * settings.batch_size / num_examples if steps > 0 else settings.epochs


def _held(folder: Path) -> int:
    """Bytes of the files in a folder."""
    return sum(path.stat().st_size for path in folder.iterdir() if path.is_file()) if folder.is_dir() else 0


def _free(folder: Path) -> int:
    """Bytes that are free where a folder is, or will be."""
    return shutil.disk_usage(next(one for one in (folder, *folder.parents) if one.exists())).free


def _size(num_bytes: int) -> str:
    return f"{num_bytes / 1e9:,.1f} GB" if num_bytes >= 1e9 else f"{max(1, round(num_bytes / 1e6)):,} MB"
