"""A trigger that fires by the real clock, on a real server."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.conftest import DEADLINE_S
from tests.e2e.test_serve import serve  # noqa: F401  (a fixture)

EVERY_MINUTE = {
    "name": "minutely",
    "cron": {"schedule": "* * * * *", "timeZone": "Asia/Kathmandu"},
}


def run(*args: str) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-m", "buildrunner", *args]
    return subprocess.run(argv, capture_output=True, text=True, timeout=DEADLINE_S, check=False)


def test_a_trigger_fires_within_the_next_minute(
    serve: Any,  # noqa: F811
    busybox: str,
    tmp_path: Path,
) -> None:
    build = {"steps": [{"name": busybox, "args": ["echo", "by the clock"]}]}
    server = serve("--auth", "none", "--sandbox", "host")
    with httpx.Client(base_url=server.url, timeout=90) as http:
        made = http.post("/v1/projects/p/triggers", json={**EVERY_MINUTE, "build": build})
        assert made.status_code == 200, made.text

        told = run("schedules", "next", "minutely", "--server", server.url, "--project", "p")
        assert told.returncode == 0, told.stderr
        first, head, *rows = told.stdout.splitlines()
        assert first == "* * * * *  (Asia/Kathmandu)"
        assert head.split() == ["TIME", "LOCAL_TIME"]
        assert len(rows) == 5
        assert all("+0545" in row for row in rows)
        due = rows[0].split()[0]

        first_build = _first_build(http)
        # The stream ends with the build.
        log = f"/buildrunner/v1/projects/p/builds/{first_build}/log/stream"
        with http.stream("GET", log, timeout=90) as stream:
            assert "by the clock" in "".join(stream.iter_text())
        path = "/buildrunner/v1/projects/p/triggers/minutely/fires"
        fires = http.get(path).json()["fires"]
    assert fires[-1]["state"] == "fired"
    assert fires[-1]["time"] == due
    assert fires[-1]["buildId"] == first_build


def _first_build(http: httpx.Client) -> str:
    """The first build, once it is there."""
    import threading

    for _ in range(1000):
        builds = http.get("/v1/projects/p/builds").json().get("builds", [])
        if builds:
            return str(builds[-1]["id"])
        threading.Event().wait(0.1)
    pytest.fail("nothing was built in 100 seconds")
