"""An engine in memory, for tests of whatever drives an engine.

`FakeEngine` passes the same contract suite as the Docker engine. Containers don't run programs:
what one does is said by the environment that its spec gives it, so that a build
config can steer it:

    OUTPUT=text       written when it starts (to whoever is attached)
    ERRORS=text       the same, to stderr
    EXIT_CODE=3       how it ends; 0 without
    SLEEP=name        it runs until it is killed or until ``engine.release("name")``
    ON_SIGTERM=5      it ends with 5 on SIGTERM; without, it ignores SIGTERM as process 1 does
    START_FAIL=text   it can't start (127, as for a program that is not there)
    OOM=1             it ends with 137, killed for lack of memory
    WRITE=path=text   it writes this file before it ends (in a volume when one is mounted there)
    READ=path         it writes that file's text to its output (exit code 1 when there is none)

Nothing depends on time. Whoever drives it in an order that the real engine would not survive gets
an AssertionError. ``calls`` records every call that changes something, in order.
"""

from __future__ import annotations

import io
import posixpath
import tarfile
import threading
from typing import TYPE_CHECKING

from buildrunner.containers.engine_types import (
    AddressRange,
    ContainerExit,
    ContainerSpec,
    EngineInfo,
    ErrorOutput,
    FoundContainer,
    NetworkMember,
    OwnedResources,
)
from buildrunner.containers.fake_images import FakeImages
from buildrunner.errors import (
    ContainerNameTaken,
    ContainerStartError,
    EngineError,
    NotFound,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

_KILLED = 137


class FakeContainer:
    """What the engine knows of one container.

    Attributes:
        spec: as created.
        state: ``created``, ``running`` or ``exited``.
        signals: what was sent to it, in order.
    """

    def __init__(self, container_id: str, spec: ContainerSpec) -> None:
        self.id = container_id
        self.spec = spec
        self.state = "created"
        self.signals: list[str] = []
        self.files: dict[str, bytes] = {}
        self.output = b""
        self.errors = ErrorOutput()
        self.ended = threading.Event()
        self.exit = ContainerExit(0)
        self.env = dict(entry.partition("=")[::2] for entry in spec.env)

    def end(self, code: int, *, oom_killed: bool = False) -> None:
        """It ends now, unless it has."""
        if not self.ended.is_set():
            self.exit = ContainerExit(code, oom_killed)
            self.state = "exited"
            self.ended.set()


class FakeEngine(FakeImages):
    """A `ContainerEngine` in memory. Thread-safe.

    Args:
        images: names of images that the engine has from the start.

    Attributes:
        calls: ``(method, what)`` of each call that changes something.
        containers: by id, also removed ones.
    """

    def __init__(self, images: Iterable[str] = ()) -> None:
        super().__init__(images)
        self.containers: dict[str, FakeContainer] = {}
        self._live: dict[str, FakeContainer] = {}
        self._volumes: dict[str, tuple[dict[str, str], dict[str, bytes]]] = {}
        self._networks: dict[str, dict[str, str]] = {"bridge": {}, "host": {}, "none": {}}
        self._released: set[str] = set()

    # -- steering ----------------------------------------------------------------------------

    def release(self, name: str) -> None:
        """Let every container with ``SLEEP=name`` go on to its end, now and later."""
        with self._lock:
            self._released.add(name)
            for container in self._live.values():
                if container.state == "running" and container.env.get("SLEEP") == name:
                    self._finish(container)

    def running(self) -> tuple[str, ...]:
        """Names (or ids) of the containers that run, in order of creation."""
        with self._lock:
            return tuple(
                one.spec.name or one.id for one in self._live.values() if one.state == "running"
            )

    # -- networks, volumes, files ------------------------------------------------------------

    def ensure_network(
        self,
        name: str,
        labels: Mapping[str, str],
        *,
        address_range: AddressRange | None = None,  # noqa: ARG002  (nothing here has an address)
    ) -> None:
        """See `Resources.ensure_network`."""
        with self._lock:
            if name not in self._networks:
                self.calls.append(("create_network", name))
                self._networks[name] = dict(labels)

    def remove_network(self, name: str) -> bool:
        """See `Resources.remove_network`."""
        with self._lock:
            if any(
                one.spec.network == name and one.state == "running" for one in self._live.values()
            ):
                return False
            if self._networks.pop(name, None) is not None:
                self.calls.append(("remove_network", name))
            return True

    def network_members(self, name: str) -> tuple[NetworkMember, ...]:
        """See `Resources.network_members`."""
        with self._lock:
            return tuple(
                NetworkMember(one.id, dict(one.spec.labels))
                for one in self._live.values()
                if one.spec.network == name and one.state == "running"
            )

    def create_volume(
        self, name: str, labels: Mapping[str, str], *, options: Mapping[str, str] | None = None
    ) -> str:
        """See `Resources.create_volume`; the folder that it names does not exist."""
        with self._lock:
            self.calls.append(("create_volume", name))
            assert not options or options.get("type"), "a local volume with options has a type"
            self._volumes.setdefault(name, (dict(labels), {}))
            return f"/fake/volumes/{name}/_data"

    def remove_volume(self, name: str) -> None:
        """See `Resources.remove_volume`."""
        with self._lock:
            if any(
                mount.source == name and not mount.bind
                for one in self._live.values()
                for mount in one.spec.mounts
            ):
                raise EngineError(f"the volume {name} can't be removed: volume is in use")
            if self._volumes.pop(name, None) is not None:
                self.calls.append(("remove_volume", name))

    def list_owned(self, labels: Mapping[str, str]) -> OwnedResources:
        """See `Resources.list_owned`."""

        def carries(found: Mapping[str, str]) -> bool:
            return all(
                key in found and (not value or found[key] == value) for key, value in labels.items()
            )

        with self._lock:
            return OwnedResources(
                tuple(one.id for one in self._live.values() if carries(one.spec.labels)),
                tuple(name for name, (found, _) in self._volumes.items() if carries(found)),
                tuple(name for name, found in self._networks.items() if carries(found)),
            )

    def find_containers(self, labels: Mapping[str, str]) -> tuple[FoundContainer, ...]:
        """See `Resources.find_containers`."""
        owned = set(self.list_owned(labels).containers)
        with self._lock:
            return tuple(
                FoundContainer(
                    one.id,
                    dict(one.spec.labels),
                    was_started=one.state != "created",
                    has_ended=one.state == "exited",
                )
                for one in self._live.values()
                if one.id in owned
            )

    def label_values(self, label: str) -> tuple[str, ...]:
        """See `Resources.label_values`."""
        with self._lock:
            found = [one.spec.labels for one in self._live.values()]
            found += [labels for labels, _ in self._volumes.values()]
            found += self._networks.values()
            return tuple(sorted({labels[label] for labels in found if label in labels}))

    # -- one container's life ----------------------------------------------------------------

    def create_container(self, spec: ContainerSpec) -> str:
        """See `Containers.create_container`."""
        with self._lock:
            if self.find_image(spec.image) is None:
                raise EngineError(f"the engine has no image {spec.image!r}")
            if spec.name and any(one.spec.name == spec.name for one in self._live.values()):
                raise ContainerNameTaken(f"there is a container {spec.name} already")
            shared = spec.network.startswith("container:")
            assert not (shared and spec.extra_hosts), (
                "extra_hosts and container: exclude each other"
            )
            container_id = f"{len(self.containers) + 1:064x}"
            container = FakeContainer(container_id, spec)
            self.containers[container_id] = self._live[container_id] = container
            for mount in spec.mounts:
                if not mount.bind:
                    self._volumes.setdefault(mount.source, ({}, {}))
            self.calls.append(("create_container", spec.name or container_id))
            return container_id

    def prepare_start(self, container_id: str) -> None:
        """See `Containers.prepare_start`."""
        with self._lock:
            assert self._known(container_id).state == "created", f"{container_id} runs already"

    def start_container(self, container_id: str, *, attach: bool) -> Iterator[bytes]:
        """See `Containers.start_container`."""
        with self._lock:
            container = self._known(container_id)
            assert container.state == "created", f"{container_id} was started already"
            self.calls.append(("start_container", container.spec.name or container_id))
            self._check_start(container)
            container.state = "running"
            container.output = container.env.get("OUTPUT", "").encode()
            container.errors = ErrorOutput(container.env.get("ERRORS", "").encode())
            sleep = container.env.get("SLEEP")
            if not self._sleeps_for_ever(container) and (sleep is None or sleep in self._released):
                self._finish(container)
        return _output_of(container) if attach else iter(())

    def follow_container(self, container_id: str) -> Iterator[bytes]:
        """See `Containers.follow_container`."""
        with self._lock:
            container = self._known(container_id)
            assert container.spec.keep_log, f"{container_id} keeps no log"
            assert container.state != "created", f"{container_id} was never started"
        return _output_of(container)

    def _sleeps_for_ever(self, container: FakeContainer) -> bool:
        """Whether it runs the pause program (pause_image.py)."""
        image = self.find_image(container.spec.image)
        return image is not None and image.entrypoint == ("/pause",)

    def _check_start(self, container: FakeContainer) -> None:
        if reason := container.env.get("START_FAIL"):
            raise ContainerStartError(f"the container can't start: {reason}", container_code=127)
        kind, _, other = container.spec.network.partition(":")
        if kind == "container":
            if other not in self._live or self._live[other].state != "running":
                raise ContainerStartError(f"the container can't start: {other} is not running")
        elif container.spec.network and container.spec.network not in self._networks:
            raise ContainerStartError(
                f"the container can't start: network {container.spec.network} not found"
            )

    def _finish(self, container: FakeContainer) -> None:
        """It does what its environment says, and ends."""
        env = container.env
        code = int(env.get("EXIT_CODE", "0"))
        if "WRITE" in env:
            path, _, text = env["WRITE"].partition("=")
            files, inside = self._files_at(container, path)
            files[inside] = text.encode()
        if "READ" in env:
            files, inside = self._files_at(container, env["READ"])
            code = code if inside in files else 1
            container.output += files.get(inside, b"")
        if env.get("OOM"):
            container.end(_KILLED, oom_killed=True)
        else:
            container.end(code)

    def _files_at(self, container: FakeContainer, path: str) -> tuple[dict[str, bytes], str]:
        """The files that hold ``path`` (a volume's or the container's own), and the path there."""
        mounts = sorted(container.spec.mounts, key=lambda mount: -len(mount.target))
        for mount in mounts:
            if path == mount.target or path.startswith(f"{mount.target}/"):
                files = self._volumes.setdefault(mount.source, ({}, {}))[1]
                return files, path[len(mount.target) :].lstrip("/")
        return container.files, path.lstrip("/")

    def wait_container(self, container_id: str) -> ContainerExit:
        """See `Containers.wait_container`."""
        with self._lock:
            container = self._known(container_id)
            assert container.state != "created", f"{container_id} is awaited but never started"
        container.ended.wait()
        return container.exit

    def kill_container(self, container_id: str, signal: str = "SIGKILL") -> None:
        """See `Containers.kill_container`."""
        with self._lock:
            container = self._live.get(container_id)
            if container is None or container.state != "running":
                return
            self.calls.append((f"kill_container {signal}", container.spec.name or container_id))
            container.signals.append(signal)
            if signal == "SIGKILL":
                container.end(_KILLED)
            elif signal == "SIGTERM" and "ON_SIGTERM" in container.env:
                container.end(int(container.env["ON_SIGTERM"]))

    def remove_container(self, container_id: str) -> None:
        """See `Containers.remove_container`."""
        with self._lock:
            container = self._live.pop(container_id, None)
            if container is not None:
                self.calls.append(("remove_container", container.spec.name or container_id))
                container.end(_KILLED)

    def remove_unstarted(self, container: str) -> bool:
        """See `Containers.remove_unstarted`."""
        with self._lock:
            for one in [one for one in self._live.values() if container in (one.id, one.spec.name)]:
                if one.state != "created":
                    return False
                self.remove_container(one.id)
            return True

    def put_archive(self, container_id: str, path: str, tar: Iterable[bytes]) -> None:
        """See `Containers.put_archive`."""
        with tarfile.open(fileobj=io.BytesIO(b"".join(tar))) as archive, self._lock:
            container = self._known(container_id)
            if not self._is_folder(container, path):
                raise NotFound(f"the container has no folder {path}")
            for entry in archive:
                content = archive.extractfile(entry)
                if content is not None:
                    target = posixpath.join(path, posixpath.normpath(entry.name))
                    files, inside = self._files_at(container, target)
                    files[inside] = content.read()

    def get_archive(self, container_id: str, path: str) -> Iterator[bytes]:
        """See `Containers.get_archive`."""
        with self._lock:
            files, inside = self._files_at(self._known(container_id), path)
            below = f"{inside}/" if inside else ""
            found = {
                name: content
                for name, content in files.items()
                if name == inside or name.startswith(below)
            }
            if not found and not self._is_folder(self._known(container_id), path):
                raise NotFound(f"the container has no {path}")
        top = posixpath.basename(path.rstrip("/"))
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w") as archive:
            for name, content in sorted(found.items()):
                entry = tarfile.TarInfo(
                    posixpath.join(top, name[len(inside) :].lstrip("/")).rstrip("/")
                )
                entry.size = len(content)
                archive.addfile(entry, io.BytesIO(content))
        return iter([buffer.getvalue()])

    def _is_folder(self, container: FakeContainer, path: str) -> bool:
        clean = path.rstrip("/")
        if not clean or any(mount.target == clean for mount in container.spec.mounts):
            return True
        files, inside = self._files_at(container, clean)
        return any(name.startswith(f"{inside}/") for name in files)

    def _known(self, container_id: str) -> FakeContainer:
        container = self._live.get(container_id)
        if container is None:
            raise EngineError(f"the engine has no container {container_id}")
        return container

    # -- the engine itself -------------------------------------------------------------------

    def ping(self) -> None:
        """See `ContainerEngine.ping`."""

    def info(self) -> EngineInfo:
        """See `ContainerEngine.info`."""
        return EngineInfo(
            name="fake",
            version="1",
            api_version="1",
            local=False,
            cpus=2,
            memory_bytes=4 * 1024**3,
            architecture="x86_64",
        )

    def close(self) -> None:
        """See `ContainerEngine.close`."""


def _output_of(container: FakeContainer) -> Iterator[bytes]:
    """What is there at the start at once, the rest when it ended."""
    first = container.output
    if first:
        yield first
    if container.errors:
        yield container.errors
    container.ended.wait()
    if rest := container.output[len(first) :]:
        yield rest
