"""Features of texts without a model: TF-IDF of words and of character runs, drawn together to a few numbers. Legend: `n` texts, `V` terms, `H` features."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix, hstack
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.utils.extmath import randomized_svd

from rewardsmith.data.schema import Pair
from rewardsmith.data.words import prompt_text
from rewardsmith.errors import ContractError, DataError

NUM_COMPONENTS = 64
_MAX_TERMS = 10_000
# Words tell topics apart; runs of three characters also reach languages and spellings that no dictionary holds.
_KINDS: dict[str, dict[str, Any]] = {
    "words": {"analyzer": "word", "token_pattern": r"(?u)\b\w+\b"},
    "runs": {"analyzer": "char_wb", "ngram_range": (3, 3)},
}


@dataclass(frozen=True)
class TextFeatures:
    """A `Features` of rewardsmith.scores that needs no model: the truncated SVD of TF-IDF (latent semantic analysis), and the logarithm of the length.

    Args:
        terms: {"words", "runs"}: the vocabulary of each kind, in the order of its columns.
        idf: float64 (V,), of both kinds, one after the other.
        components: float32 (H - 1, V).
        num_fitted: texts that it was fitted on.
    """

    terms: Mapping[str, Sequence[str]]
    idf: NDArray[np.float64]
    components: NDArray[np.float32]
    num_fitted: int

    @classmethod
    def fit(cls, pairs: Sequence[Pair], *, seed: int = 0) -> TextFeatures:
        """Fit on texts, without looking at where they come from.

        Raises:
            DataError: if they hold no word.
        """
        texts = [_text(pair) for pair in pairs]
        vectorizers = {name: _vectorizer(name, max_features=_MAX_TERMS) for name in _KINDS}
        try:
            matrix = hstack([one.fit_transform(texts) for one in vectorizers.values()]).tocsr()
        except ValueError as error:  # scikit-learn's, of an empty vocabulary
            raise DataError("texts with words to tell them apart by", f"{len(texts)} without", "Check them.") from error
        rank = max(1, min(NUM_COMPONENTS, *(size - 1 for size in matrix.shape)))
        _, _, components = randomized_svd(matrix, rank, random_state=seed)
        return cls(
            terms={name: one.get_feature_names_out().tolist() for name, one in vectorizers.items()},
            idf=np.concatenate([one.idf_ for one in vectorizers.values()]),
            components=components.astype(np.float32),
            num_fitted=len(texts),
        )

    def features(self, pairs: Sequence[Pair]) -> NDArray[np.float32]:
        """One row a text, prompt and answer joined, float32 (n, H); a row does not depend on the others."""
        texts = [_text(pair) for pair in pairs]
        lengths = np.log1p([len(text) for text in texts])[:, None]
        if not texts:
            return np.zeros((0, len(self.components) + 1), np.float32)
        matrix = csr_matrix(hstack([one.transform(texts) for one in self._vectorizers]))
        return np.hstack([matrix @ self.components.T, lengths]).astype(np.float32)

    @cached_property
    def _vectorizers(self) -> list[TfidfVectorizer]:
        ready, first = [], 0
        for name in _KINDS:
            one = _vectorizer(name, vocabulary=list(self.terms[name]))
            one.idf_ = self.idf[first : first + len(self.terms[name])]
            ready.append(one)
            first += len(self.terms[name])
        return ready

    def as_dict(self) -> dict[str, Any]:
        """What documents say of it."""
        return {
            "kind": "tf-idf",
            "says": "TF-IDF of words and of runs of three characters, truncated SVD, and the logarithm of the length",
            "num_terms": len(self.idf),
            "num_features": len(self.components) + 1,
            "num_fitted": self.num_fitted,
        }

    def arrays(self) -> dict[str, NDArray[Any]]:
        """What is kept in a file of arrays, the terms apart."""
        return {"idf": self.idf, "components": self.components}

    @classmethod
    def restored(cls, terms: Any, arrays: Mapping[str, NDArray[Any]], *, num_fitted: int) -> TextFeatures:
        """What `terms` and `arrays` of a fitted one give.

        Raises:
            ContractError: if they do not fit each other.
        """
        known = isinstance(terms, dict) and set(terms) == set(_KINDS)
        if not known or not len(arrays["idf"]) == arrays["components"].shape[1] == sum(map(len, terms.values())):
            raise ContractError(
                "the terms and arrays of one representation", "others", "Save the detector again with the audit."
            )
        return cls(terms, arrays["idf"], arrays["components"], num_fitted)


def _vectorizer(name: str, **more: Any) -> TfidfVectorizer:
    return TfidfVectorizer(sublinear_tf=True, lowercase=True, **_KINDS[name], **more)


def _text(pair: Pair) -> str:
    prompt, answer = prompt_text(pair[0]), pair[1]
    return f"{prompt}\n\n{answer}" if prompt and answer else prompt or answer
