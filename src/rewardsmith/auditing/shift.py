"""Do new texts come from the domain that a reward model was trained, or is judged, on; and if not, what does that cost?"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from rewardsmith.auditing.domain import MAX_TEXTS, Domain, domain_of
from rewardsmith.auditing.domain_words import tell_apart
from rewardsmith.auditing.outliers import (
    LEVEL,
    Detector,
    DistanceFit,
    Outliers,
    Part,
    as_texts,
    find_outliers,
    with_accuracy,
)
from rewardsmith.auditing.predicted_accuracy import Prediction, SlicePredictions, predict_accuracy, predict_slices
from rewardsmith.auditing.shift_report import Farthest, PartShift, Shift, TwoSampleTests
from rewardsmith.auditing.text_features import TextFeatures
from rewardsmith.auditing.two_samples import LEAST_PROMPTS, Samples, classifier_test, mmd_test
from rewardsmith.data.schema import Pair, Preference, Prompt, prompt_key
from rewardsmith.data.texts import Text
from rewardsmith.data.words import prompt_text
from rewardsmith.errors import DataError
from rewardsmith.scores import Features, Scorer, checked
from rewardsmith.significance import holm
from rewardsmith.stats import Floats, proportion

Progress = Callable[[str, int, int], None]
Values = NDArray[np.float32]
Sides = tuple[list[Pair], list[Pair]]
"""Texts of the reference, and new ones."""

_NUM_FARTHEST, _NUM_NEAREST, _EXCERPT = 10, 3, 200
# One in so many reference prompts is for fitting the text features of a detector; these are then no part of its distances.
_FITTING_SHARE = 4


def _no_progress(stage: str, done: int, total: int) -> None:
    pass


def measure_shift(
    reference: Iterable[Text],
    new: Iterable[Text],
    *,
    features: Features | None = None,
    made_by: Mapping[str, Any] | None = None,
    scorer: Scorer | None = None,
    temperature: float | None = None,
    by: str | None = None,
    max_texts: int = MAX_TEXTS,
    seed: int = 0,
    progress: Progress = _no_progress,
) -> Shift:
    """Compare new texts with a reference: two-sample tests, outliers, and what is to be expected of the scorer.

    Prompts and answers are looked at apart, an answer without its prompt: where prompts differ, answers beside them would differ, too. Apart from the features and the scores, two times
    2,000 texts take some seconds on a processor.

    Args:
        reference: rows of what the model was trained on, or is judged on.
        new: rows of any kind, or bare prompts.
        features: describe texts; TF-IDF fitted on the texts at hand where None.
        made_by: what computes `features` again, for a saved detector; see `outliers.Detector`.
        scorer: of the pairs; without it nothing is said of accuracy.
        temperature: of the scorer's calibrated probabilities; fitted on the reference pairs where None.
        by: a metadata column of the reference pairs: each of its values is foretold from the others, to see how far such forecasts are to be believed.
        max_texts: prompts, and answers, that are read of each side; half as many pairs.
        seed: of the draw, folds, permutations and resamples.
        progress: told (stage, steps done, steps in all).

    Raises:
        DataError: if a side has fewer than 20 prompts, or features are not what they must be.
        ScoreError: if a score is not finite.
    """
    sides = tuple(domain_of(rows, max_texts=max_texts, seed=seed) for rows in (reference, new))
    for name, side in zip(("reference", "new texts"), sides, strict=True):
        if len(side.prompts) < LEAST_PROMPTS:
            raise DataError(f"at least {LEAST_PROMPTS} prompts in the {name}", f"{len(side.prompts)}", "Give more.")
    return _Measuring(sides[0], sides[1], features, made_by, scorer, temperature, by, max_texts, seed, progress).found()


@dataclass(frozen=True)
class _Fitted:
    """A detector, and the prompt of each reference text that its distances are of."""

    detector: Detector
    prompts: Mapping[Part, list[str]]


@dataclass
class _Measuring:
    """One comparison under way; see `measure_shift` for the arguments."""

    reference: Domain
    new: Domain
    features: Features | None
    made_by: Mapping[str, Any] | None
    scorer: Scorer | None
    temperature: float | None
    by: str | None
    max_texts: int
    seed: int
    progress: Progress
    not_measured: dict[str, str] = field(default_factory=dict)

    def found(self) -> Shift:
        """Everything."""
        names = self._parts()
        total = 3 + 2 * len(names)
        self.progress("features", 0, total)
        texts: dict[Part, Sides] = {name: (_texts(self.reference, name), _texts(self.new, name)) for name in names}
        own = None
        if self.features is None:
            everything = [one for two in texts.values() for side in two for one in side]
            own = TextFeatures.fit(everything, seed=self.seed)
        describing = self.features if self.features is not None else cast(Features, own)
        values = {name: tuple(described(describing, side) for side in two) for name, two in texts.items()}
        fitted = self._detector(texts, values)
        parts: dict[Part, PartShift] = {}
        for step, name in enumerate(names):
            self.progress(f"two samples of {name}", 1 + 2 * step, total)
            tests = self._tests(values[name], *(self._prompts(side, name) for side in (self.reference, self.new)))
            self.progress(f"distances of {name}", 2 + 2 * step, total)
            parts[name] = self._part(name, texts[name], values[name], tests, fitted, own)
        self.progress("pairs", total - 2, total)
        known, fresh = self._margins()
        pairs, predicted, slices = None, None, None
        if known is not None and fresh is not None:
            pairs = self._pair_tests((known, fresh), texts, values)
            predicted = self._predicted((known, fresh))
            if "answers" in parts:
                parts["answers"] = self._with_accuracy(parts["answers"], fresh)
        self.progress("slices", total - 1, total)
        if known is not None and self.by is not None:
            slices = self._slices(known, self.by)
        tested = [*(part.tests for part in parts.values()), *([pairs] if pairs else [])]
        adjusted = _adjusted(tested)
        self.progress("done", total, total)
        is_known = np.array([prompt_key(prompt) in self.reference.keys for prompt in self.new.prompts], np.float64)
        return Shift(
            reference=self.reference,
            new=self.new,
            max_texts=self.max_texts,
            known_prompts=proportion(is_known, np.arange(len(is_known))),
            representation=own.as_dict() if own else _features_told(self.made_by),
            parts={
                name: replace(part, tests=tests) for (name, part), tests in zip(parts.items(), adjusted, strict=False)
            },
            pairs=adjusted[-1] if pairs else None,
            predicted=predicted,
            slices=slices,
            detector=fitted.detector if fitted.detector.fits else None,
            not_measured=self.not_measured,
        )

    def _parts(self) -> list[Part]:
        counts = [len({prompt_key(prompt) for prompt, _ in side.answers}) for side in (self.reference, self.new)]
        if min(counts) >= LEAST_PROMPTS:
            return ["prompts", "answers"]
        which = "the reference has" if counts[0] < LEAST_PROMPTS else "the new rows have"
        self.not_measured["answers"] = f"{which} answers to {min(counts)} prompts; {LEAST_PROMPTS} are needed"
        return ["prompts"]

    def _prompts(self, side: Domain, name: Part) -> list[str]:
        prompts: Iterable[Prompt] = side.prompts if name == "prompts" else (prompt for prompt, _ in side.answers)
        return [prompt_key(prompt) for prompt in prompts]

    def _tests(self, values: Sequence[Floats | Values], *prompts: list[str]) -> TwoSampleTests:
        samples = Samples.of((values[0], prompts[0]), (values[1], prompts[1]))
        return TwoSampleTests(classifier_test(samples, seed=self.seed), mmd_test(samples, seed=self.seed))

    def _detector(self, texts: Mapping[Part, Sides], values: Mapping[Part, Sequence[Values]]) -> _Fitted:
        """Distances of the reference's texts; where the features are fitted here, on a quarter of its prompts, which are then left out."""
        describing, fitting = self.features, set[str]()
        if describing is None:
            prompts = self._prompts(self.reference, "prompts")
            fitting = set(prompts[: len(prompts) // _FITTING_SHARE])
            keys = {name: self._prompts(self.reference, name) for name in texts}
            seen = [
                one for name in texts for one, key in zip(texts[name][0], keys[name], strict=True) if key in fitting
            ]
            describing = TextFeatures.fit(seen, seed=self.seed)
        fits: dict[Part, DistanceFit] = {}
        prompts_of: dict[Part, list[str]] = {}
        for name in texts:
            names = self._prompts(self.reference, name)
            kept = [i for i, key in enumerate(names) if key not in fitting]
            prompts_of[name] = [names[i] for i in kept]
            of_own = self.features is None
            found = described(describing, [texts[name][0][i] for i in kept]) if of_own else values[name][0]
            try:
                fits[name] = DistanceFit.fit(found, prompts_of[name], seed=self.seed)
            except DataError as error:
                self.not_measured["outliers" if name == "prompts" else "outliers of answers"] = str(error)
        return _Fitted(Detector(fits, describing, self.made_by), prompts_of)

    def _part(
        self,
        name: Part,
        texts: Sides,
        values: Sequence[Values],
        tests: TwoSampleTests,
        fitted: _Fitted,
        own: TextFeatures | None,
    ) -> PartShift:
        outliers: Outliers | None = None
        farthest: tuple[Farthest, ...] = ()
        prompts = [self._prompts(side, name) for side in (self.reference, self.new)]
        if name in fitted.detector.fits:
            found = values[1] if own is None else described(fitted.detector.features, texts[1])
            outliers = find_outliers(fitted.detector.fits[name], found, prompts[1], fitted.prompts[name])
            if name == "prompts":
                for_cosine = [side if own is None else side[:, :-1] for side in values]  # without the length
                farthest = _farthest(texts, for_cosine, outliers)
        words = tell_apart(*(_one_a_prompt(side, keys) for side, keys in zip(texts, prompts, strict=True)))
        return PartShift(tests, words, outliers, tuple(texts[1]), farthest)

    def _margins(self) -> tuple[Floats | None, Floats | None]:
        """Margins of the pairs of either side, in their order; None where nothing is to be said of them."""
        if self.scorer is None:
            self.not_measured["predicted_accuracy"] = "no scorer"
            return None, None
        counts = [len({prompt_key(pair.prompt) for pair in side.pairs}) for side in (self.reference, self.new)]
        asked = [count >= LEAST_PROMPTS for count in counts]
        if not all(asked):
            which = "the new rows have" if asked[0] else "the reference has"
            told = f"{which} two answers to {min(counts)} prompts; {LEAST_PROMPTS} are needed"
            self.not_measured["predicted_accuracy"] = told
        reference = asked[0] and (asked[1] or self.by is not None)
        return (
            _scored(self.scorer, self.reference.pairs) if reference else None,
            _scored(self.scorer, self.new.pairs) if all(asked) else None,
        )

    def _pair_tests(
        self,
        margins: tuple[Floats, Floats],
        texts: Mapping[Part, Sides],
        values: Mapping[Part, Sequence[Values]],
    ) -> TwoSampleTests | None:
        """Tests of (features of chosen - features of rejected, margin) of labelled pairs."""
        found, prompts = [], []
        for k, side in enumerate((self.reference, self.new)):
            rows, places = _described_pairs(side, texts["answers"][k] if "answers" in texts else [])
            prompts.append([prompt_key(side.pairs[i].prompt) for i in rows])
            if len(set(prompts[-1])) < LEAST_PROMPTS:
                self.not_measured["pairs"] = f"{len(set(prompts[-1]))} prompts with labelled pairs on one side"
                return None
            chosen, rejected = (values["answers"][k][places[:, j]] for j in (0, 1))
            found.append(np.column_stack([chosen - rejected, margins[k][rows]]))
        return self._tests(found, *prompts)

    def _with_accuracy(self, part: PartShift, margins: Floats) -> PartShift:
        """Accuracy of the new pairs by the distance of their answers."""
        if part.outliers is None:
            return part
        rows, places = _described_pairs(self.new, part.texts)
        if not rows:
            return part
        judged = part.outliers.judged
        prompts = [prompt_key(self.new.pairs[i].prompt) for i in rows]
        is_outside = np.asarray((judged.p_value[places] < LEVEL).any(axis=1))
        distances = judged.distance[places].mean(axis=1)
        return replace(part, outliers=with_accuracy(part.outliers, distances, is_outside, margins[rows], prompts))

    def _predicted(self, margins: tuple[Floats, Floats]) -> Prediction | None:
        """The forecast; where some of the new pairs have labels, of these alone, so that foretold and realised speak of the same pairs."""
        labelled = [np.array(side.labelled, dtype=np.bool_) for side in (self.reference, self.new)]
        is_labelled = bool(labelled[1].any())
        rows = [labelled[0], labelled[1] if is_labelled else np.ones(len(margins[1]), np.bool_)]
        sides = [
            (margin[kept], [prompt_key(pair.prompt) for pair, is_kept in zip(side.pairs, kept, strict=True) if is_kept])
            for margin, side, kept in zip(margins, (self.reference, self.new), rows, strict=True)
        ]
        try:
            return predict_accuracy(
                sides[0], sides[1], is_labelled=is_labelled, temperature=self.temperature, seed=self.seed
            )
        except DataError as error:
            self.not_measured["predicted_accuracy"] = str(error)
            return None

    def _slices(self, margins: Floats, column: str) -> SlicePredictions | None:
        rows = np.flatnonzero(self.reference.labelled)
        pairs = [self.reference.pairs[i] for i in rows]
        values = [pair.metadata.get(column) for pair in pairs]
        try:
            return predict_slices(
                margins[rows],
                [prompt_key(pair.prompt) for pair in pairs],
                [None if value is None else str(value) for value in values],
                column=column,
                temperature=self.temperature,
                seed=self.seed,
            )
        except DataError as error:
            self.not_measured["slices"] = str(error)
            return None


def _features_told(made_by: Mapping[str, Any] | None) -> dict[str, Any]:
    """What documents say of features that were handed in: a name, and no place."""
    return {"kind": "features"} | {
        name: made_by[name] for name in ("name", "max_length") if made_by and name in made_by
    }


def described(features: Features, texts: Sequence[Pair]) -> Values:
    """Features of texts, float32 (n, H).

    Raises:
        DataError: if they are not one finite row a text.
    """
    values = np.asarray(features.features(list(texts)), dtype=np.float32)
    if values.ndim != 2 or len(values) != len(texts) or not np.isfinite(values).all():
        raise DataError(
            f"finite features of shape ({len(texts)}, H)", f"shape {values.shape}, or NaN", "Check what computes them."
        )
    return values


def _texts(side: Domain, part: Part) -> list[Pair]:
    return as_texts([(prompt, "") for prompt in side.prompts] if part == "prompts" else side.answers, part)


def _described_pairs(side: Domain, texts: Sequence[Pair]) -> tuple[list[int], NDArray[np.int64]]:
    """The labelled pairs whose two answers are among the texts, and where these stand, (chosen, rejected), shape (n, 2)."""
    at = {answer: i for i, (_, answer) in enumerate(texts)}
    rows = [
        i
        for i, (pair, is_labelled) in enumerate(zip(side.pairs, side.labelled, strict=True))
        if is_labelled and pair.chosen in at and pair.rejected in at
    ]
    places = [[at[side.pairs[i].chosen], at[side.pairs[i].rejected]] for i in rows]
    return rows, np.array(places, dtype=np.int64).reshape(len(rows), 2)


def _scored(scorer: Scorer, pairs: Sequence[Preference]) -> Floats:
    asked = [pair.chosen_pair for pair in pairs] + [pair.rejected_pair for pair in pairs]
    scores = checked(scorer.score(asked), len(asked)).astype(np.float64)
    return np.asarray(scores[: len(pairs)] - scores[len(pairs) :])


def _one_a_prompt(texts: Sequence[Pair], prompts: Sequence[str]) -> list[str]:
    """The first text of each prompt, as a string: words are counted in texts that vary independently."""
    first: dict[str, str] = {}
    for (prompt, answer), key in zip(texts, prompts, strict=True):
        first.setdefault(key, prompt_text(prompt) + answer)
    return list(first.values())


def _farthest(texts: Sides, values: Sequence[Values], outliers: Outliers) -> tuple[Farthest, ...]:
    """The new prompts that lie farthest out, each with its nearest reference prompts by the cosine of features around the reference's mean."""
    centre = values[0].mean(axis=0)
    reference, new = (side - centre for side in values)
    reference, new = (
        side / np.maximum(np.linalg.norm(side, axis=1, keepdims=True), 1e-12) for side in (reference, new)
    )
    found = []
    for i in np.argsort(-outliers.judged.distance, kind="stable")[:_NUM_FARTHEST]:
        cosines = reference @ new[i]
        nearest = [
            (_beginning(texts[0][j]), float(cosines[j])) for j in np.argsort(-cosines, kind="stable")[:_NUM_NEAREST]
        ]
        judged = outliers.judged
        found.append(
            Farthest(_beginning(texts[1][i]), float(judged.distance[i]), float(judged.p_value[i]), tuple(nearest))
        )
    return tuple(found)


def _beginning(text: Pair) -> str:
    whole = prompt_text(text[0]).strip()
    return whole if len(whole) <= _EXCERPT else whole[:_EXCERPT] + "..."


def _adjusted(tests: Sequence[TwoSampleTests]) -> list[TwoSampleTests]:
    """The same with p-values by Holm over all of them."""
    p_values = iter(holm([p for one in tests for p in (one.classifier.p_value, one.mmd.p_value)]))
    return [replace(one, p_classifier=next(p_values), p_mmd=next(p_values)) for one in tests]
