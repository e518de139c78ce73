"""One OpenTelemetry trace per build: the build, its phases, pulls, steps and pushes as spans.

The trace's id is the build's id without dashes: each can be derived from the other, and all
processes of one build report to the same trace. The SDK reads ``OTEL_*`` itself. A collector
that does not answer does not delay the build: a thread sends spans, and those that can't be sent
are dropped.
"""

from __future__ import annotations

import logging
import uuid
from collections.abc import Callable, Iterable
from datetime import datetime
from typing import Any

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.id_generator import IdGenerator, RandomIdGenerator
from opentelemetry.trace import Span, Status, StatusCode, set_span_in_context

from buildrunner.engine import events

_FLUSH_MS = 3000
_BUILD = "build"
_GOOD = frozenset({"SUCCESS"})

_log = logging.getLogger(__name__)


class BuildTrace:
    """Listener of one build's events. Used by one thread.

    Args:
        build_id: a UUID.
        attributes: attributes of the root span.
    """

    def __init__(self, build_id: str, attributes: dict[str, str]) -> None:
        self._provider = TracerProvider(
            resource=Resource.create({"service.name": "buildrunner"}),
            id_generator=_TraceOfBuild(uuid.UUID(build_id).int),
        )
        self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        self._tracer = self._provider.get_tracer("buildrunner")
        self._attributes = {"buildrunner.build_id": build_id, **attributes}
        self._open: dict[str, Span] = {}
        self._handlers: dict[type, Callable[[Any], None]] = {
            events.BuildStarted: self._build_started,
            events.PhaseStarted: lambda e: self._begin(e.phase, e.at),
            events.PhaseFinished: lambda e: self._end(e.phase, e.at),
            events.StepStarted: self._step_started,
            events.StepRunning: self._step_running,
            events.StepFinished: self._step_finished,
            events.PullStarted: lambda e: self._begin(f"pull {e.image}", e.at),
            events.PullFinished: lambda e: self._end(f"pull {e.image}", e.at, error=e.error),
            events.PushStarted: lambda e: self._begin(f"push {e.image}", e.at),
            events.ImagePushed: self._pushed,
            events.Warned: self._warned,
            events.BuildFinished: self._build_finished,
        }

    def on_event(self, event: events.BuildEvent) -> None:
        """Record an event. Errors are logged, and do not affect the build."""
        handler = self._handlers.get(type(event))
        if handler is None:
            return
        try:
            handler(event)
        except Exception:  # noqa: BLE001  (a trace must not end its build)
            _log.exception("the trace lacks an event")

    def resume(self, stored: Iterable[events.BuildEvent]) -> None:
        """Take over from a dead process: its unfinished spans are open again.

        Its span of the build was never sent; ours has the same id, so its children have a parent.
        """
        begun: dict[str, events.BuildEvent] = {}
        for event in stored:
            match event:
                case events.BuildStarted():
                    begun[_BUILD] = event
                case events.PhaseStarted():
                    begun[event.phase] = event
                case events.PhaseFinished():
                    begun.pop(event.phase, None)
                case events.StepStarted():
                    begun[f"step {event.step}"] = event
                case events.StepFinished():
                    begun.pop(f"step {event.step}", None)
                case _:
                    pass
        for event in begun.values():
            self.on_event(event)

    def _begin(self, name: str, at: datetime, **attributes: str | int) -> None:
        if name in self._open:  # a retry of the same work
            return
        root = self._open.get(_BUILD)
        parent = set_span_in_context(root) if root else None
        self._open[name] = self._tracer.start_span(
            name, context=parent, start_time=_nanoseconds(at), attributes=attributes
        )

    def _end(self, name: str, at: datetime, *, error: str = "", **attributes: str | int) -> None:
        span = self._open.pop(name, None)
        if span is None:
            return
        span.set_attributes(attributes)
        if error:
            span.set_status(Status(StatusCode.ERROR, error))
        span.end(_nanoseconds(at))

    def _build_started(self, event: events.BuildStarted) -> None:
        self._begin(_BUILD, event.at, **self._attributes)

    def _step_started(self, event: events.StepStarted) -> None:
        self._begin(f"step {event.step}", event.at, **{"buildrunner.step": event.step})

    def _step_running(self, event: events.StepRunning) -> None:
        if span := self._open.get(f"step {event.step}"):
            span.add_event("container started", timestamp=_nanoseconds(event.at))

    def _step_finished(self, event: events.StepFinished) -> None:
        facts: dict[str, str | int] = {"buildrunner.status": event.status}
        if event.exit_code is not None:
            facts["buildrunner.exit_code"] = event.exit_code
        bad = event.status not in _GOOD and not event.forgiven
        error = (event.error or event.status) if bad else ""
        self._end(f"step {event.step}", event.at, error=error, **facts)

    def _pushed(self, event: events.ImagePushed) -> None:
        for name in (event.name, event.name.removesuffix(":latest")):
            self._end(f"push {name}", event.at, **{"buildrunner.digest": event.digest})

    def _warned(self, event: events.Warned) -> None:
        if span := self._open.get(_BUILD):
            span.add_event("warning", {"text": event.text}, _nanoseconds(event.at))

    def _build_finished(self, event: events.BuildFinished) -> None:
        for name in [name for name in self._open if name != _BUILD]:
            self._end(name, event.at)
        error = "" if event.status in _GOOD else event.error or event.status
        self._end(_BUILD, event.at, error=error, **{"buildrunner.status": event.status})
        self._provider.force_flush(_FLUSH_MS)


class _TraceOfBuild(IdGenerator):
    """Generates ids: all spans are in the trace with the build's id; the first is its root."""

    def __init__(self, trace_id: int) -> None:
        self._trace_id = trace_id
        self._random = RandomIdGenerator()
        self._has_root = False

    def generate_span_id(self) -> int:
        if not self._has_root:
            self._has_root = True
            return self._trace_id & 0xFFFF_FFFF_FFFF_FFFF
        return self._random.generate_span_id()

    def generate_trace_id(self) -> int:
        return self._trace_id


def _nanoseconds(at: datetime) -> int:
    return int(at.timestamp() * 1_000_000) * 1000
