"""The process: uvicorn around the application, with an end to connections that never send a whole request, and a graceful stop."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable, Sequence
from types import FrameType
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from rewardsmith.config import ServeSettings
from rewardsmith.errors import SettingsError
from rewardsmith.serving.app import create_app
from rewardsmith.serving.served import ServedModel

# After the deadline of the last request it has accepted, a stopping server ends in any case.
_GRACE = 5


class _TimedProtocol(H11Protocol):
    """HTTP/1.1 whose requests must have sent their head within a time: uvicorn itself waits for ever."""

    header_seconds = 10.0

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._arm()

    def data_received(self, data: bytes) -> None:
        if not self._busy:
            self._arm()
        super().data_received(data)
        if self._busy:
            self._disarm()

    def connection_lost(self, exc: Exception | None) -> None:
        self._disarm()
        super().connection_lost(exc)

    @property
    def _busy(self) -> bool:
        """Whether the head of a request has come and its response is not complete."""
        return self.cycle is not None and not self.cycle.response_complete

    def _arm(self) -> None:
        if self._timer is None:
            self._timer = self.loop.call_later(self.header_seconds, self._cut)

    def _disarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _cut(self) -> None:
        self._timer = None
        if not self.transport.is_closing():
            self.transport.close()


class Server(uvicorn.Server):
    """A server of reward models.

    Args:
        models: to serve.
        settings: of the server.
        keys: that let in.
        on_started: is told the address, once it listens.
    """

    def __init__(
        self,
        models: Sequence[ServedModel],
        settings: ServeSettings,
        keys: Sequence[str] = (),
        *,
        on_started: Callable[[str], None] = lambda _: None,
    ) -> None:
        """Make the application; nothing listens before `run`."""
        self.settings, self.on_started = settings, on_started
        self.app = create_app(models, settings, keys)
        protocol = type("_Protocol", (_TimedProtocol,), {"header_seconds": settings.header_seconds})
        super().__init__(
            uvicorn.Config(
                self.app,
                host=settings.host,
                port=settings.port,
                http=protocol,
                ws="none",
                lifespan="on",
                # Its own configuration closes every handler that the process has, and with some the stream behind it.
                log_config=None,
                log_level="warning" if not settings.access_log else "info",
                access_log=settings.access_log,
                server_header=False,
                timeout_graceful_shutdown=int(settings.deadline) + _GRACE,
            )
        )

    def serve_until_stopped(self) -> None:
        """Serve until SIGTERM or Ctrl-C, then finish what was accepted.

        Raises:
            SettingsError: if the address cannot be had.
            KeyboardInterrupt: after Ctrl-C, once everything is finished.
        """
        # uvicorn raises the signal again after its graceful stop; for SIGTERM that stop was all that was asked for.
        before = signal.signal(signal.SIGTERM, _nothing_more)
        try:
            self.run()
        except SystemExit as error:  # uvicorn's way of saying that it could not start; it has logged why
            raise SettingsError(
                f"a free port at {self.settings.host}:{self.settings.port}", "one that cannot be had", "Choose another."
            ) from error
        finally:
            signal.signal(signal.SIGTERM, before)

    async def startup(self, sockets: Any = None) -> None:
        """Uvicorn's own, and the address to whoever waits for it."""
        await super().startup(sockets)
        if self.started:
            port = self.servers[0].sockets[0].getsockname()[1]
            host = f"[{self.settings.host}]" if ":" in self.settings.host else self.settings.host
            self.on_started(f"http://{host}:{port}")


def _nothing_more(number: int, frame: FrameType | None) -> None:
    pass
