"""How far a text lies from the reference: Mahalanobis distances of features, with p-values by texts that the fit has not seen.

Legend: `n` reference texts, `m` new texts, `H` features, `K` folds, `C` prompts of the reference.
"""

from __future__ import annotations

import json
import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.stats import chi2, norm
from sklearn.covariance import ledoit_wolf

from rewardsmith.auditing.text_features import TextFeatures
from rewardsmith.auditing.two_samples import Bools, Codes, interval_of_share
from rewardsmith.data.schema import Pair
from rewardsmith.errors import ContractError, DataError
from rewardsmith.metrics import wins
from rewardsmith.scores import DomainFlag, Features
from rewardsmith.stats import Estimate, Floats, cluster_codes, proportion
from rewardsmith.storage import atomic_folder, write_json

Part = Literal["prompts", "answers"]
FOLDS = 5
LEVEL = 0.05
"""Of a flag: so many texts of the reference's own domain are flagged, too."""
LEAST_PROMPTS = 80
"""Of the reference: with fewer no two-sided p-value of two parts could fall below the level."""
FORMAT_VERSION = 1
_DOCUMENT, _ARRAYS = "detector.json", "arrays.npz"
_LEAST_PAIRS_IN_BIN = 30
# Products of one block of texts; bounds their memory to some tens of MB.
_BLOCK_CELLS = 4_000_000


@dataclass(frozen=True)
class Judged:
    """Texts as a fit sees them, all (m,).

    Args:
        distance: Mahalanobis distance, the mean over folds.
        p_value: two-sided: twice the share of the reference's prompts that lie at least as far out, or at most, the text itself among them. (Where there are many
            features no text lies at the centre, but gibberish, whose features are the mean of everything, nearly does.)
        chi_square_p: what a normal distribution of the features would say of texts farther out.
        rank: the share of the reference that lies nearer, ties one half.
    """

    distance: Floats
    p_value: Floats
    chi_square_p: Floats
    rank: Floats


@dataclass(frozen=True)
class DistanceFit:
    """Mean and precision of the reference's features, once for each fold without it, and the distances of the folds left out.

    A new text is compared with each held-out text by the fit that has seen neither (cross-conformal prediction, Vovk 2015); each prompt of the reference counts once, however
    many texts it has. The covariance is Ledoit and Wolf's (2004).

    Args:
        means: (K, H).
        precisions: (K, H, H).
        held_out: (n,) distances of the reference texts.
        folds: (n,) which fit has not seen them.
        prompts: (n,) codes.
    """

    means: Floats
    precisions: Floats
    held_out: Floats
    folds: Codes
    prompts: Codes

    @classmethod
    def fit(cls, values: NDArray[Any], prompts: Sequence[str], *, seed: int = 0) -> DistanceFit:
        """Fit on the reference.

        Args:
            values: features, (n, H).
            prompts: (n,) names.
            seed: of the folds.

        Raises:
            DataError: if there are fewer than 50 prompts, or a feature is not finite.
        """
        inputs: Floats = np.asarray(values, np.float64)
        codes = cluster_codes(list(prompts))
        num_prompts = int(codes.max()) + 1 if len(codes) else 0
        if num_prompts < LEAST_PROMPTS:
            raise DataError(
                f"at least {LEAST_PROMPTS} reference prompts for p-values of distances", f"{num_prompts}", "Give more."
            )
        if not np.isfinite(inputs).all():
            raise DataError("finite features", "NaN or infinite ones", "Check what computes the features.")
        folds = np.random.default_rng(seed).permutation(np.arange(num_prompts) % FOLDS)[codes]
        means = np.zeros((FOLDS, inputs.shape[1]))
        precisions = np.zeros((FOLDS, inputs.shape[1], inputs.shape[1]))
        held_out = np.zeros(len(inputs))
        for k in range(FOLDS):
            seen = inputs[folds != k]
            means[k] = seen.mean(axis=0)
            covariance = ledoit_wolf(seen - means[k], assume_centered=True)[0]
            # Where all texts are the same, nothing is a unit of distance.
            precisions[k] = np.linalg.pinv(covariance, hermitian=True)
            held_out[folds == k] = _distances(inputs[folds == k], means[k], precisions[k])
        return cls(means, precisions, held_out, folds, codes)

    @property
    def num_prompts(self) -> int:
        """Of the reference."""
        return int(self.prompts.max()) + 1

    @cached_property
    def weights(self) -> Floats:
        """(n,), adding up to 1: each prompt counts once."""
        return np.asarray(1 / np.bincount(self.prompts)[self.prompts] / self.num_prompts)

    def judge(self, values: NDArray[Any]) -> Judged:
        """Distances and p-values of texts by their features, (m, H)."""
        by_fold = np.array([_distances(values, *two) for two in zip(self.means, self.precisions, strict=True)])
        at_least, above = np.zeros(len(values)), np.zeros(len(values))
        for distances, near, weights in zip(by_fold, self._sorted_distances, self._sums_above, strict=True):
            at_least += weights[np.searchsorted(near, distances, side="left")]
            above += weights[np.searchsorted(near, distances, side="right")]
        num, nearest = self.num_prompts, np.minimum(at_least, 1 - above)
        return Judged(
            distance=by_fold.mean(axis=0),
            p_value=np.minimum(1.0, 2 * (1 + num * nearest) / (num + 1)),
            chi_square_p=chi2.sf((by_fold**2).mean(axis=0), self.means.shape[1]),
            rank=np.round(1 - (at_least + above) / 2, 12),  # sums of all weights are 1 but for rounding
        )

    @property
    def held_out_chi_square_p(self) -> Floats:
        """What a normal distribution would say of the held-out reference texts, (n,)."""
        return np.asarray(chi2.sf(self.held_out**2, self.means.shape[1]))

    def influence_on_rank(self, values: NDArray[Any]) -> Floats:
        """For each reference text the mean rank of its own among texts of features (m, H): the share that lies farther out than it, ties one half; (n,)."""
        farther = np.zeros(len(self.held_out))
        for k in range(FOLDS):
            distances = np.sort(_distances(values, self.means[k], self.precisions[k]))
            own = self.held_out[self.folds == k]
            places = np.searchsorted(distances, own, side="left") + np.searchsorted(distances, own, side="right")
            farther[self.folds == k] = 1 - places / 2 / len(distances)
        return farther

    @cached_property
    def _sorted_distances(self) -> list[Floats]:
        return [np.sort(self.held_out[self.folds == k]) for k in range(FOLDS)]

    @cached_property
    def _sums_above(self) -> list[Floats]:
        """For each fold and each place in its sorted distances, the weight of what stands there and farther out."""
        sums = []
        for k in range(FOLDS):
            rows = np.flatnonzero(self.folds == k)
            weights = self.weights[rows[np.argsort(self.held_out[rows], kind="stable")]]
            sums.append(np.append(np.cumsum(weights[::-1])[::-1], 0.0))
        return sums


def _distances(values: NDArray[Any], mean: Floats, precision: Floats) -> Floats:
    """sqrt((x - mean)' precision (x - mean)) of each row, (m,)."""
    centred = np.asarray(values, np.float64) - mean
    squares = np.zeros(len(values))
    block = max(1, _BLOCK_CELLS // max(1, values.shape[1]))
    for start in range(0, len(values), block):
        rows = centred[start : start + block]
        squares[start : start + block] = ((rows @ precision) * rows).sum(axis=1)
    return np.asarray(np.sqrt(np.maximum(squares, 0.0)))


@dataclass(frozen=True)
class Outliers:
    """How the new texts of one part lie to the reference's.

    Args:
        judged: each new text.
        auroc: how often a new text lies farther out than a held-out reference text; 0.5 where they come from one distribution.
        outside: share of new texts with a p-value below the level, too far out or too near the centre; the level itself where they come from one distribution.
        false_positive_rate: share of new texts that pass as the reference's own when 95 % of these do.
        chi_square_alarms: share of *held-out reference* texts that a normal distribution would call rare at the level: how far its p-values are to be believed.
        accuracy_by_distance: accuracy of labelled new pairs from the nearest tenth to the farthest; empty where there are none.
        accuracy_inside: of labelled new pairs whose answers both lie inside.
        accuracy_outside: of the others.
        num_features: of the distance.
    """

    judged: Judged
    auroc: Estimate
    outside: Estimate
    false_positive_rate: Estimate
    chi_square_alarms: Estimate
    num_features: int
    accuracy_by_distance: tuple[dict[str, Any], ...] = ()
    accuracy_inside: Estimate | None = None
    accuracy_outside: Estimate | None = None

    def as_dict(self) -> dict[str, Any]:
        """The document, without the single texts."""
        return {
            "auroc": self.auroc.as_dict(),
            "outside": self.outside.as_dict(),
            "level": LEVEL,
            "false_positive_rate_at_95": self.false_positive_rate.as_dict(),
            "chi_square_alarms": self.chi_square_alarms.as_dict(),
            "num_features": self.num_features,
            "accuracy_by_distance": list(self.accuracy_by_distance),
            "accuracy_inside": self.accuracy_inside.as_dict() if self.accuracy_inside else None,
            "accuracy_outside": self.accuracy_outside.as_dict() if self.accuracy_outside else None,
        }


def find_outliers(
    fit: DistanceFit, values: NDArray[Any], prompts: Sequence[str], reference_prompts: Sequence[str]
) -> Outliers:
    """Judge new texts by a fit of the reference.

    Each new text counts alike, and what shares a prompt varies together. The intervals hold the chance of the new texts and of the held-out ones.

    Args:
        fit: of the reference.
        values: features of the new texts, (m, H), at least one.
        prompts: (m,) names.
        reference_prompts: (n,) names of the reference's prompts, in the order of the fit.
    """
    judged, clusters = fit.judge(values), cluster_codes(list(prompts))
    auroc = float(judged.rank.mean())
    influence = np.concatenate(
        [fit.weights * (fit.influence_on_rank(values) - auroc), (judged.rank - auroc) / len(judged.rank)]
    )
    codes = cluster_codes([*reference_prompts, *prompts])
    fewest = min(fit.num_prompts, len(np.unique(clusters)))
    outside = _share_outside(judged.p_value, clusters, fit.num_prompts)
    alarms = (fit.held_out_chi_square_p < LEVEL).astype(np.float64)
    return Outliers(
        judged=judged,
        auroc=replace(interval_of_share(auroc, influence, codes, of_prompts=fewest), n=len(codes)),
        outside=outside,
        false_positive_rate=replace(outside, value=1 - outside.value, low=1 - outside.high, high=1 - outside.low),
        chi_square_alarms=proportion(alarms, fit.prompts),
        num_features=fit.means.shape[1],
    )


def _share_outside(p_values: Floats, clusters: Codes, num_reference: int) -> Estimate:
    """The share of p-values below the level, with the chance of the new texts and that of the reference, which moves the level.

    With C reference prompts the level that is kept varies by sqrt(level (1 - level) / C) around the wanted one, and the share by that times its slope, which is read
    between half the level and twice the level. The two half-widths are squared and added (Zou and Donner 2008).
    """
    own = proportion((p_values < LEVEL).astype(np.float64), clusters)
    slope = float(((p_values >= LEVEL / 2) & (p_values < 2 * LEVEL)).mean()) / (1.5 * LEVEL)
    reach = float(norm.ppf(0.975)) * slope * np.sqrt(LEVEL * (1 - LEVEL) / num_reference)
    return replace(
        own,
        low=max(0.0, own.value - float(np.hypot(own.value - own.low, reach))),
        high=min(1.0, own.value + float(np.hypot(own.high - own.value, reach))),
        method=f"{own.method}, and the chance of {num_reference} reference prompts",
    )


def with_accuracy(
    outliers: Outliers, distances: Floats, is_outside: Bools, margins: Floats, prompts: Sequence[str]
) -> Outliers:
    """The same with the accuracy of labelled new pairs by how far out they lie.

    Args:
        outliers: of the answers.
        distances: of each pair: the mean of its two answers.
        is_outside: of each pair: whether one of them is.
        margins: score of the chosen answer minus score of the rejected one.
        prompts: names.
    """
    won, codes = wins(margins), cluster_codes(list(prompts))
    num_bins = max(1, min(10, len(margins) // _LEAST_PAIRS_IN_BIN))
    bins = np.argsort(np.argsort(distances, kind="stable"), kind="stable") * num_bins // len(margins)
    rows = []
    for k in range(num_bins):
        part = bins == k
        accuracy = proportion(won[part], cluster_codes(codes[part]))
        low, high = float(distances[part].min()), float(distances[part].max())
        rows.append({"from": low, "to": high, "accuracy": accuracy.as_dict()})
    inside, outside = (
        proportion(won[part], cluster_codes(codes[part])) if part.any() else None for part in (~is_outside, is_outside)
    )
    return replace(outliers, accuracy_by_distance=tuple(rows), accuracy_inside=inside, accuracy_outside=outside)


@dataclass(frozen=True)
class Detector:
    """What a server needs to say of each text whether it lies outside of the reference's domain; a `DomainDetector` of rewardsmith.scores.

    Args:
        fits: of prompts, of answers, or of both.
        features: what describes texts.
        made_by: what computes the features again, where they are not `TextFeatures`: its `name`, its `max_length`, and either `files`, the hashes of a model that is asked
            for its own features, or `encoder`, what to load beside it.
    """

    fits: Mapping[Part, DistanceFit]
    features: Features
    made_by: Mapping[str, Any] | None = None

    def flags(self, pairs: Sequence[Pair]) -> list[DomainFlag]:
        """One flag a (prompt, answer): that of its less likely part, whose p-value is multiplied by the number of parts (Bonferroni)."""
        if not pairs:
            return []
        judged = {part: fit.judge(self.features.features(as_texts(pairs, part))) for part, fit in self.fits.items()}
        flags = []
        for i in range(len(pairs)):
            part = min(judged, key=lambda name: judged[name].p_value[i])
            p_value = min(1.0, len(judged) * float(judged[part].p_value[i]))
            flags.append(DomainFlag(float(judged[part].distance[i]), p_value, p_value < LEVEL, part))
        return flags

    def save(self, folder: Path) -> None:
        """Write the detector as one JSON file and one file of arrays, whole or not at all; a detector that stands there is replaced.

        Raises:
            DataError: if the folder exists and holds something else.
            OutputError: if the system refuses.
        """
        check_place(folder)
        arrays: dict[str, NDArray[Any]] = {}
        for part, fit in self.fits.items():
            for name in ("means", "precisions", "held_out", "folds", "prompts"):
                array = getattr(fit, name)
                arrays[f"{part}.{name}"] = array.astype(np.int32 if array.dtype.kind == "i" else np.float32)
        own = self.features if isinstance(self.features, TextFeatures) else None
        arrays |= own.arrays() if own else {}
        document = {
            "format_version": FORMAT_VERSION,
            "parts": list(self.fits),
            "level": LEVEL,
            "made_by": dict(self.made_by) if self.made_by is not None else None,
            "terms": own.terms if own else None,
            "num_fitted": own.num_fitted if own else None,
        }
        with atomic_folder(folder) as temporary:
            write_json(temporary / _DOCUMENT, document)
            with open(temporary / _ARRAYS, "wb") as file:
                np.savez_compressed(file, **arrays)  # type: ignore[arg-type]


def check_place(folder: Path) -> None:
    """Whether a detector may be written into a folder: a new one, or one of an earlier detector.

    Raises:
        DataError: if it holds something else.
    """
    if folder.exists() and not (folder / _DOCUMENT).is_file():
        raise DataError("a place for the detector", f"{folder.name}, which holds something else", "Choose another.")


def load_detector(folder: Path, features_of: Callable[[Mapping[str, Any]], Features]) -> Detector:
    """A detector from its folder; no pickle is read.

    Args:
        folder: written by `Detector.save`.
        features_of: makes what computes the features, from what the detector says of it; not asked where it needs no model.

    Raises:
        ContractError: if the folder is not a detector, or of a later version.
    """
    mend = "Give the folder that `Shift.save_detector` wrote."
    try:
        document = json.loads((folder / _DOCUMENT).read_text(encoding="utf-8"))
        version, parts, made_by = document["format_version"], document["parts"], document["made_by"]
        if version != FORMAT_VERSION:
            raise ContractError(f"a detector of version {FORMAT_VERSION}", str(version), "Update rewardsmith.")
        # numpy leaves a file open that it cannot read, if it opened it.
        with open(folder / _ARRAYS, "rb") as opened, np.load(opened, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        fits: dict[Part, DistanceFit] = {part: _restored(arrays, part) for part in parts}
        if not fits or not set(fits) <= {"prompts", "answers"}:
            raise ValueError(f"parts {parts}")
        own = None
        if made_by is None:
            own = TextFeatures.restored(document["terms"], arrays, num_fitted=document["num_fitted"])
    except (
        OSError,
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
        EOFError,
        zipfile.BadZipFile,
        zlib.error,
    ) as error:
        raise ContractError(f"a readable domain detector in {folder.name}", f"{error}", mend) from error
    return Detector(fits, own if own is not None else features_of(made_by), made_by)


def _restored(arrays: Mapping[str, NDArray[Any]], part: str) -> DistanceFit:
    means, precisions, held_out = (
        arrays[f"{part}.{name}"].astype(np.float64) for name in ("means", "precisions", "held_out")
    )
    folds, prompts = (arrays[f"{part}.{name}"].astype(np.int64) for name in ("folds", "prompts"))
    whole = precisions.shape == (FOLDS, means.shape[1], means.shape[1]) and len(means) == FOLDS
    if not whole or not len(held_out) == len(folds) == len(prompts) > 0:
        raise ValueError(f"arrays of {part} that do not fit each other")
    return DistanceFit(means, precisions, held_out, folds, prompts)


def as_texts(pairs: Sequence[Pair], part: Part) -> list[Pair]:
    """What features are computed of: the prompt without an answer, or the answer without its prompt."""
    return [(prompt, "") if part == "prompts" else ("", answer) for prompt, answer in pairs]
