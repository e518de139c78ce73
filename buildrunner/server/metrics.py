"""Metrics for Prometheus: queue, start latency, durations, failures, requests."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Any, Final

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
    generate_latest,
)

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
_START_BUCKETS: Final = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 900, 3600)
_LENGTH_BUCKETS: Final = (1, 5, 10, 30, 60, 120, 300, 600, 1200, 1800, 3600, 7200, 86400)
_HTTP_BUCKETS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10)
_METHODS: Final = frozenset(("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"))


class Metrics:
    """The numbers of one server since it started. Thread-safe."""

    def __init__(self) -> None:
        # The creation times of the metrics are not used, and would double the text.
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self._registry = CollectorRegistry()
        self._queued = self._gauge("builds_queued", "Builds that wait for their turn.")
        self._running = self._gauge("builds_running", "Builds that a worker holds.")
        self._waiting = self._gauge("outbox_waiting", "Messages that have not arrived yet.")
        self._given_up = self._gauge("outbox_given_up", "Messages that were given up.")
        self._created = self._counter("builds_created", "Builds that were accepted.")
        self._ended = self._counter("builds_ended", "Builds that ended, by status.", "status")
        self._failures = self._counter(
            "build_failures", "Builds that failed, by the kind of failure.", "kind"
        )
        self._start = self._histogram(
            "build_start_latency_seconds", "From creation to start of a build.", _START_BUCKETS
        )
        self._duration = self._histogram(
            "build_duration_seconds", "From start to end of a build.", _LENGTH_BUCKETS, "status"
        )
        self._requests = self._counter(
            "http_requests", "Requests answered, by route.", "method", "route", "code"
        )
        self._latency = self._histogram(
            "http_request_duration_seconds",
            "Until the first byte of the answer.",
            _HTTP_BUCKETS,
            "method",
            "route",
        )

    def watch_queue(self, queued: Callable[[], int], running: Callable[[], int]) -> None:
        """Read these numbers at each request for metrics."""
        self._queued.set_function(queued)
        self._running.set_function(running)

    def watch_outbox(self, waiting: Callable[[], int], given_up: Callable[[], int]) -> None:
        """Read these numbers at each request for metrics."""
        self._waiting.set_function(waiting)
        self._given_up.set_function(given_up)

    def build_created(self) -> None:
        """Count an accepted build."""
        self._created.inc()

    def build_started(self, document: dict[str, Any], now: datetime) -> None:
        """Count a build that was claimed from the queue."""
        created = document.get("createTime")
        if created is not None:
            waited = now - datetime.fromisoformat(created)
            self._start.observe(max(0.0, waited.total_seconds()))

    def build_ended(self, document: dict[str, Any]) -> None:
        """Count an ended build; ``document`` is its last state."""
        status = str(document.get("status", "STATUS_UNKNOWN"))
        self._ended.labels(status).inc()
        if status not in ("SUCCESS", "CANCELLED"):
            kind = document.get("failureInfo", {}).get("type", status)
            self._failures.labels(str(kind)).inc()
        length = _seconds(document, "startTime", "finishTime")
        if length is not None:
            self._duration.labels(status).observe(length)

    def request_answered(self, method: str, route: str, code: int, seconds: float) -> None:
        """Count an answered request that took ``seconds``."""
        # A client may send any word as a method, each of which would be a new permanent series.
        method = method if method in _METHODS else "other"
        self._requests.labels(method, route, str(code)).inc()
        self._latency.labels(method, route).observe(seconds)

    def text(self) -> bytes:
        """Return all metrics in the text format of Prometheus."""
        return generate_latest(self._registry)

    def _gauge(self, name: str, text: str) -> Gauge:
        return Gauge(f"buildrunner_{name}", text, registry=self._registry)

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"buildrunner_{name}", text, labels, registry=self._registry)

    def _histogram(
        self, name: str, text: str, buckets: tuple[float, ...], *labels: str
    ) -> Histogram:
        full_name = f"buildrunner_{name}"
        return Histogram(full_name, text, labels, buckets=buckets, registry=self._registry)


def _seconds(document: dict[str, Any], begin: str, end: str) -> float | None:
    try:
        first, last = (datetime.fromisoformat(document[name]) for name in (begin, end))
    except (KeyError, ValueError):
        return None
    return max(0.0, (last - first).total_seconds())
