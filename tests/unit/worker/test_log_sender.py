"""How often a worker sends the log of a build."""

from __future__ import annotations

import pytest

from buildrunner.worker.remote.log_sender import pause_s


@pytest.mark.parametrize(
    ("answer_s", "sent_bytes", "wanted_s"),
    [
        (0.0, 100, 0.05),
        (0.01, 100, 0.05),
        (0.1, 100, 0.4),
        (60.0, 0, 1.0),
        (2.0, 4 << 20, 0.05),
    ],
    ids=["at-once", "quick", "busy", "very-busy", "much-to-send"],
)
def test_a_busy_server_is_sent_fewer_pieces_unless_the_log_grows_fast(
    answer_s: float, sent_bytes: int, wanted_s: float
) -> None:
    assert pause_s(answer_s, sent_bytes) == pytest.approx(wanted_s)
