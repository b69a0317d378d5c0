"""Errors as responses: one status a kind, in the words of the protocol that was spoken. No text of a client is in a log."""

from __future__ import annotations

import logging
import traceback
from collections.abc import Sequence
from typing import Any

from fastapi.exceptions import RequestValidationError
from starlette.responses import JSONResponse

from rewardsmith.errors import LengthError, RewardsmithError, ScoreError
from rewardsmith.serving.engine import DeadlinePassed, QueueFull, Refused, Stopping

_log = logging.getLogger("rewardsmith.serving")

TAG = "body of "
"""What the names of the bodies that share a path begin with."""
VLLM = ("/classify", "/v1/classify", "/score", "/rerank", "/v1/rerank", "/v2/rerank", "/pooling")
TEI = ("/predict", "/")
# What Text Embeddings Inference calls its errors; everything that is wrong with an input is "Validation", 422, but for none at all.
_TEI_KINDS = {400: ("Validation", 422), 413: ("Validation", 422), 429: ("Overloaded", 429), 503: ("Unhealthy", 503)}


class Complaint(Exception):
    """A request that cannot be served.

    Args:
        status: of the response.
        kind: one word, for programs.
        message: a sentence, for people.
        retry_after: whole seconds, where trying again may help.
        error: the typed error behind it.
    """

    def __init__(
        self,
        status: int,
        kind: str,
        message: str,
        *,
        retry_after: int | None = None,
        error: RewardsmithError | None = None,
    ) -> None:
        """Keep the parts."""
        super().__init__(message)
        self.status, self.kind, self.message = status, kind, message
        self.retry_after, self.error = retry_after, error

    @classmethod
    def of(cls, error: Exception) -> Complaint:
        """What an error of ours means to a client; anything else is a fault of ours, logged by its place and not by its words."""
        match error:
            case Complaint():
                return error
            case QueueFull(retry_after=seconds):
                return cls(429, "QueueFull", str(error), retry_after=seconds)
            case Stopping():
                return cls(503, "Stopping", str(error), retry_after=1)
            case DeadlinePassed():
                return cls(504, "DeadlinePassed", str(error), retry_after=1)
            case Refused():
                return cls(503, "Refused", str(error), retry_after=1)
            case LengthError():
                return cls(413, "LengthError", str(error), error=error)
            case ScoreError():
                _log.error("a score was not finite")
                return cls(500, "ScoreError", str(error), error=error)
            case RewardsmithError():
                return cls(400, type(error).__name__, str(error), error=error)
        place = "".join(traceback.format_tb(error.__traceback__))
        _log.error("%s in a request:\n%s", type(error).__name__, place)
        return cls(500, "InternalError", f"a fault of the server ({type(error).__name__}); it is in the server's log")

    @classmethod
    def of_body(cls, error: RequestValidationError) -> Complaint:
        """What is wrong with a body, field by field; the values that came are not repeated."""
        faults = [f"{_place(fault['loc'])}: {fault['msg']}" for fault in error.errors()]
        return cls(400, "InvalidRequest", "; ".join(faults[:10]))


def _place(parts: Sequence[str | int]) -> str:
    """Where in a body a fault is, "inputs.0.answer"."""
    return ".".join(str(part) for part in parts if part != "body" and not str(part).startswith(TAG)) or "body"


def complain(path: str, complaint: Complaint, *, protocol: str | None = None) -> JSONResponse:
    """The response; `protocol` where it is known, else that of the path."""
    headers = {} if complaint.retry_after is None else {"Retry-After": str(complaint.retry_after)}
    if complaint.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    protocol = protocol or ("vllm" if path in VLLM else "tei" if path in TEI else "rewardsmith")
    status, document = _document(complaint, protocol)
    return JSONResponse(document, status_code=status, headers=headers)


def _document(complaint: Complaint, protocol: str) -> tuple[int, dict[str, Any]]:
    if protocol == "tei":
        kind, status = _TEI_KINDS.get(complaint.status, ("Backend" if complaint.status >= 500 else "Validation", 0))
        if complaint.kind == "Empty":
            kind, status = "Empty", 400
        return status or complaint.status, {"error": complaint.message, "error_type": kind}
    if protocol == "vllm":
        error = {"message": complaint.message, "type": complaint.kind, "param": None, "code": complaint.status}
        return complaint.status, {"error": error}
    known = complaint.error.as_dict() if complaint.error is not None else {}
    return complaint.status, {"error": {**known, "type": complaint.kind, "message": complaint.message}}
