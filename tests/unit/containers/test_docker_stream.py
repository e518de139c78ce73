"""Output frames made plain bytes, however the stream is cut."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from buildrunner.containers.docker.output import FrameDemultiplexer
from buildrunner.containers.protocol import ErrorOutput
from buildrunner.errors import EngineError


def frame(origin: int, payload: bytes) -> bytes:
    return struct.pack(">BxxxI", origin, len(payload)) + payload


FRAMES = st.lists(st.tuples(st.sampled_from([1, 2]), st.binary(max_size=40)), max_size=12)


@given(frames=FRAMES, cuts=st.lists(st.integers(0, 600), max_size=30))
def test_no_cutting_changes_or_delays_the_output(
    frames: list[tuple[int, bytes]], cuts: list[int]
) -> None:
    stream = b"".join(frame(origin, payload) for origin, payload in frames)
    demultiplexer = FrameDemultiplexer()
    output: list[bytes] = []
    start = 0
    for end in [*sorted(cut for cut in cuts if cut <= len(stream)), len(stream)]:
        if end > start:
            came = demultiplexer.feed(stream[start:end])
            output += came
            start = end
    assert b"".join(output) == b"".join(payload for _, payload in frames)
    for origin in (1, 2):
        mine = [chunk for chunk in output if isinstance(chunk, ErrorOutput) is (origin == 2)]
        assert b"".join(mine) == b"".join(payload for one, payload in frames if one == origin)


def test_a_large_frame_passes_through_piece_by_piece() -> None:
    demultiplexer = FrameDemultiplexer()
    stream = frame(1, b"x" * 1_000_000)
    sizes = [
        len(b"".join(demultiplexer.feed(stream[at : at + 1000])))
        for at in range(0, len(stream), 1000)
    ]
    assert sizes[0] == 992
    assert set(sizes[1:-1]) == {1000}
    assert sum(sizes) == 1_000_000


@pytest.mark.parametrize(
    "garbage", [b"plain text of a terminal", b"\x03\x00\x00\x00\x00\x00\x00\x00"]
)
def test_a_stream_that_is_not_of_frames_is_refused(garbage: bytes) -> None:
    with pytest.raises(EngineError, match="garbled"):
        FrameDemultiplexer().feed(garbage)
