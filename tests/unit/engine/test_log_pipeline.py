from __future__ import annotations

import threading
from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from buildrunner.containers.protocol import ErrorOutput
from buildrunner.engine.cancellation import Clock
from buildrunner.engine.log.masking import Masker
from buildrunner.engine.log.pipeline import LONGEST_OPEN_LINE, LogChunk, LogPipeline, StoredLog


class HandClock(Clock):
    """Time passes when a test says so."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def now(self) -> datetime:
        return datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=self.seconds)

    def monotonic(self) -> float:
        return self.seconds


class Lines:
    def __init__(self) -> None:
        self.chunks: list[LogChunk] = []

    def write(self, chunk: LogChunk) -> None:
        self.chunks.append(chunk)

    def close(self) -> None:
        pass

    @property
    def text(self) -> bytes:
        return b"".join(chunk.data for chunk in self.chunks)


class BrokenSink(Lines):
    def write(self, chunk: LogChunk) -> None:
        raise OSError("no space left on device")


def never(error: Exception) -> None:
    raise AssertionError(error)


def pipeline(
    sink: Lines, clock: Clock | None = None, secrets: list[str] | None = None
) -> LogPipeline:
    made = LogPipeline(sink, clock or HandClock(), never)
    made.masker = Masker(secrets) if secrets else None
    return made


def test_every_line_gets_the_prefix() -> None:
    sink = Lines()
    log = pipeline(sink).step(0, "Step #0: ")
    log.write(b"one\ntwo\n\nthr")
    log.write(b"ee\n")
    assert sink.text == b"Step #0: one\nStep #0: two\nStep #0: \nStep #0: three\n"


def test_a_build_of_one_step_is_copied_as_it_is() -> None:
    sink = Lines()
    made = pipeline(sink)
    log = made.step(0, "")
    log.write(b"10%\r20%\r\xff\xfe\nno newline")
    log.finish()
    made.line("PUSH")
    made.close()
    assert sink.text == b"10%\r20%\r\xff\xfe\nno newline\nPUSH\n"


@given(
    outputs=st.lists(
        st.lists(st.binary(max_size=20).map(lambda line: line.replace(b"\n", b"")), max_size=8),
        min_size=2,
        max_size=3,
    ),
    cuts=st.lists(st.tuples(st.integers(0, 2), st.integers(1, 7)), max_size=60),
)
def test_parallel_steps_never_tear_each_others_lines(
    outputs: list[list[bytes]], cuts: list[tuple[int, int]]
) -> None:
    sink = Lines()
    made = pipeline(sink)
    logs = [made.step(number, f"<{number}> ") for number in range(len(outputs))]
    rest = [b"".join(line + b"\n" for line in lines) for lines in outputs]
    for number, size in cuts:
        if number < len(rest) and rest[number]:
            logs[number].write(rest[number][:size])
            rest[number] = rest[number][size:]
    for log, left in zip(logs, rest, strict=True):
        log.write(left)
        log.finish()
    made.close()
    for number, lines in enumerate(outputs):
        prefix = f"<{number}> ".encode()
        written = [
            line[len(prefix) :]
            for chunk in sink.chunks
            if chunk.step == number
            for line in chunk.data.split(b"\n")[:-1]
        ]
        assert written == lines
        for chunk in sink.chunks:
            assert chunk.data.endswith(b"\n")
            if chunk.step == number:
                assert all(line.startswith(prefix) for line in chunk.data.split(b"\n")[:-1])


def test_an_open_line_is_shown_after_a_second_and_goes_on_seamlessly() -> None:
    sink, clock = Lines(), HandClock()
    made = pipeline(sink, clock)
    log = made.step(0, "Step #0: ")
    log.write(b"loading")
    clock.seconds = 0.9
    made.flush_idle(clock.seconds)
    assert sink.text == b""
    clock.seconds = 1.0
    made.flush_idle(clock.seconds)
    assert sink.text == b"Step #0: loading"
    log.write(b"... done\nnext\n")
    made.close()
    assert sink.text == b"Step #0: loading... done\nStep #0: next\n"


def test_whoever_writes_behind_an_open_line_ends_it_first() -> None:
    sink, clock = Lines(), HandClock()
    made = pipeline(sink, clock)
    log, other = made.step(0, "<0> "), made.step(1, "<1> ")
    log.write(b"50%")
    made.flush_idle(5.0)
    other.write(b"hello\n")
    log.write(b" 60%\n")
    made.close()
    assert sink.text == b"<0> 50%\n<1> hello\n<0>  60%\n"


def test_a_line_without_end_takes_no_memory() -> None:
    sink = Lines()
    made = pipeline(sink)
    log = made.step(0, "")
    for _ in range(100):
        log.write(b"x" * 10_000)
    assert len(sink.text) > 1_000_000 - LONGEST_OPEN_LINE - 10_000
    log.finish()
    made.close()
    assert sink.text == b"x" * 1_000_000 + b"\n"


def test_our_own_line_stands_behind_what_the_step_wrote() -> None:
    sink = Lines()
    made = pipeline(sink)
    log = made.step(0, "<0> ")
    log.write(b"no end")
    log.finish()
    log.line("step exited with non-zero status: 1 (allowed to fail)")
    made.close()
    assert sink.text == b"<0> no end\n<0> step exited with non-zero status: 1 (allowed to fail)\n"


def test_secrets_are_covered_before_anything_else_sees_them() -> None:
    sink = Lines()
    made = pipeline(sink, secrets=["hunter22"])
    log = made.step(0, "<0> ")
    log.write(b"password=hunt")
    log.write(b"er22\nhunter2")
    log.finish()
    made.line("the password is hunter22")
    made.close()
    assert sink.text == b"<0> password=***\n<0> hunter2\nthe password is ***\n"
    assert log.last_lines() == ("password=***", "hunter2")


def test_the_last_lines_are_kept() -> None:
    log = pipeline(Lines()).step(0, "<0> ")
    log.write(b"".join(b"line %d\n" % number for number in range(5000)))
    assert log.last_lines() == tuple(f"line {number}" for number in range(4980, 5000))


def test_a_broken_sink_is_reported_once_and_frees_the_steps() -> None:
    errors: list[Exception] = []
    made = LogPipeline(BrokenSink(), HandClock(), errors.append)
    log = made.step(0, "")
    log.write(b"one\n")
    log.write(b"two\n")
    made.line("PUSH")
    assert [str(error) for error in errors] == ["no space left on device"]


def test_an_open_line_is_looked_after_by_time() -> None:
    shown = threading.Event()

    class Waiting(Lines):
        def write(self, chunk: LogChunk) -> None:
            super().write(chunk)
            shown.set()

    made = LogPipeline(Waiting(), Clock(), never)
    made.step(0, "").write(b"loading")
    assert shown.wait(30)
    made.close()


def test_lines_of_stdout_and_stderr_do_not_tear_each_other() -> None:
    sink = Lines()
    log = pipeline(sink).step(0, "<0> ")
    for chunk in (b"good ", ErrorOutput(b"bad "), b"line\n", ErrorOutput(b"line\n")):
        log.write(chunk)
    log.finish()
    assert sink.text == b"<0> good line\n<0> bad line\n"
    assert [(chunk.output, chunk.error) for chunk in sink.chunks] == [(10, False), (9, True)]


CHUNKS = st.lists(
    st.tuples(
        st.sampled_from([b"one\n", b"se", b"cret", b"secret\n", b"\r50%", b"x"]), st.booleans()
    ),
    max_size=12,
)


def played(log: Lines, chunks: list[tuple[bytes, bool]], stored: StoredLog | None = None) -> None:
    made = LogPipeline(log, HandClock(), never, stored)
    made.masker = Masker(["secret"])
    step = made.step(0, "<0> ")
    for data, error in chunks:
        step.write(ErrorOutput(data) if error else data)
        made.flush_idle(10.0)  # open lines are handed on too
    step.finish()


@given(chunks=CHUNKS, kept=st.integers(0, 12), torn=st.booleans())
def test_a_resumed_build_stores_what_is_missing_and_nothing_twice(
    chunks: list[tuple[bytes, bool]], kept: int, torn: bool
) -> None:
    whole, first, rest = Lines(), Lines(), Lines()
    played(whole, chunks)
    played(first, chunks)
    del first.chunks[kept:]  # the process died here
    output: dict[tuple[int, bool], int] = {}
    for chunk in first.chunks:
        key = (0, chunk.error)
        output[key] = output.get(key, 0) + chunk.output
    ended = first.text.endswith(b"\n") or not first.text
    # The engine gives stdout and stderr in an order of its own.
    again = sorted(chunks, key=lambda chunk: chunk[1]) if torn else chunks
    played(rest, again, StoredLog(output=output, is_torn=not ended))

    def payload(log: list[LogChunk], error: bool) -> bytes:
        text = b"".join(one.data for one in log if one.error is error and one.output)
        return text.replace(b"<0> ", b"").replace(b"\n", b"")

    for error in (False, True):
        resumed = payload([*first.chunks, *rest.chunks], error)
        assert resumed == payload(whole.chunks, error)
        assert b"secret" not in resumed


def test_a_line_that_was_said_before_the_crash_is_not_said_again() -> None:
    sink = Lines()
    made = LogPipeline(sink, HandClock(), never, StoredLog(said=frozenset({b"BUILD\n"})))
    made.line_once("BUILD")
    made.line_once("PUSH")
    assert sink.text == b"PUSH\n"
