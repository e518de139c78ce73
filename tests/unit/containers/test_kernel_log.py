"""Kills for lack of memory, as the kernel notes them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from buildrunner.containers.docker.containers import has_oom_kill, kernel_records

OUTER = "65951e2f03b4f7d522658dbd910e45a8823b88c67b0f1d52be311935630dad47"
INNER = "a4241230e75863fc6c04014ee5b900ea025f7b71e2c77e782c099a3ca97f64a4"


def kill(oom_memcg: str, task_memcg: str) -> bytes:
    group = f"oom_memcg={oom_memcg},task_memcg={task_memcg},task=tail,pid=14180,uid=0"
    return f"6,7,8,-;oom-kill:constraint=CONSTRAINT_MEMCG,cpuset={INNER},{group}\n".encode()


@pytest.mark.parametrize(
    ("record", "killed"),
    [
        (kill(f"/docker/{OUTER}", f"/docker/{OUTER}"), {OUTER}),
        (kill(f"/docker/{OUTER}/docker/{INNER}", f"/docker/{OUTER}/docker/{INNER}"), {INNER}),
        # the limit was the sandbox's, the process a step's
        (kill(f"/docker/{OUTER}", f"/docker/{OUTER}/docker/{INNER}"), {INNER}),
        (kill("/system.slice", f"/system.slice/docker-{OUTER}.scope"), {OUTER}),
        (b"6,7,8,-;eth0: renamed from veth65ba8c0\n", set()),
        (f"6,7,8,-;oom-kill:constraint=CONSTRAINT_NONE,cpuset={OUTER}\n".encode(), set()),
        (b"", set()),
    ],
)
def test_a_kill_belongs_to_the_container_of_the_process(record: bytes, killed: set[str]) -> None:
    assert {one for one in (OUTER, INNER) if has_oom_kill(one, [b"x", record])} == killed


def test_a_log_that_is_not_to_be_had_is_empty(tmp_path: Path) -> None:
    assert list(kernel_records(str(tmp_path / "none"))) == []


def test_a_log_is_read_to_its_end(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(b"a" * 10_000)
    assert b"".join(kernel_records(os.fspath(path))) == b"a" * 10_000
