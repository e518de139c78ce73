"""Two servers and three workers on one PostgreSQL, each worker on a network of its own.

A part that is killed, cut off or frozen for a while loses no line, and no build ends for it.
"""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import time
import uuid

import httpx
import pytest

from tests.conftest import DEADLINE_S, needs_root
from tests.e2e.test_serve import serve  # noqa: F401  (a fixture)
from tests.e2e.test_worker import BUILDRUNNER, ENDED, create, environ, until
from tests.fixtures_postgres import running_postgres

pytestmark = [pytest.mark.docker, needs_root]

LINES = 400
SPEAKS = f"i=0; while [ $i -lt {LINES} ]; do echo line $i; i=$((i+1)); sleep 0.1; done"


def ip(*arguments):
    subprocess.run(["ip", *arguments], check=True)


class Host:
    """A network namespace with a worker, on a cable to this machine.

    Attributes:
        near: the address of this machine on the cable.
        worker: the process of the worker, once it was started.
    """

    def __init__(self, number, folder):
        self.name = f"t{uuid.uuid4().hex[:8]}"
        self.near, far = (f"198.18.{os.getpid() % 256}.{4 * number + end}" for end in (1, 2))
        self.folder = folder
        self.worker = None
        ip("netns", "add", self.name)
        ip("link", "add", self.name, "type", "veth", "peer", "name", "eth0", "netns", self.name)
        ip("address", "add", f"{self.near}/30", "dev", self.name)
        ip("link", "set", self.name, "up")
        ip("-n", self.name, "address", "add", f"{far}/30", "dev", "eth0")
        ip("-n", self.name, "link", "set", "eth0", "up")

    def work(self, port, token):
        self.folder.mkdir(exist_ok=True)
        (self.folder / "token").write_text(token)
        flags = [f"--server=http://{self.near}:{port}", f"--token-file={self.folder / 'token'}"]
        flags += [f"--data={self.folder / 'data'}", "--sandbox=host"]
        with (self.folder / "worker.log").open("ab") as log:
            self.worker = subprocess.Popen(
                ["ip", "netns", "exec", self.name, *BUILDRUNNER, "worker", *flags],
                stdout=log,
                stderr=log,
                env=environ(),
            )

    def processes(self):
        """The worker and all processes of its builds."""
        return subprocess.check_output(["ip", "netns", "pids", self.name], text=True).split()

    def signal(self, number):
        for process in self.processes():
            os.kill(int(process), number)

    def cut(self):
        ip("link", "set", self.name, "down")

    def mend(self):
        ip("link", "set", self.name, "up")

    def remove(self):
        self.signal(signal.SIGKILL)
        if self.worker is not None:
            self.worker.wait()
        ip("netns", "delete", self.name)


@pytest.fixture
def hosts(tmp_path):
    made = [Host(number, tmp_path / f"host-{number}") for number in range(3)]
    yield made
    for one in made:
        one.remove()


@pytest.fixture
def database():
    server = running_postgres()
    yield server.make_database()
    server.remove()


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as free:
        return free.getsockname()[1]


def test_kills_cuts_and_frozen_hosts_lose_no_line_and_end_no_build(
    serve,  # noqa: F811  (the fixture)
    hosts,
    database,
    busybox,
    tmp_path,
):
    ports = free_port(), free_port()

    def start(number):
        port = ports[number]
        flags = ("--sandbox=none", "--host=0.0.0.0", f"--port={port}")
        return serve(
            *flags,
            f"--internal-url=http://127.0.0.1:{port}",
            data=tmp_path / f"server-{number}",
            env={"BUILDRUNNER_DATABASE": database},
        )

    first, _ = start(0), start(1)
    bearer = {"Authorization": f"Bearer {first.token}"}
    token = subprocess.check_output(
        [*BUILDRUNNER, "tokens", "create", "w", "--worker", "--data", str(tmp_path / "server-0")],
        env=environ(BUILDRUNNER_DATABASE=database),
        text=True,
    )
    killed, cut, frozen = hosts
    killed.work(ports[0], token)
    cut.work(ports[1], token)
    frozen.work(ports[1], token)
    requests = [
        httpx.Client(base_url=f"http://127.0.0.1:{port}", headers=bearer, timeout=DEADLINE_S)
        for port in ports
    ]
    builds = [create(requests[1], busybox, SPEAKS) for _ in hosts]

    def log(server, build):
        return server.get(f"/buildrunner/v1/projects/p/builds/{build}/log").text

    def status(build):
        return requests[1].get(f"/v1/projects/p/builds/{build}").json()["status"]

    until(lambda: all("line 9\n" in log(requests[0], one) for one in builds))
    first.process.kill()
    first.process.wait()
    killed.signal(signal.SIGKILL)
    killed.worker.wait()
    cut.cut()
    frozen.signal(signal.SIGSTOP)
    time.sleep(12)
    start(0)
    killed.work(ports[0], token)
    cut.mend()
    time.sleep(23)  # together longer than a lease
    frozen.signal(signal.SIGCONT)
    until(lambda: all(status(one) in ENDED for one in builds), 120)
    for build in builds:
        document = requests[1].get(f"/v1/projects/p/builds/{build}").json()
        logs = {log(server, build) for server in requests}
        assert document["status"] == "SUCCESS", (document.get("statusDetail"), logs)
        assert len(logs) == 1
        found = re.findall(r"^(?:Step #0: )?line (\d+)$", logs.pop(), re.MULTILINE)
        assert found == [str(number) for number in range(LINES)]
    for one in requests:
        one.close()
