"""A build's beginning while nobody knows its plan yet: fetched, failed, cancelled, too late."""

import threading
from datetime import timedelta

import pytest

from buildrunner.engine.cancellation import CancelToken, Clock
from buildrunner.engine.events import BuildFinished, BuildStarted, PhaseFinished, PhaseStarted
from buildrunner.engine.outcome import BuildOutcome
from buildrunner.engine.source_phase import SourcePhase
from buildrunner.errors import SourceError
from buildrunner.spec.model.build import Build, BuildStep, Status
from buildrunner.spec.model.results import FailureType


class Log:
    def __init__(self):
        self.text = ""

    def write(self, chunk):
        self.text += chunk.data.decode()

    def close(self):
        """Nothing to close."""


class Start:
    def __init__(self, timeout_s=60.0):
        self.log = Log()
        self.events = []
        self.cancel = CancelToken()
        self.discarded = []
        self.phase = SourcePhase(
            Build(
                id="b1",
                steps=(BuildStep(name="busybox"),) * 2,
                timeout=timedelta(seconds=timeout_s),
            ),
            sink=self.log,
            on_event=self.events.append,
            cancel=self.cancel,
            clock=Clock(),
        )

    def fetch(self, work):
        return self.phase.fetch(work, self.discarded.append)

    @property
    def kinds(self):
        return [type(event) for event in self.events]


def test_what_was_fetched_comes_back_and_the_build_goes_on():
    start = Start()

    def work(_cancel, report):
        report.line("Fetching it")
        return "checkout"

    assert start.fetch(work) == "checkout"
    assert start.log.text == 'starting build "b1"\n\nFETCHSOURCE\nFetching it\n'
    assert start.kinds == [BuildStarted, PhaseStarted]


def test_a_source_that_cannot_be_had_ends_the_build():
    start = Start()

    def work(_cancel, _report):
        raise SourceError("there is no such revision", hint="name another")

    outcome = start.fetch(work)
    assert isinstance(outcome, BuildOutcome)
    assert outcome.status is Status.FAILURE
    assert outcome.failure_type is FailureType.FETCH_SOURCE_FAILED
    assert outcome.failure_detail == "there is no such revision: name another"
    assert list(outcome.phases) == ["FETCHSOURCE"]
    assert outcome.phases["FETCHSOURCE"].end is not None
    assert start.log.text.endswith("ERROR\nERROR: there is no such revision: name another\n")
    assert start.kinds == [BuildStarted, PhaseStarted, PhaseFinished, BuildFinished]


def test_a_cancel_stops_the_fetch_and_gives_back_what_came_all_the_same():
    start = Start()

    def work(cancel, _report):
        start.cancel.cancel()
        assert cancel.wait(30)
        return "late"

    outcome = start.fetch(work)
    assert outcome.status is Status.CANCELLED
    assert start.discarded == ["late"]
    assert start.log.text.endswith("CANCELLED\nERROR: context canceled\n")


def test_a_fetch_that_does_not_stop_holds_up_nobody():
    start = Start()
    go_on = threading.Event()

    def work(_cancel, _report):
        start.cancel.cancel()
        go_on.wait(30)

    assert start.fetch(work).status is Status.CANCELLED
    go_on.set()


def test_the_timeout_of_the_build_counts_from_its_beginning():
    start = Start(timeout_s=0.001)
    outcome = start.fetch(lambda cancel, _report: cancel.wait(30))
    assert outcome.status is Status.TIMEOUT
    assert outcome.error == "context deadline exceeded"


def test_a_bug_is_no_failure_of_the_source():
    def work(_cancel, _report):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        Start().fetch(work)
