"""The README.md of a model folder, made from its manifest."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rewardsmith.model.engines import engine_section, engines
from rewardsmith.stats import Estimate

_CARD = """---
library_name: rewardsmith
pipeline_tag: text-classification
tags: [reward-model, rlhf]
---

# Reward model ({architecture}, from {source})

Reads a prompt and an answer and returns one raw score{meaning}.

```python
import rewardsmith

model = rewardsmith.RewardModel.load("PATH")
model.score([("What is 2 + 2?", "4.")])
```

| | |
|---|---|
| trained on | {data}, {examples} ({dropped} dropped) |
| loss | {loss} |
| text | encoding {encoding}, at most {max_length} tokens, {truncation} |
| pooling | {pooling} |
| trained | {trained} |
| precision of the training steps | {precision} |
| kept step | {kept_step} of {steps} |
{accuracies}
| rewardsmith, torch, transformers | {versions} |

`rewardsmith verify PATH` recomputes the golden ids and scores in `golden.jsonl`. The dev part chose the step; only eval pairs are unseen. The whole
evaluation, baselines included, is in the `report.json` of the run that this folder is from.

{elsewhere}"""


# What a score means beyond its order, by the data that the loss was computed over.
_MEANING = {
    "pairs": "; only differences between answers to one prompt were trained",
    "lists": "; only differences between answers to one prompt were trained",
    "ratings": ", trained on ratings: its level means something, too",
}


def model_card(manifest: Mapping[str, Any]) -> str:
    """The card of a trained model; its accuracies once they are in the manifest."""
    training, model, versions = manifest["training"], manifest["model"], manifest["versions"]
    render = manifest["render"]
    accuracies = [
        f"| accuracy on {name} pairs | {Estimate(**document)} |"
        for name, document in manifest.get("metrics", {}).items()
    ]
    kind = next(name for name in _MEANING if f"train_{name}" in manifest["counts"])
    lora = manifest["settings"].get("lora")
    adapted = f", {'DoRA' if lora['dora'] else 'LoRA'} of rank {lora['rank']}, merged" if lora else ""
    elsewhere = engines(
        model_type=model["architecture"],
        own_class=model["own_class"],
        encoding=render["encoding"],
        max_length=render["max_length"],
    )
    return _CARD.format(
        elsewhere=engine_section(elsewhere),
        meaning=_MEANING[kind],
        trained=f"{model['trained_parameters']:,} parameters{adapted}",
        architecture=model["architecture"],
        source=model["source"],
        data=manifest["data"]["data"]["source"],
        examples=f"{manifest['counts'][f'train_{kind}']:,} {kind}",
        dropped=sum(manifest["dropped"]["counts"].values()),
        loss=manifest["settings"]["loss"]["name"],
        encoding=render["encoding"],
        max_length=render["max_length"],
        truncation=render["truncation"],
        pooling=model["pooling"],
        precision=manifest["precision"]["name"],
        kept_step=training["kept_step"],
        steps=training["steps"],
        accuracies="\n".join(accuracies) or "| accuracy | not measured |",
        versions=f"{versions['rewardsmith']}, {versions['torch']}, {versions['transformers']}",
    )
