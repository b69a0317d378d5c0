"""What a comparison of domains found: its document, its table, and what it means in plain sentences."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.table import Table

from rewardsmith.auditing.domain import Domain
from rewardsmith.auditing.domain_words import DomainWords
from rewardsmith.auditing.outliers import LEVEL, Detector, Outliers, Part
from rewardsmith.auditing.predicted_accuracy import Prediction, SlicePredictions
from rewardsmith.auditing.text_features import TextFeatures
from rewardsmith.auditing.two_samples import ClassifierTest, MmdTest
from rewardsmith.data.schema import Pair
from rewardsmith.errors import DataError, SettingsError
from rewardsmith.pages.text import percent
from rewardsmith.stats import Estimate

CLEARLY = 0.9
"""The AUC from which on the reading speaks of another domain, if its interval lies above."""
_WORDS_TOLD = 6


@dataclass(frozen=True)
class TwoSampleTests:
    """A classifier and the MMD on the same samples, with p-values by Holm over all tests of the document."""

    classifier: ClassifierTest
    mmd: MmdTest
    p_classifier: float = 1.0
    p_mmd: float = 1.0

    @property
    def is_shifted(self) -> bool:
        """Whether either test says so."""
        return min(self.p_classifier, self.p_mmd) < LEVEL

    def as_dict(self) -> dict[str, Any]:
        """The document."""
        return {
            "classifier": self.classifier.as_dict() | {"p_adjusted": self.p_classifier},
            "mmd": self.mmd.as_dict() | {"p_adjusted": self.p_mmd},
            "shifted": self.is_shifted,
        }


@dataclass(frozen=True)
class Farthest:
    """A new prompt far from the reference, with the reference prompts that are nearest to it.

    Args:
        prompt: its beginning.
        distance: see `outliers.Judged`.
        p_value: see there.
        nearest: (beginning of a reference prompt, cosine), the nearest first.
    """

    prompt: str
    distance: float
    p_value: float
    nearest: tuple[tuple[str, float], ...]

    def as_dict(self) -> dict[str, Any]:
        """The document."""
        nearest = [{"prompt": text, "cosine": cosine} for text, cosine in self.nearest]
        return {"prompt": self.prompt, "distance": self.distance, "p_value": self.p_value, "nearest": nearest}


@dataclass(frozen=True)
class PartShift:
    """What is found of the prompts, or of the answers.

    Args:
        tests: two-sample tests.
        words: that tell the sides apart.
        outliers: None where the reference is too small for p-values of distances.
        texts: the new texts that `outliers.judged` speaks of, each as (prompt, "") or ("", answer).
        farthest: prompts only.
    """

    tests: TwoSampleTests
    words: DomainWords
    outliers: Outliers | None
    texts: tuple[Pair, ...]
    farthest: tuple[Farthest, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """The document."""
        return {
            **self.tests.as_dict(),
            "outliers": self.outliers.as_dict() if self.outliers else None,
            "words": self.words.as_dict(),
            "farthest": [one.as_dict() for one in self.farthest],
        }


@dataclass(frozen=True)
class Shift:
    """What `measure_shift` found.

    Args:
        reference: what was read of it.
        new: what was read of the new texts.
        max_texts: the cap on either side.
        known_prompts: share of the new prompts that the reference holds, too.
        representation: what describes a text by numbers.
        parts: prompts, and answers where both sides have them.
        pairs: tests of the differences between chosen and rejected answers, and their margins.
        predicted: accuracy on the new pairs.
        slices: accuracy foretold slice by slice, of the reference pairs.
        detector: says of any text whether it lies outside; None where the reference is too small.
        not_measured: {what: why}.
    """

    reference: Domain
    new: Domain
    max_texts: int
    known_prompts: Estimate
    representation: Mapping[str, Any]
    parts: Mapping[Part, PartShift]
    pairs: TwoSampleTests | None = None
    predicted: Prediction | None = None
    slices: SlicePredictions | None = None
    detector: Detector | None = None
    not_measured: Mapping[str, str] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """The section `shift` of the audit's document."""
        return {
            "reference": self.reference.as_dict(),
            "new": self.new.as_dict(),
            "max_texts": self.max_texts,
            "known_prompts": self.known_prompts.as_dict(),
            "representation": dict(self.representation),
            "prompts": self.parts["prompts"].as_dict(),
            "answers": self.parts["answers"].as_dict() if "answers" in self.parts else None,
            "pairs": self.pairs.as_dict() if self.pairs else None,
            "predicted_accuracy": self.predicted.as_dict() if self.predicted else None,
            "slices": self.slices.as_dict() if self.slices else None,
            "not_measured": dict(self.not_measured),
            "reading": self.reading,
        }

    def texts(self) -> list[dict[str, Any]]:
        """One row for each new text that was judged: its part, the text, distance, p-value by held-out reference texts and by chi-square, and whether it lies outside."""
        rows: list[dict[str, Any]] = []
        for name, part in self.parts.items():
            if part.outliers is None:
                continue
            judged = part.outliers.judged
            for i, (prompt, answer) in enumerate(part.texts):
                rows.append(
                    {
                        "part": name,
                        "text": prompt if name == "prompts" else answer,
                        "distance": float(judged.distance[i]),
                        "p_value": float(judged.p_value[i]),
                        "chi_square_p": float(judged.chi_square_p[i]),
                        "outside": bool(judged.p_value[i] < LEVEL),
                    }
                )
        return rows

    def save_detector(self, folder: str | Path) -> None:
        """Write what `rewardsmith serve --set domain=FOLDER` loads.

        Raises:
            DataError: if the reference was too small for one, or the place holds something else.
            SettingsError: if nobody said what computes the features again.
            OutputError: if the system refuses.
        """
        if self.detector is None:
            raise DataError("a detector to save", self.not_measured.get("outliers", "none"), "Give more prompts.")
        told = set(self.detector.made_by or {})
        is_enough = "max_length" in told and bool(told & {"files", "encoder"})
        if not is_enough and not isinstance(self.detector.features, TextFeatures):
            raise SettingsError(
                "what computes the features again (`max_length`, and `files` or `encoder`), for a detector that is kept",
                ", ".join(sorted(told)) or "nothing",
                "Hand `made_by` to measure_shift.",
            )
        self.detector.save(Path(folder))

    @property
    def reading(self) -> str:
        """What was found, in plain sentences."""
        sentences = [_told_apart(name, part.tests) for name, part in self.parts.items()]
        if self.pairs:
            sentences.append(_told_apart("pairs", self.pairs))
        if self.known_prompts.value > 0:
            sentences.append(f"{_percent(self.known_prompts)} of the new prompts stand in the reference, too.")
        for name, part in self.parts.items():
            if part.outliers:
                sentences.append(
                    f"{_percent(part.outliers.outside)} of the {name} lie outside of the reference (5 % of its own would)."
                )
        if self.predicted:
            sentences.append(_foretold(self.predicted))
        return " ".join([*sentences, *_words_told(self.parts["prompts"].words)])

    def table(self) -> Table:
        """The numbers as a person reads them."""
        table = Table(title="domain shift", title_justify="left")
        table.add_column("")
        for column in ("value", "95 % interval", "n", "p (Holm)"):
            table.add_column(column, justify="right")

        def add(name: str, estimate: Estimate, p_value: float | None = None, digits: int = 3) -> None:
            interval = rf"\[{estimate.low:.{digits}f}, {estimate.high:.{digits}f}]"
            p = "" if p_value is None else f"{p_value:.2g}"
            table.add_row(name, f"{estimate.value:.{digits}f}", interval, f"{estimate.n:,}", p)

        tested: dict[str, TwoSampleTests] = {name: part.tests for name, part in self.parts.items()}
        for name, tests in (tested | ({"pairs": self.pairs} if self.pairs else {})).items():
            add(f"{name}: AUC of telling them apart", tests.classifier.auc, tests.p_classifier)
            add(f"{name}: MMD^2", tests.mmd.mmd2, tests.p_mmd, digits=4)
        for name, part in self.parts.items():
            if part.outliers:
                table.add_section()
                add(f"{name}: AUROC of the distance", part.outliers.auroc)
                add(f"{name}: share outside", part.outliers.outside)
        if self.predicted:
            table.add_section()
            add("accuracy on the reference", self.predicted.reference_accuracy)
            add("foretold on the new pairs, ATC", self.predicted.atc)
            add("foretold on the new pairs, DoC", self.predicted.doc)
            if self.predicted.realised:
                add("realised on the new pairs", self.predicted.realised)
        return table


def _told_apart(name: str, tests: TwoSampleTests) -> str:
    auc = tests.classifier.auc
    numbers = f"(AUC {auc.value:.2f} [{auc.low:.2f}, {auc.high:.2f}], p = {tests.p_classifier:.2g}; MMD p = {tests.p_mmd:.2g})"
    what = "Differences of chosen and rejected answers" if name == "pairs" else f"The {name}"
    if not tests.is_shifted:
        return f"{what} are not told apart from the reference's {numbers}."
    if auc.low >= CLEARLY:
        return f"{what} come from another domain than the reference's {numbers}."
    return f"{what} differ from the reference's {numbers}."


def _foretold(found: Prediction) -> str:
    text = (
        f"Accuracy to be expected on the new pairs: {found.atc.value:.2f} [{found.atc.low:.2f}, {found.atc.high:.2f}] by ATC, "
        f"{found.doc.value:.2f} [{found.doc.low:.2f}, {found.doc.high:.2f}] by DoC, against "
        f"{found.reference_accuracy.value:.2f} on the reference, if a confidence means the same on both"
    )
    if found.realised is None:
        return f"{text}."
    return f"{text}; realised {found.realised.value:.2f} [{found.realised.low:.2f}, {found.realised.high:.2f}]."


def _words_told(found: DomainWords) -> list[str]:
    told = []
    for whose, some in (("new prompts", found.of_new), ("reference", found.of_reference)):
        if some:
            told.append(f"Words of the {whose}: {', '.join(word.word for word in some[:_WORDS_TOLD])}.")
    return told


def _percent(estimate: Estimate) -> str:
    return f"{percent(estimate.value)} [{100 * estimate.low:.1f}, {100 * estimate.high:.1f}]"
