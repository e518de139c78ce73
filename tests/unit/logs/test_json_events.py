"""Events for machines."""

import json
import os

from buildrunner.engine.events import StepStarted
from buildrunner.engine.log.pipeline import LogChunk
from buildrunner.logs.console.outputs import JsonEvents
from tests.unit.logs.builds import at


def lines_of(act):
    read, write = os.pipe()
    act(JsonEvents(write))
    os.close(write)
    with open(read, "rb") as pipe:
        return [json.loads(line) for line in pipe]


def test_every_event_and_line_is_one_json_object():
    def act(out):
        out.on_event(StepStarted(at=at(0), step=2))
        out.write(LogChunk(b"one\ntwo \xff\r\n", 2, at(1)))
        out.write(LogChunk(b"BUILD\n", None, at(2)))
        out.result({"id": "b"}, 1)

    assert lines_of(act) == [
        {"event": "stepStarted", "at": "2024-05-31T12:00:00Z", "step": 2, "pulls": False},
        {"event": "log", "at": "2024-05-31T12:00:01Z", "step": 2, "text": "one"},
        {"event": "log", "at": "2024-05-31T12:00:01Z", "step": 2, "text": "two \ufffd\r"},
        {"event": "log", "at": "2024-05-31T12:00:02Z", "step": None, "text": "BUILD"},
        {"event": "result", "exitCode": 1, "build": {"id": "b"}},
    ]


def test_a_reader_that_went_away_is_no_error():
    read, write = os.pipe()
    os.close(read)
    out = JsonEvents(write)
    out.on_event(StepStarted(at=at(0), step=0))
    out.write(LogChunk(b"x\n", 0, at(0)))
    out.close()
    os.close(write)
