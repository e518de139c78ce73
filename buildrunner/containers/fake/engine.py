"""An engine in memory, for tests of whatever drives an engine.

`FakeEngine` passes the same contract suite as the Docker engine. What its containers do is said by
their environment (fake_container.py), its images and registry are in fake_images.py.

Nothing depends on time. Whoever drives it in an order that the real engine would not survive gets
an AssertionError. ``calls`` records every call that changes something, in order.
"""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterable, Iterator, Mapping

from buildrunner.containers.fake.container import KILLED, NOT_FOUND, FakeContainer
from buildrunner.containers.fake.images import FakeImages
from buildrunner.containers.types import (
    AddressRange,
    ContainerExit,
    ContainerSpec,
    EngineInfo,
    FoundContainer,
    NetworkMember,
    OwnedResources,
)
from buildrunner.errors import (
    ContainerNameTaken,
    ContainerStartError,
    EngineError,
    GateRefused,
)


class FakeEngine(FakeImages):
    """A `ContainerEngine` in memory. Thread-safe.

    Args:
        images: names of images that the engine has from the start.

    Attributes:
        calls: ``(method, what)`` of each call that changes something.
        containers: by id, also removed ones.
        socket_path: see `EngineInfo`.
    """

    def __init__(self, images: Iterable[str] = ()) -> None:
        super().__init__(images)
        self.containers: dict[str, FakeContainer] = {}
        self.socket_path = "/var/run/docker.sock"
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
                    container.finish()

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
            assert spec.entrypoint or not spec.gate, "a gate is told which program it runs"
            container_id = f"{len(self.containers) + 1:064x}"
            container = FakeContainer(container_id, spec, self._files_of)
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

    def start_ahead(self, container_id: str) -> None:
        """See `Containers.start_ahead`."""
        with self._lock:
            container = self._known(container_id)
            assert container.state == "created", f"{container_id} was started already"
            if container.spec.gate:
                self.calls.append(("start_ahead", container.spec.name or container_id))
                self._check_network(container)
                container.state, container.is_ahead = "waiting", True

    def start_container(self, container_id: str, *, attach: bool) -> Iterator[bytes]:
        """See `Containers.start_container`."""
        with self._lock:
            gone = self.containers.get(container_id)
            if gone is not None and gone.is_ahead and gone.state == "exited":
                raise GateRefused("the container has ended before its turn")
            container = self._known(container_id)
            assert container.state in ("created", "waiting"), f"{container_id} was started already"
            self.calls.append(("start_container", container.spec.name or container_id))
            self._check_network(container)
            self._run(container)
        return container.output() if attach else iter(())

    def _run(self, container: FakeContainer) -> None:
        """Run its program, from behind the gate if it has one."""
        if reason := container.env.get("START_FAIL"):
            if not container.spec.gate:
                message = f"the container can't start: {reason}"
                raise ContainerStartError(message, container_code=NOT_FOUND)
            container.is_refused = True
            container.end(NOT_FOUND)
            return
        container.start()
        sleep = container.env.get("SLEEP")
        if sleep is None or sleep in self._released:
            container.finish()

    def follow_container(self, container_id: str) -> Iterator[bytes]:
        """See `Containers.follow_container`."""
        with self._lock:
            container = self._known(container_id)
            assert container.spec.keep_log, f"{container_id} keeps no log"
            assert container.state != "created", f"{container_id} was never started"
            if container.state == "waiting":
                self._run(container)
        return container.output()

    def _check_network(self, container: FakeContainer) -> None:
        network = container.spec.network
        if network and network not in self._networks:
            raise ContainerStartError(f"the container can't start: network {network} not found")

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
            if container is None or container.state not in ("running", "waiting"):
                return
            self.calls.append((f"kill_container {signal}", container.spec.name or container_id))
            container.kill(signal)

    def remove_container(self, container_id: str) -> None:
        """See `Containers.remove_container`."""
        with self._lock:
            container = self._live.pop(container_id, None)
            if container is not None:
                self.calls.append(("remove_container", container.spec.name or container_id))
                container.end(KILLED)

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
            self._known(container_id).unpack(path, archive)

    def fill_mount(
        self,
        container_id: str,
        target: str,  # noqa: ARG002  (all mounts are reached from the root)
        tar: Iterable[bytes],
    ) -> None:
        """See `Containers.fill_mount`."""
        self.put_archive(container_id, "/", tar)

    def get_archive(self, container_id: str, path: str) -> Iterator[bytes]:
        """See `Containers.get_archive`."""
        with self._lock:
            return iter([self._known(container_id).pack(path)])

    def _files_of(self, volume: str) -> dict[str, bytes]:
        return self._volumes.setdefault(volume, ({}, {}))[1]

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
            socket_path=self.socket_path,
            no_socket="" if self.socket_path else "it has no socket",
        )

    def close(self) -> None:
        """See `ContainerEngine.close`."""
