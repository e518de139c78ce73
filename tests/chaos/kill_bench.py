"""A server that runs builds, the builds that chaos tests give it, and what is left after each.

The processes are real (`worker_process.py` and the ``buildrunner execute`` that it starts), and so
are engine and database; only the API is left out: builds are put into the database directly.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import uuid
from datetime import UTC, datetime, timedelta
from pathlib import Path

from buildrunner import wiring
from buildrunner.containers.process_owner import is_alive, pid_of
from buildrunner.containers.protocol import LABEL_BUILD, LABEL_STEP
from buildrunner.logs.files.events import EventLogReader
from buildrunner.spec.model.build import FINAL_STATUSES
from buildrunner.store.model.builds import NewBuild
from buildrunner.worker.data_folder import DataFolder
from buildrunner.worker.recovery import BuildNotes

DEADLINE_S = 60
PROGRAM = Path(__file__).with_name("worker_process.py")


def now():
    return datetime.now(UTC)


def until(condition, what="it", *, deadline_s=DEADLINE_S):
    """Wait for a condition; its value."""
    end = time.monotonic() + deadline_s
    pause = threading.Event()
    while not (found := condition()):
        assert time.monotonic() < end, f"{what} does not happen"
        pause.wait(0.002)
    return found


def step_container(engine, build_id, step=0):
    """The id of a step's container."""
    labels = {LABEL_BUILD: build_id, LABEL_STEP: str(step)}
    return until(lambda: engine.list_owned(labels).containers, "the container")[0]


def let_go(engine, build_id, step=0):
    """A step that waits for ``/workspace/go`` goes on."""
    argv = ["docker", "exec", step_container(engine, build_id, step), "touch", "/workspace/go"]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    # A step that ends at once when it sees the file takes along a `touch` that still runs.
    assert done.returncode in (0, 128 + signal.SIGKILL), done.stderr


class KillBench:
    """One server's folder.

    Args:
        path: the folder.
        engine: to look at what is there and left.
        image: what ``IMAGE`` in steps stands for.
        database: its URL; empty for SQLite in the folder.
        environ: for the server, besides ours.
        spares: how many sandboxes the server starts ahead.
    """

    def __init__(self, path, engine, image, *, sandbox="host", database="", environ=None, spares=0):
        self.path = path
        self.engine = engine
        self.image = image
        self.sandbox = sandbox
        self.spares = spares
        self.database = database or f"sqlite:///{path}/server.db"
        self.folder = DataFolder(str(path))
        path.mkdir(exist_ok=True)
        self.store = wiring.server_store(self.database)
        self.temporary = path / "tmp"
        self.temporary.mkdir()
        homes = {**_homes(path), "TMPDIR": str(self.temporary)}
        self.environ = {**os.environ, **homes, **(environ or {})}
        self.server_log = path / "server.log"
        self.server = None
        self.builds = []

    # -- the server ----------------------------------------------------------------------------

    def start(self, *, max_builds=4):
        argv = [sys.executable, str(PROGRAM), str(self.path), self.database, self.sandbox]
        with open(self.server_log, "ab") as log:
            self.server = subprocess.Popen(
                [*argv, str(max_builds), str(self.spares)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                env=self.environ,
            )
        assert self.server.stdout.readline() == b"ready\n", self.server_log.read_text()

    def wake(self):
        self.server.send_signal(signal.SIGUSR1)

    def kill_server(self):
        self.server.kill()
        self.server.wait()
        self.server.stdout.close()
        self.server = None

    def stop_server(self):
        self.server.send_signal(signal.SIGTERM)
        self.server.wait(DEADLINE_S)
        self.server.stdout.close()
        self.server = None

    def close(self):
        """End all that the test started; what its builds left on the engine goes too."""
        if self.server is not None:
            self.kill_server()
        for build_id in self.builds:
            self.kill_execute(build_id, must=False)
            owned = self.engine.list_owned({LABEL_BUILD: build_id})
            for container in owned.containers:
                self.engine.remove_container(container)
            for volume in owned.volumes:
                self.engine.remove_volume(volume)
        self.store.close()

    # -- builds --------------------------------------------------------------------------------

    def create(self, *steps, **fields):
        """Queue a build; steps are mappings, or scripts."""
        request = {**fields, "steps": [self._step(step) for step in steps]}
        build_id = str(uuid.uuid4())
        document = {
            **request,
            "id": build_id,
            "projectId": "chaos",
            "status": "QUEUED",
            "createTime": now().isoformat().replace("+00:00", "Z"),
        }
        expires_at = now() + timedelta(hours=1)
        self.store.builds.create(
            NewBuild(document=document, request=request, expires_at=expires_at)
        )
        self.builds.append(build_id)
        if self.server is not None:
            self.wake()
        return build_id

    def _step(self, step):
        if isinstance(step, str):
            step = {"script": step}
        return {"name": self.image, **step}

    def stored(self, build_id):
        return self.store.builds.find(build_id)

    def status(self, build_id):
        return self.stored(build_id).status

    def wait_for_status(self, build_id, status):
        until(lambda: self.status(build_id) == status, f"{build_id} {status}")

    def wait_for_end(self, build_id):
        """The finished document; fails with all there is to read when it does not end."""
        try:
            until(lambda: self.status(build_id) in FINAL_STATUSES, f"the end of {build_id}")
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.account(build_id)}") from error
        return self.stored(build_id).document

    def account(self, build_id):
        """All that processes said of it."""
        run_log = Path(self.folder.run_folder(build_id)) / "execute.log"
        texts = [
            str(self.stored(build_id).document),
            self.log(build_id),
            run_log.read_text() if run_log.exists() else "",
            self.server_log.read_text(),
        ]
        return "\n----\n".join(texts)

    def log(self, build_id):
        path = Path(self.folder.log_folder(build_id)) / "log.txt"
        return path.read_text(errors="replace") if path.exists() else ""

    def wait_for_log(self, build_id, pattern):
        until(lambda: re.search(pattern, self.log(build_id)), f"{pattern} in the log")

    def events(self, build_id):
        reader = EventLogReader(self.folder.log_folder(build_id))
        return [type(one.event()).__name__ for one in reader.read(limit=100_000)]

    def wait_for_event(self, build_id, name, count=1):
        until(lambda: self.events(build_id).count(name) >= count, f"{count} {name}")

    def notes(self, build_id):
        return BuildNotes(self.folder.run_folder(build_id))

    def process(self, build_id):
        return self.stored(build_id).process

    def kill_execute(self, build_id, *, must=True):
        """SIGKILL for the build's process; returns once it is dead."""
        owner = self.process(build_id)
        if not owner or not is_alive(owner):
            assert not must, "there is no process to kill"
            return
        os.kill(pid_of(owner), signal.SIGKILL)
        until(lambda: not is_alive(owner), "its death")

    def let_go(self, build_id, step):
        """A step that waits for ``/workspace/go`` goes on."""
        let_go(self.engine, build_id, step)

    # -- what must hold afterwards ---------------------------------------------------------------

    def check_nothing_left(self, build_id):
        def left():
            owned = self.engine.list_owned({LABEL_BUILD: build_id})
            return [*owned.containers, *owned.volumes, *owned.networks]

        until(lambda: not left(), f"the removal of {left()}")
        until(lambda: build_id not in self.folder.run_ids(), "the removal of its run folder")
        owner = self.process(build_id)
        until(lambda: not owner or not is_alive(owner), "the end of its process")
        assert list(self.temporary.iterdir()) == []

    def check_log(self, build_id, *, lines=0):
        """Every stored line is there once, in order; the log is closed by the build's end."""
        log = self.log(build_id)
        found = [int(number) for number in re.findall(r"line (\d+) end$", log, re.MULTILINE)]
        assert found == list(range(1, lines + 1)), f"{found[:10]} ... {found[-10:]}\n{log[-2000:]}"
        return self.check_log_once(build_id)

    def check_log_once(self, build_id):
        """What the build itself says, it says once."""
        log = self.log(build_id)
        assert log.count(f'starting build "{build_id}"') == 1, log[:2000]
        for step in re.findall(r"Starting Step #(\d+)", log):
            assert log.count(f"Starting Step #{step}\n") == 1, log[-3000:]
        return log


def _homes(path):
    """Neither the settings nor the Git cache of whoever runs the tests."""
    return {"XDG_CONFIG_HOME": str(path / "config"), "XDG_CACHE_HOME": str(path / "cache")}


class Gate:
    """Passes TCP connections on to a server, or holds them while it is shut.

    Attributes:
        address: ``127.0.0.1:PORT``.
        held: set once something was held.
    """

    def __init__(self, target):
        host, _, port = target.rpartition(":")
        self._target = (host, int(port))
        self._open = threading.Event()
        self._open.set()
        self._closing = False
        self.held = threading.Event()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    def shut(self):
        self.held.clear()
        self._open.clear()

    def open(self):
        self._open.set()

    def close(self):
        self._closing = True
        self._open.set()
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for thread in self._threads:
            thread.join(DEADLINE_S)

    def _accept(self):
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            self._start(self._pass, near)

    def _start(self, work, *arguments):
        thread = threading.Thread(target=work, args=arguments, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _pass(self, near):
        with near, socket.create_connection(self._target) as far:
            self._start(self._copy, far, near, False)
            self._copy(near, far, True)

    def _copy(self, source, sink, gated):
        try:
            while data := source.recv(65536):
                if gated and not self._open.is_set():
                    self.held.set()
                    self._open.wait()
                sink.sendall(data)
        except OSError:
            return  # one side is gone
        finally:
            for one in (source, sink):
                with contextlib.suppress(OSError):
                    one.shutdown(socket.SHUT_RDWR)
