"""Servers to kill."""

import pytest

from tests.chaos.kill_bench import KillBench


@pytest.fixture
def bench(tmp_path, docker_engine, busybox):
    made = KillBench(tmp_path / "data", docker_engine, busybox)
    yield made
    made.close()
