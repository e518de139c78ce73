"""A real server (uvicorn, SQLite) whose builds the test itself writes; a network that cuts."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import uvicorn

from buildrunner.engine.log.pipeline import LogChunk
from buildrunner.logs.files.events import EventLog
from buildrunner.logs.files.log_file import LogFileSink, log_folder
from buildrunner.server.app import create_app
from buildrunner.server.context import ServerContext, ServerSettings
from buildrunner.server.http.tokens import new_token
from buildrunner.server.loop import Signal
from buildrunner.server.metrics import Metrics
from buildrunner.sources.uploads import SourceUploads
from buildrunner.store.model.builds import Lease, NewBuild
from buildrunner.store.sql.store import ServerStore
from tests.held_secrets import HeldSecrets
from tests.server_databases import new_store

PROJECT = "p"


def now() -> datetime:
    return datetime.now(UTC)


class LogServer:
    """The server. Everything it needs lies in a folder, so that it can be stopped and started."""

    def __init__(
        self,
        folder: str,
        *,
        auth: bool = False,
        certificate: str = "",
        worker: str = "test",
        database_of: str = "",
    ) -> None:
        self.folder = folder
        Path(folder).mkdir(parents=True, exist_ok=True)
        self._tls = {"ssl_certfile": certificate} if certificate else {}
        self.store: ServerStore = new_store(str(database_of or folder))
        self.settings = ServerSettings(auth=auth, worker=worker)
        self._port = 0
        self._server: uvicorn.Server | None = None
        self._thread: threading.Thread | None = None

    @property
    def url(self) -> str:
        return f"{'https' if self._tls else 'http'}://127.0.0.1:{self._port}"

    @property
    def port(self) -> int:
        return self._port

    def start(self) -> None:
        """Listen, on the port of before when there was one."""
        context = ServerContext(
            store=self.store,
            settings=self.settings,
            data_folder=self.folder,
            uploads=SourceUploads(f"{self.folder}/sources"),
            metrics=Metrics(),
            clock=now,
            new_id=lambda: os.urandom(16).hex(),
            wake=Signal(),
            worker_alive=lambda: True,
            secrets=HeldSecrets(),
        )
        listening = socket.socket()
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(("127.0.0.1", self._port))
        self._port = listening.getsockname()[1]
        self.app = create_app(context)
        config = uvicorn.Config(
            self.app,
            log_level="critical",
            lifespan="off",
            timeout_graceful_shutdown=0,
            **self._tls,  # type: ignore[arg-type]  # mypy can't tell one string from another
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(
            target=self._server.run, kwargs={"sockets": [listening]}, name="log-server"
        )
        listening.listen(128)  # connections wait until uvicorn takes them
        self._thread.start()

    def stop(self) -> None:
        """Stop at once; open streams are cut."""
        if self._server is not None and self._thread is not None:
            self._server.should_exit = self._server.force_exit = True
            self._thread.join()
            self._server = None

    def close(self) -> None:
        self.stop()
        self.store.close()

    def token(self, *scopes: str, projects: tuple[str, ...] = ()) -> str:
        """A token for ``Authorization: Bearer``."""
        text, stored = new_token("-".join((*scopes, *projects)), scopes, projects, now=now())
        self.store.tokens.create(stored)
        return text

    def build(self, build_id: str, only_worker: str = "", **fields: object) -> Written:
        """A build that waits in the queue, maybe for the server that has its files."""
        document = {
            "id": build_id,
            "projectId": PROJECT,
            "createTime": now().isoformat().replace("+00:00", "Z"),
            "status": "QUEUED",
            "steps": [{"name": "busybox"}],
            **fields,
        }
        self.store.builds.create(
            NewBuild(
                document=document,
                request=document,
                expires_at=now() + timedelta(hours=1),
                only_worker=only_worker,
            )
        )
        return Written(self, build_id, document)


class Written:
    """A build that the test runs: no container, but log, events and status as a worker writes."""

    def __init__(self, server: LogServer, build_id: str, document: dict[str, object]) -> None:
        self.id = build_id
        self.folder = log_folder(server.folder, build_id)
        self.path = f"/buildrunner/v1/projects/{PROJECT}/builds/{build_id}"
        self._store = server.store
        self._worker = server.settings.worker
        self._document = document
        self._lease: Lease | None = None
        self.log: LogFileSink | None = None
        self.events: EventLog | None = None

    def begin(self) -> Written:
        claimed = self._store.queue.claim(self._worker, now=now(), lease_s=3600, limit=100)
        assert claimed
        stored, self._lease = claimed
        assert stored.id == self.id
        self.log, self.events = LogFileSink(self.folder), EventLog(self.folder)
        self._record("WORKING")
        return self

    def write(self, data: bytes, step: int | None = 0) -> None:
        assert self.log
        self.log.write(LogChunk(data, step, now()))

    def end(self, status: str = "SUCCESS") -> Written:
        assert self.log
        assert self.events
        self.log.close()
        self.events.close()
        self._record(status)
        return self

    def _record(self, status: str) -> None:
        assert self._lease
        self._document = {**self._document, "status": status}
        self._store.queue.record(self._lease, self._document)


@contextmanager
def log_server(folder: str, **options: Any) -> Iterator[LogServer]:
    server = LogServer(folder, **options)
    try:
        server.start()
        yield server
    finally:
        server.close()


class CuttingProxy:
    """Passes TCP on to a port, and cuts every connection after so many bytes of the answer."""

    def __init__(self, port: int, budgets: Iterator[int]) -> None:
        self._target = port
        self._budgets = budgets
        self._listening = socket.create_server(("127.0.0.1", 0))
        self._threads: list[threading.Thread] = []
        self.connections = 0
        self.cuts = 0
        thread = threading.Thread(target=self._accept, name="cutting-proxy")
        thread.start()
        self._threads.append(thread)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._listening.getsockname()[1]}"

    def close(self) -> None:
        with suppress(OSError):
            self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()
        for thread in self._threads:
            thread.join()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listening.accept()
            except OSError:
                return
            self.connections += 1
            thread = threading.Thread(target=self._pass_on, args=(client, next(self._budgets)))
            thread.start()
            self._threads.append(thread)

    def _pass_on(self, client: socket.socket, budget: int) -> None:
        with closing(client):
            try:
                server = socket.create_connection(("127.0.0.1", self._target))
            except OSError:
                return
            with closing(server):
                up = threading.Thread(target=_copy, args=(client, server))
                up.start()
                with suppress(OSError):
                    while budget > 0 and (data := server.recv(min(65536, budget))):
                        client.sendall(data)
                        budget -= len(data)
                self.cuts += budget <= 0
                for one in (client, server):
                    with suppress(OSError):
                        one.shutdown(socket.SHUT_RDWR)
                up.join()


def _copy(source: socket.socket, target: socket.socket) -> None:
    with suppress(OSError):
        while data := source.recv(65536):
            target.sendall(data)
        target.shutdown(socket.SHUT_WR)  # who hung up here has hung up there
