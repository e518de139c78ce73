"""A build's trace, as a collector receives it over OTLP/HTTP."""

import gzip
import threading
import uuid
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from buildrunner.engine import events
from buildrunner.worker.tracing import BuildTrace

BUILD_ID = str(uuid.uuid4())
START = datetime(2024, 5, 31, 12, tzinfo=UTC)
STATUS_ERROR = 2


class Collector(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Receiver)
        self.requests = []


class Receiver(BaseHTTPRequestHandler):
    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.headers.get("Content-Encoding") == "gzip":
            body = gzip.decompress(body)
        self.server.requests.append((self.path, ExportTraceServiceRequest.FromString(body)))
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_):
        pass


@pytest.fixture
def collector(monkeypatch):
    server = Collector()
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    url = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", url)
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def at(seconds):
    return START + timedelta(seconds=seconds)


def spans(collector):
    return {
        span.name: span
        for path, request in collector.requests
        if path == "/v1/traces"
        for resource in request.resource_spans
        for scope in resource.scope_spans
        for span in scope.spans
    }


def attributes(span):
    return {one.key: one.value.string_value or one.value.int_value for one in span.attributes}


def test_a_build_is_one_trace_of_phases_pulls_and_steps(collector):
    trace = BuildTrace(BUILD_ID, {"buildrunner.project": "p"})
    for event in (
        events.BuildStarted(at=at(0), build_id=BUILD_ID, steps=2),
        events.PhaseStarted(at=at(0), phase="FETCHSOURCE"),
        events.PhaseFinished(at=at(1), phase="FETCHSOURCE"),
        events.StepStarted(at=at(1), step=0),
        events.PullStarted(at=at(1), image="app", steps=(0,)),
        events.PullFinished(at=at(2), image="app"),
        events.StepRunning(at=at(2), step=0),
        events.StepFinished(at=at(3), step=0, status="SUCCESS", exit_code=0),
        events.StepStarted(at=at(3), step=1),
        events.StepFinished(at=at(5), step=1, status="FAILURE", exit_code=7, error="exit 7"),
        events.BuildFinished(at=at(6), status="FAILURE", error="step 1 failed"),
    ):
        trace.on_event(event)
    found = spans(collector)
    assert set(found) == {"build", "FETCHSOURCE", "step 0", "pull app", "step 1"}
    root = found.pop("build")
    assert {span.trace_id.hex() for span in (root, *found.values())} == {BUILD_ID.replace("-", "")}
    assert {span.parent_span_id for span in found.values()} == {root.span_id}
    assert attributes(root)["buildrunner.project"] == "p"
    assert attributes(root)["buildrunner.status"] == "FAILURE"
    assert (root.status.code, root.status.message) == (STATUS_ERROR, "step 1 failed")
    step = found["step 1"]
    assert attributes(step)["buildrunner.exit_code"] == 7
    assert (step.end_time_unix_nano - step.start_time_unix_nano) == 2_000_000_000
    assert step.status.code == STATUS_ERROR
    assert found["step 0"].status.code != STATUS_ERROR
    assert [one.name for one in found["step 0"].events] == ["container started"]


def test_what_is_still_open_ends_with_the_build(collector):
    trace = BuildTrace(BUILD_ID, {})
    trace.on_event(events.BuildStarted(at=at(0), build_id=BUILD_ID, steps=1))
    trace.on_event(events.StepStarted(at=at(1), step=0))
    trace.on_event(events.BuildFinished(at=at(2), status="CANCELLED"))
    assert set(spans(collector)) == {"build", "step 0"}


def test_an_event_that_cannot_be_told_harms_nobody(caplog):
    trace = BuildTrace(BUILD_ID, {})
    trace.on_event(events.PhaseFinished(at=None, phase="BUILD"))
    trace.on_event(events.PhaseStarted(at=None, phase="BUILD"))
    assert "the trace lacks an event" in caplog.text
