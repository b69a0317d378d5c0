"""Numbers for Prometheus. Labels are names of routes, models and statuses that the server knows; no client can make one."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from rewardsmith.serving.engine import Batch, Engine

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_TEXTS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)


class Observed:
    """The metrics of one server, in a registry of their own."""

    def __init__(self) -> None:
        """Everything at zero."""
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "rewardsmith_requests", "Requests by route and status.", ["route", "status"], registry=self.registry
        )
        self.seconds = Histogram(
            "rewardsmith_request_seconds",
            "Time from the whole body to the response.",
            ["route"],
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.texts = Counter("rewardsmith_texts", "Texts scored.", ["model"], registry=self.registry)
        self.tokens = Counter("rewardsmith_tokens", "Tokens read.", ["model"], registry=self.registry)
        self.truncated = Counter("rewardsmith_truncated", "Texts that were cut.", ["model"], registry=self.registry)
        self.batch_texts = Histogram(
            "rewardsmith_batch_texts", "Texts of a batch.", ["model"], buckets=_TEXTS, registry=self.registry
        )
        self.batch_seconds = Histogram(
            "rewardsmith_batch_seconds", "Time of a batch.", ["model"], buckets=_SECONDS, registry=self.registry
        )
        self.held = Gauge("rewardsmith_texts_held", "Texts waiting or being scored.", ["model"], registry=self.registry)

    def hold(self, model: str, engine: Engine) -> None:
        """Read what an engine holds whenever somebody asks."""
        self.held.labels(model).set_function(lambda: engine.texts_held)

    def batch(self, model: str, batch: Batch) -> None:
        """Count what the model read at once."""
        self.texts.labels(model).inc(batch.num_texts)
        self.tokens.labels(model).inc(batch.num_tokens)
        self.batch_texts.labels(model).observe(batch.num_texts)
        self.batch_seconds.labels(model).observe(batch.seconds)

    def request(self, route: str, status: int, seconds: float) -> None:
        """Count one answered request."""
        self.requests.labels(route, str(status)).inc()
        self.seconds.labels(route).observe(seconds)

    def refused(self, status: int) -> None:
        """Count a request that was turned away before it reached a route."""
        self.requests.labels("refused", str(status)).inc()

    def page(self) -> bytes:
        """What Prometheus reads."""
        return generate_latest(self.registry)
