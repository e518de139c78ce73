"""Runs one stored build as a server's build process does, on a real engine."""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from buildrunner.containers.docker.engine import DockerEngine
from buildrunner.containers.protocol import LABEL_BUILD
from buildrunner.engine.cancellation import CancelToken
from buildrunner.engine.outcome import BuildOutcome
from buildrunner.plan.build_plan import BuildPlan
from buildrunner.sandboxes.host import HostPlace, HostSandbox
from buildrunner.settings import Settings
from buildrunner.sources.policy import SourcePolicy
from buildrunner.sources.uploads import UploadedSource
from buildrunner.store.model.builds import StoredBuild
from buildrunner.worker.execution import RunWiring
from buildrunner.worker.program import ServerProgram, ServerSources
from buildrunner.worker.recovery import PlannedNote
from tests.fixtures_git import Repository

TEST_IMAGES = "buildrunner-tests/*"
# Prints what a step got that leads out of it, and ``ran`` in any case.
PROBE = """\
test -S /var/run/docker.sock && echo HAS-SOCKET
mount -t tmpfs none /tmp && echo CAN-MOUNT
echo ran
"""


class PrivilegedPlace(HostPlace):
    """The engine at hand, as a place whose steps are privileged unless somebody says no."""

    privileged_steps = True


class PrivilegedSandbox(HostSandbox):
    """A kind of sandbox that makes steps privileged, as a nested one does where it can."""

    def open(self, build_id: str, *, project: str = "", trusted: bool = True) -> HostPlace:
        """See `Sandbox.open`."""
        return PrivilegedPlace(self._engine)


class Log:
    """Keeps a log in memory."""

    def __init__(self) -> None:
        self.text = ""

    def write(self, chunk: Any) -> None:
        """Take a chunk."""
        self.text += chunk.data.decode(errors="replace")

    def close(self) -> None:
        """Nothing to close."""


class ServerBuild:
    """One stored build, and what became of it.

    Args:
        engine: where it runs.
        tmp_path: for the Git cache.
        request: the Build as it was asked for.
        settings: the server's settings; the defaults grant all that settings can grant.
        hosts: hosts that builds may fetch from though they have private addresses.
        project: its project.
        untrusted: the config comes from a stranger.
        labels: see `StoredBuild`.
    """

    def __init__(
        self,
        engine: DockerEngine,
        tmp_path: Path,
        request: Mapping[str, Any],
        *,
        settings: Settings | None = None,
        hosts: tuple[str, ...] = (),
        project: str = "p",
        untrusted: bool = False,
        labels: Mapping[str, str] | None = None,
    ) -> None:
        self.id = str(uuid.uuid4())
        self._hosts = hosts
        given = settings or Settings(
            docker_socket=True, privileged=True, untrusted_images=(TEST_IMAGES,)
        )
        self.settings = replace(given, git=replace(given.git, cache=str(tmp_path / "git-cache")))
        self.stored = StoredBuild(
            document={"id": self.id, "projectId": project, "status": "QUEUED"},
            request=dict(request),
            untrusted=untrusted,
            push=True,
            labels=dict(labels or {}),
        )
        labels_of_all = {LABEL_BUILD: self.id}
        self._sandbox = PrivilegedSandbox(engine, labels_of_all)
        self._program_labels = labels_of_all
        self.log = Log()
        self.plan: BuildPlan | None = None

    def program(self, *, uploads: str = "", **options: Any) -> ServerProgram:
        """What runs it."""
        policy = SourcePolicy(files=True, hosts=self._hosts)
        sources = ServerSources(policy=policy, uploads=partial(UploadedSource, uploads))
        return ServerProgram(self._sandbox, self.settings, self._program_labels, sources, **options)

    def run(self, **options: Any) -> BuildOutcome:
        """Run it to its end."""
        return self.program(**options).run(
            self.stored,
            RunWiring(
                sink=self.log,
                on_event=lambda _: None,
                on_plan=self._on_plan,
                on_workspace=lambda _: None,
                cancel=CancelToken(),
            ),
        )

    def _on_plan(self, note: PlannedNote) -> None:
        self.plan = BuildPlan.from_json(bytes(note.plan))


def hostile_repository(tmp_path: Path, config: Mapping[str, Any]) -> tuple[dict[str, Any], str]:
    """A repository whose ``cloudbuild.yaml`` a stranger wrote: its source and its commit."""
    repository = Repository(tmp_path / "fork")
    commit = repository.commit({"cloudbuild.yaml": json.dumps(dict(config)).encode()})
    repository.push("main")
    return {"gitSource": {"url": f"file://{repository.path}", "revision": commit}}, commit
