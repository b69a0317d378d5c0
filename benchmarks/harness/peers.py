"""The jobs of the other tools, each by its own front door: TRL's RewardTrainer, CrossEncoder.predict, a pipeline of transformers, one text at a time."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from harness import checks, training
from harness.ours import texts_of
from harness.processes import Channel
from harness.training import Use, clock, peak_bytes

_TYPES = {"float32": torch.float32, "bf16": torch.bfloat16}


def trl(settings: dict[str, Any], channel: Channel) -> None:
    """Train with TRL's RewardTrainer.

    `settings` holds rows (`id`, `chosen_ids`, `rejected_ids`), start, batch_size, rounds, epochs, threads, cpu, freeze, anew, and under
    `arguments` what differs from RewardConfig's own defaults.
    """
    torch.set_num_threads(settings["threads"])
    from datasets import Dataset
    from transformers import AutoModelForSequenceClassification, AutoTokenizer
    from trl import RewardConfig, RewardTrainer

    lines = Path(settings["rows"]).read_text(encoding="utf-8").splitlines()
    data = Dataset.from_list([json.loads(line) for line in lines])
    folder = tempfile.mkdtemp(dir=".")

    def build(epochs: int) -> RewardTrainer:
        tokenizer = AutoTokenizer.from_pretrained(settings["start"])
        model = settings["start"]
        if settings["freeze"]:
            model = AutoModelForSequenceClassification.from_pretrained(model, dtype=torch.float32)
            model.base_model.requires_grad_(False)
        arguments = RewardConfig(
            output_dir=folder,
            per_device_train_batch_size=settings["batch_size"],
            num_train_epochs=epochs,
            use_cpu=settings["cpu"],
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            **settings["arguments"],
        )
        return RewardTrainer(model=model, args=arguments, train_dataset=data, processing_class=tokenizer)

    trainer = build(1)
    read = trainer.train_dataset
    ids: list[str] = list(read["id"])
    texts = {
        name: (list(chosen), list(rejected))
        for name, chosen, rejected in zip(ids, read["chosen_ids"], read["rejected_ids"], strict=True)
    }
    tokens = sum(len(text) for pair in texts.values() for text in pair)
    precision = "bf16" if trainer.args.bf16 else "float32"
    channel.answer(
        {
            "examples": len(ids),
            "tokens": tokens,
            "ids": checks.digest(text for name in sorted(texts) for text in texts[name]),
            "precision": precision,
            "checkpointing": bool(trainer.args.gradient_checkpointing),
        }
    )

    def drive(epochs: int, use: Use) -> Any:
        trainer = build(epochs)
        return use(trainer, clock())

    if settings["anew"]:
        training.serve_anew(channel, drive, ids=ids, tokens=tokens, epochs=settings["epochs"])
    else:
        training.serve(channel, drive, ids=ids, tokens=tokens, rounds=settings["rounds"], epochs=settings["epochs"])


def cross_encoder(settings: dict[str, Any], channel: Channel) -> None:
    """Score with sentence-transformers: CrossEncoder.predict as it comes, on (prompt, answer) pairs."""
    torch.set_num_threads(settings["threads"])
    from sentence_transformers import CrossEncoder

    options = {"dtype": _TYPES[settings["precision"]]}
    model = CrossEncoder(
        settings["model"], max_length=settings["max_length"], device=settings["device"], model_kwargs=options
    )
    pairs = texts_of(settings["data"])
    encoded = model.tokenizer(pairs, truncation=True, max_length=settings["max_length"])["input_ids"]
    _serve_scores(channel, encoded, lambda: model.predict(pairs, show_progress_bar=False).tolist())


def pipeline(settings: dict[str, Any], channel: Channel) -> None:
    """Score with a text-classification pipeline of transformers, `batch_size` texts at a time."""
    torch.set_num_threads(settings["threads"])
    from transformers import pipeline as make_pipeline

    model = make_pipeline(
        "text-classification",
        model=settings["model"],
        device=settings["device"],
        dtype=_TYPES[settings["precision"]],
    )
    texts = [{"text": prompt, "text_pair": answer} for prompt, answer in texts_of(settings["data"])]
    options = {"truncation": True, "max_length": settings["max_length"]}
    encoded = model.tokenizer([(text["text"], text["text_pair"]) for text in texts], **options)["input_ids"]

    def score() -> list[float]:
        found = model(texts, function_to_apply="none", batch_size=settings["batch_size"], padding=True, **options)
        return [one["score"] for one in found]

    _serve_scores(channel, encoded, score)


def one_by_one(settings: dict[str, Any], channel: Channel) -> None:
    """Score with transformers, one text after the other: chat template, model, number."""
    torch.set_num_threads(settings["threads"])
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    from rewardsmith.data.schema import conversation

    tokenizer = AutoTokenizer.from_pretrained(settings["model"])
    model = AutoModelForSequenceClassification.from_pretrained(settings["model"], dtype=_TYPES[settings["precision"]])
    model = model.to(settings["device"]).eval()
    texts = [conversation(prompt, answer) for prompt, answer in texts_of(settings["data"])]

    def ids_of(text: Any) -> torch.Tensor:
        return tokenizer.apply_chat_template(text, return_tensors="pt", return_dict=True)["input_ids"]

    @torch.inference_mode()
    def score() -> list[float]:
        return [float(model(input_ids=ids_of(text).to(settings["device"])).logits[0, 0]) for text in texts]

    _serve_scores(channel, [ids_of(text)[0].tolist() for text in texts], score)


def _serve_scores(channel: Channel, encoded: list[list[int]], score: Callable[[], list[float]]) -> None:
    tokens = sum(map(len, encoded))
    channel.answer({"texts": len(encoded), "tokens": tokens})
    while True:
        request = channel.wait()
        if request["do"] == "check":
            ids = checks.digest(encoded[i] for i in request["uncut"])
            channel.answer({"scores": [float(one) for one in score()], "ids": ids})
            continue
        start = clock()
        score()
        seconds = clock() - start
        work = {"texts": len(encoded), "tokens": tokens}
        channel.answer({"seconds": seconds, "work": work, "peak_bytes": peak_bytes()})
