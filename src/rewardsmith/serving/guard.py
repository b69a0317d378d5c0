"""Who may ask, and how much: host, key, content type, size and time of a request, before anything is parsed.

A browser can reach a server on loopback from any page. It cannot forge the Host header, and without permission that is never given it cannot send JSON: both are checked.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import hmac
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from rewardsmith.config import ServeSettings
from rewardsmith.errors import SettingsError
from rewardsmith.serving.complaints import Complaint, complain

PUBLIC = ("/health", "/ping", "/ready")
"""Paths that need no key: they say nothing of anybody's work."""
LOOPBACK = ("localhost", "127.0.0.1", "[::1]", "::1")
KEYS = "REWARDSMITH_API_KEYS"
"""The environment variable with keys, separated by commas or white space."""
_LEAST_KEY = 16


def read_keys(settings: ServeSettings, environment: Mapping[str, str] = os.environ) -> list[str]:
    """The keys of the file and of the environment.

    Raises:
        SettingsError: if the file cannot be read, a key is too short to be one, or others than this machine could ask without a key.
    """
    text = environment.get(KEYS, "").replace(",", " ")
    if settings.keys_file is not None:
        try:
            text += " " + Path(settings.keys_file).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise SettingsError("a readable file of keys, one a line", str(error), "Check --keys-file.") from error
    keys = text.split()
    if settings.keys_file is not None and not keys:
        raise SettingsError("keys, one a line", f"none in {settings.keys_file}", "Write at least one.")
    short = [key for key in keys if len(key) < _LEAST_KEY]
    if short or not all(key.isascii() for key in keys):
        raise SettingsError(
            f"keys of at least {_LEAST_KEY} ASCII characters",
            f"{len(short)} shorter or other ones",
            "Draw random ones.",
        )
    if not keys and settings.host not in LOOPBACK and not settings.insecure:
        raise SettingsError(
            f"keys, to serve {settings.host} to other machines",
            "none",
            f"Give --keys-file or {KEYS}, or --insecure where the network itself is closed.",
        )
    return keys


@dataclass(frozen=True)
class Rules:
    """What a request must keep to.

    Args:
        keys: any of them lets in; none: everybody is let in.
        hosts: names that a Host header may give; None: any.
        max_body_bytes: of one request.
        body_seconds: for which the whole body may take.
        max_requests: at the same time.
    """

    keys: Sequence[str]
    hosts: Collection[str] | None
    max_body_bytes: int
    body_seconds: float
    max_requests: int

    @classmethod
    def of(cls, settings: ServeSettings, keys: Sequence[str]) -> Rules:
        """On loopback without other names, only loopback names are good."""
        local = settings.host in LOOPBACK
        hosts = {*LOOPBACK, settings.host, *settings.allowed_hosts} if local or settings.allowed_hosts else None
        return cls(keys, hosts, settings.max_body_bytes, settings.body_seconds, settings.max_requests)


class Guard:
    """An ASGI application around another one, which it hands whole bodies of requests that keep to the rules.

    Args:
        app: behind it.
        rules: see there.
        on_refused: is told the status of each request that is turned away here.
    """

    def __init__(self, app: ASGIApp, rules: Rules, on_refused: Callable[[int], None] = lambda _: None) -> None:
        """Nobody is inside yet."""
        self.app, self.rules, self.on_refused = app, rules, on_refused
        self.num_inside = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request in, or say why not."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        try:
            self._check(scope)
            public = scope["path"] in PUBLIC
            if not public and self.num_inside >= self.rules.max_requests:
                raise Complaint(429, "TooManyRequests", f"{self.rules.max_requests} requests are open", retry_after=1)
            self.num_inside += not public
            try:
                body = await self._body(Headers(scope=scope), receive)
                await self.app(scope, _replay(body, receive), send)
            finally:
                self.num_inside -= not public
        except Complaint as complaint:
            self.on_refused(complaint.status)
            await complain(scope["path"], complaint)(scope, receive, send)
        except _Gone:
            return

    def _check(self, scope: Scope) -> None:
        headers = Headers(scope=scope)
        if self.rules.hosts is not None and _name_of(headers.get("host", "")) not in self.rules.hosts:
            raise Complaint(421, "UnknownHost", "this Host header names another server; allow it with allowed_hosts")
        if self.rules.keys and scope["path"] not in PUBLIC and not self._knows(headers.get("authorization", "")):
            raise Complaint(401, "Unauthorized", "needed a key: the header `Authorization: Bearer KEY`")
        if scope["method"] != "POST":
            return
        kind = headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/json":
            raise Complaint(415, "UnsupportedMediaType", "needed the header `Content-Type: application/json`")
        length = headers.get("content-length", "0")
        if length.isdecimal() and int(length) > self.rules.max_body_bytes:
            raise self._too_large()

    def _knows(self, authorization: str) -> bool:
        """Whether the header brings one of the keys; every key is compared, in a time that does not tell how much of one was right."""
        scheme, _, given = authorization.partition(" ")
        if scheme.lower() == "basic":
            try:
                given = base64.b64decode(given, validate=True).decode().partition(":")[2]
            except (binascii.Error, UnicodeDecodeError):
                return False
        elif scheme.lower() != "bearer":
            return False
        found = [hmac.compare_digest(key.encode(), given.strip().encode()) for key in self.rules.keys]
        return any(found)

    def _too_large(self) -> Complaint:
        return Complaint(413, "BodyTooLarge", f"a body may have {self.rules.max_body_bytes} bytes; send fewer texts")

    async def _body(self, headers: Headers, receive: Receive) -> bytes:
        """The whole body, within its size and time."""
        parts: list[bytes] = []
        size = 0
        try:
            async with asyncio.timeout(self.rules.body_seconds):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise _Gone
                    parts.append(message.get("body", b""))
                    size += len(parts[-1])
                    if size > self.rules.max_body_bytes:
                        raise self._too_large()
                    if not message.get("more_body", False):
                        return b"".join(parts)
        except TimeoutError as error:
            raise Complaint(408, "BodyTooSlow", f"the body took more than {self.rules.body_seconds:g} s") from error


class _Gone(Exception):
    """The client left before its request was whole: nobody to answer."""


def _name_of(host: str) -> str:
    """A Host header without its port."""
    if host.startswith("["):
        return host.partition("]")[0] + "]"
    return host.partition(":")[0].lower()


def _replay(body: bytes, receive: Receive) -> Receive:
    """What the application receives: the body in one message, then whatever comes after it."""
    given = False

    async def replay() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replay
