"""A real PostgreSQL for tests: a cluster in a folder of its own, behind a unix socket only."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import threading
from pathlib import Path

import pytest

from tests.conftest import DEADLINE_S, program, started_when, stop

_UNPRIVILEGED = ("postgres", "nobody")


class PostgresServer:
    """A running server, which tests may stop and start again.

    Attributes:
        folder: with its data and its socket.
        programs: folder of the server's programs and pg_dump.
    """

    def __init__(self, folder: Path, *, fsync: bool = False) -> None:
        self.folder = folder
        self._fsync = fsync
        self.programs = server_programs()
        # The server refuses to run as root.
        self._user = _unprivileged_user() if os.geteuid() == 0 else None
        if self._user is not None:
            shutil.chown(folder, self._user)
        self._lock = threading.Lock()
        self._databases = 0
        self._process: subprocess.Popen[bytes] | None = None
        self._run(
            *("initdb", "--pgdata=data", "--auth=trust", "--username=tests", "--no-sync"),
            # It sorts as people do, not by code point: the tables must say what they want.
            *("--encoding=UTF8", "--locale=C.UTF-8", "--locale-provider=icu", "--icu-locale=en-US"),
        )
        self.start()

    def start(self) -> None:
        """Start it; it accepts connections when this returns."""
        argv = [
            # It ends with us, however we end.
            *(program("setpriv", "util-linux"), "--pdeathsig=QUIT"),
            str(self.programs / "postgres"),
            "-Ddata",
            "-clisten_addresses=",
            f"-cunix_socket_directories={self.folder}",
            f"-cfsync={'on' if self._fsync else 'off'}",
            "-clc_messages=C",
        ]
        self._process = subprocess.Popen(
            argv,
            cwd=self.folder,
            user=self._user,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            env={"PATH": os.environ.get("PATH", ""), "LC_ALL": "C"},
        )
        started_when(self._process, b"ready to accept connections")

    def stop(self, *, at_once: bool = False) -> None:
        """Stop it, throwing everyone out; ``at_once`` as a crash would."""
        assert self._process is not None
        stop(self._process, with_signal=signal.SIGQUIT if at_once else signal.SIGINT)
        self._process = None

    def make_database(self, *, like: str = "template1") -> str:
        """An empty database, or a copy of one that nobody uses; its address."""
        with self._lock:
            self._databases += 1
            name = f"test{self._databases}"
        self.sql("postgres", f"CREATE DATABASE {name} TEMPLATE {like}")
        return self.address(name)

    def address(self, database: str) -> str:
        """The address of a database."""
        return f"postgresql://tests@/{database}?host={self.folder}"

    def name(self, address: str) -> str:
        """The name of a database, by its address."""
        return address.partition("?")[0].rpartition("/")[2]

    def sql(self, database: str, command: str) -> str:
        """What a command answers, by PostgreSQL's own client."""
        return self._run(
            "psql", "-XqAt", f"--host={self.folder}", "--username=tests", database, "-c", command
        )

    def remove(self) -> None:
        """Stop it and delete its folder."""
        if self._process is not None:
            self.stop()
        shutil.rmtree(self.folder)

    def _run(self, name: str, *arguments: str) -> str:
        done = subprocess.run(
            [str(self.programs / name), *arguments],
            cwd=self.folder,
            user=self._user,
            capture_output=True,
            text=True,
            timeout=DEADLINE_S,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()


def server_programs() -> Path:
    """Where Debian keeps the server's programs, newest version first."""
    found = sorted(
        Path("/usr/lib/postgresql").glob("*/bin/postgres"), key=lambda path: int(path.parts[-3])
    )
    if found:
        return found[-1].parent
    return Path(program("initdb", "postgresql")).resolve().parent


def running_postgres(*, fsync: bool = False) -> PostgresServer:
    """Start a server. Its folder has a short path: a socket's may not be longer than 107 bytes."""
    folder = Path(tempfile.mkdtemp(prefix="buildrunner-postgres-"))
    try:
        return PostgresServer(folder, fsync=fsync)
    except BaseException:
        shutil.rmtree(folder)
        raise


def _unprivileged_user() -> str:
    for name in _UNPRIVILEGED:
        try:
            return pwd.getpwnam(name).pw_name
        except KeyError:
            continue
    pytest.fail("the tests need a user that is not root to run PostgreSQL as")
