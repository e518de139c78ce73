"""A real server (our listener, SQLite) whose builds the test itself runs, as a worker would."""

from __future__ import annotations

import ssl
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

import fastapi.dependencies.models
import httpx
import msgspec

from buildrunner.cli.serve.credentials import ServerCredentials
from buildrunner.engine.deployments import Deployment
from buildrunner.identity.keys import IdentityKeys
from buildrunner.plan.build_plan import new_build_id
from buildrunner.server.app import create_app
from buildrunner.server.context import ServerContext, ServerSettings
from buildrunner.server.events.hook_secrets import secret_name
from buildrunner.server.http.listener import Listener, listen_on
from buildrunner.server.http.tokens import new_token
from buildrunner.server.loop import Signal
from buildrunner.server.metrics import Metrics
from buildrunner.settings import Settings
from buildrunner.sources.uploads import SourceUploads
from buildrunner.spec.writing import encode_instant
from buildrunner.store.model.builds import Lease, StoredBuild
from buildrunner.store.model.deployments import RecordedDeployment, recorded
from buildrunner.triggers.hook_binding import read_binding
from buildrunner.triggers.repository import RepositoryNames
from buildrunner.workspace.kept import ARCHIVE, Keeping
from tests.held_secrets import HeldSecrets
from tests.server_databases import new_store

WORKER = "tests"
_TLS = ssl.create_default_context()  # loads the authorities once, not for each client


def now() -> datetime:
    return datetime.now(UTC)


def _forget_handlers() -> None:
    """Let go of ended servers: FastAPI remembers 4096 handlers, which keeps thirty of them alive.

    The garbage collector went through all of them in vain, a sixth of the time of their tests.
    """
    for one in vars(fastapi.dependencies.models).values():
        if hasattr(one, "cache_clear"):
            one.cache_clear()


class ApiServer:
    """The server, and what a test needs to play the worker."""

    def __init__(
        self,
        folder: str,
        clock: Callable[[], datetime] = now,
        secrets: Any = None,
        machine: Settings | None = None,
        **settings: Any,
    ) -> None:
        self.store = new_store(folder)
        self.secrets = HeldSecrets()
        self.identity_keys = IdentityKeys(folder, WORKER, self.store.identity_keys, clock=clock)
        self.woken = threading.Event()
        self.worker_is_alive = True
        self.worker_holds_back = ""
        self.keeping = Keeping(folder=f"{folder}/workspaces", limit_bytes=1 << 30)
        wake = Signal()
        wake.connect(self.woken.set)
        listening = listen_on("127.0.0.1", 0)
        self.port = listening.getsockname()[1]
        machine = machine or Settings()
        self.url = f"http://127.0.0.1:{self.port}"
        self.context = ServerContext(
            store=self.store,
            settings=ServerSettings(
                **{"public_url": self.url, "auth": False, "worker": WORKER, **settings}
            ),
            data_folder=folder,
            uploads=SourceUploads(f"{folder}/sources"),
            metrics=Metrics(),
            clock=clock,
            new_id=new_build_id,
            wake=wake,
            worker_alive=lambda: self.worker_is_alive,
            worker_holds_back=lambda: self.worker_holds_back,
            keeping=self.keeping,
            secrets=secrets or self.secrets,
            repositories=RepositoryNames(connected=machine.repositories),
            identity_keys=lambda: self.identity_keys.published(),
            credentials=ServerCredentials(
                machine.of_server(folder, self.url),
                self.url,
                self.store.triggers.settings,
                self.identity_keys.signing,
                clock,
            ),
        )
        self.app = create_app(self.context)
        self._listener = Listener(self.app, listening)
        self._thread = threading.Thread(target=self._listener.run, name="api-server")
        self._thread.start()
        self._listener.wait_until_ready()
        self.http = httpx.Client(base_url=self.url, timeout=30, verify=_TLS)

    def close(self) -> None:
        self.http.close()
        self._listener.stop()
        self._thread.join()
        self.store.close()
        _forget_handlers()

    def token(self, name: str, *scopes: str, projects: tuple[str, ...] = (), pool: str = "") -> str:
        text, stored = new_token(name, scopes, projects, pool=pool, now=now())
        self.store.tokens.create(stored)
        return text

    def hook(self, name: str, secret: str, **binding: Any) -> None:
        """Give a hook its secret, and bind it as the administrator does."""
        self.secrets[secret_name(name)] = secret
        if name.partition("/")[0] != "git":
            bound = read_binding(name, binding)
            self.store.hooks.put(name, msgspec.to_builtins(bound))

    def keep_workspace(self, build_id: str) -> None:
        """Keep a workspace of a build, as its worker does at its end."""
        with self.keeping.filled(build_id) as kept, kept.file(ARCHIVE) as write:
            write(b"an archive")

    def create(self, project: str = "p", **build: Any) -> str:
        """Queue a build; its id."""
        body = {"steps": [{"name": "busybox"}], **build}
        answer = self.http.post(f"/v1/projects/{project}/builds", json=body)
        assert answer.status_code == 200, answer.text
        return str(answer.json()["metadata"]["build"]["id"])

    def run(self, build_id: str, status: str | None, **fields: Any) -> None:
        """Take a build from the queue and let it work (None) or end."""
        stored, lease = self._claimed(build_id)
        document = {
            **stored.document,
            "status": "WORKING",
            "startTime": encode_instant(now()),
        }
        self.store.queue.record(lease, document)
        if status is not None:
            ended = {**document, "status": status, "finishTime": encode_instant(now()), **fields}
            self.store.queue.record(lease, ended)

    def _claimed(self, build_id: str) -> tuple[StoredBuild, Lease]:
        claimed = self.store.queue.claim(WORKER, now=now(), lease_s=600, limit=10_000)
        while claimed is not None and claimed[0].id != build_id:
            claimed = self.store.queue.claim(WORKER, now=now(), lease_s=600, limit=10_000)
        assert claimed is not None, f"{build_id} is not in the queue"
        return claimed

    def deploy(
        self,
        target: str,
        *images: str,
        more: Sequence[str] = (),
        status: str = "SUCCESS",
        back_to: str = "",
        **fields: Any,
    ) -> RecordedDeployment:
        """Run a build whose second step deploys, to more targets too; the first deployment.

        Args:
            target: the target.
            images: what it deploys.
            more: further targets.
            status: of the build at its end.
            back_to: the image that a third step deploys to the target; empty for none.
            fields: of the deployment.
        """
        steps = [{"name": "busybox"}, {"name": "busybox", "id": "deploy"}]
        if back_to:
            steps.append({"name": "busybox", "id": "roll-back"})
        build_id = self.create(steps=steps)
        stored, lease = self._claimed(build_id)
        made = [
            recorded(
                Deployment(target=one, images=images, **{"reported": True, **fields}),
                project_id="p",
                build_id=build_id,
                step=1,
                step_id="deploy",
                time=now(),
            )
            for one in (target, *more)
        ]
        if back_to:
            back = Deployment(target=target, images=(back_to,), reported=True)
            made.append(
                recorded(
                    back,
                    project_id="p",
                    build_id=build_id,
                    step=2,
                    step_id="roll-back",
                    time=now(),
                )
            )
        self.store.queue.record_deployments(lease, made)
        at = encode_instant(now())
        ended = {**stored.document, "status": status, "startTime": at, "finishTime": at}
        self.store.queue.record(lease, ended)
        self.keep_workspace(build_id)
        return self.store.deployments.get("p", made[0].id)


@contextmanager
def api_server(folder: Any, **settings: Any) -> Iterator[ApiServer]:
    server = ApiServer(str(folder), **settings)
    try:
        yield server
    finally:
        server.close()
