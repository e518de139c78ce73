"""An engine in memory, for tests.

`FakeEngine` passes the same contract suite as the Docker engine. The environment of its containers
controls their behaviour (`FakeContainer`); `FakeImages` has its images and their registry.
"""

from __future__ import annotations

import io
import posixpath
import tarfile
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import msgspec

from buildrunner.containers.image_name import ImageName
from buildrunner.containers.protocol import (
    AddressRange,
    ContainerExit,
    ContainerSpec,
    EngineInfo,
    ErrorOutput,
    FoundContainer,
    ImageInfo,
    NetworkMember,
    OwnedResources,
    PushedImage,
    RegistryLogin,
    TransferProgress,
)
from buildrunner.errors import (
    ContainerNameTaken,
    ContainerStartError,
    EngineError,
    GateRefused,
    ImagePullError,
    ImagePushError,
    NotFound,
)


class FakeImages:
    """The `Images` part of `FakeEngine`. Thread-safe.

    Attributes:
        calls: ``(method, what)`` of each call that changes something.
        registry: images that can be pulled, by name with tag; `offer_image` and pushes add to it.
        pull_errors: errors for the next pulls of a name, one a try.
        push_errors: the same for pushes.
        push_logins: name and login of every push.
        private: images that can't be pulled without a login.
        stalled: names whose pull or push hangs until it is cancelled.
    """

    def __init__(self, images: Iterable[str]) -> None:
        self.calls: list[tuple[str, str]] = []
        self.registry: dict[str, ImageInfo] = {}
        self.pull_errors: dict[str, list[EngineError]] = {}
        self.push_errors: dict[str, list[ImagePushError]] = {}
        self.push_logins: list[tuple[str, RegistryLogin | None]] = []
        self.private: set[str] = set()
        self.stalled: set[str] = set()
        self._images: dict[str, ImageInfo] = {}
        self._lock = threading.RLock()
        for name in images:
            self.add_image(name)

    def add_image(self, name: str, *, digest: str = "", entrypoint: Sequence[str] = ()) -> None:
        """Add an image to the engine, as if built, or pulled if it has a digest."""
        with self._lock:
            self._images[_tagged(name)] = _image(name, digest, entrypoint)

    def offer_image(self, name: str, *, entrypoint: Sequence[str] = ()) -> None:
        """Add an image to the registry, for pulls."""
        with self._lock:
            digest = _fake_digest(f"manifest {name}")
            self.registry[_tagged(name)] = _image(name, digest, entrypoint)

    def find_image(self, name: str) -> ImageInfo | None:
        """See `Images.find_image`."""
        with self._lock:
            requested = ImageName.parse(name)
            if requested.digest:
                return next(
                    (one for one in self._images.values() if one.digest == requested.digest), None
                )
            by_id = next((one for one in self._images.values() if one.id == name), None)
            return self._images.get(_tagged(name)) or by_id

    def tags_of(self, repository: str) -> tuple[str, ...]:
        """See `Images.tags_of`."""
        with self._lock:
            names = [ImageName.parse(name) for name in self._images]
            return tuple(sorted(one.tag for one in names if one.familiar == repository))

    def tag_image(self, image: str, name: str) -> bool:
        """See `Images.tag_image`."""
        with self._lock:
            found = next((one for one in self._images.values() if one.id == image), None)
            if found is not None:
                self.calls.append(("tag_image", name))
                self._images[_tagged(name)] = msgspec.structs.replace(found, digest="")
            return found is not None

    def untag_image(self, name: str) -> None:
        """See `Images.untag_image`."""
        with self._lock:
            self._images.pop(_tagged(name), None)

    def import_image(
        self,
        name: str,
        tar: Iterable[bytes],
        *,
        entrypoint: Sequence[str] = (),
        cmd: Sequence[str] = (),
        env: Sequence[str] = (),  # noqa: ARG002  (nothing runs in the fake)
        labels: Mapping[str, str] | None = None,  # noqa: ARG002
    ) -> str:
        """See `Images.import_image`."""
        content = b"".join(tar)
        with self._lock:
            self.calls.append(("import_image", name))
            self._images[_tagged(name)] = ImageInfo(
                id=_fake_digest(f"import {name}"),
                size_bytes=len(content),
                entrypoint=tuple(entrypoint),
                cmd=tuple(cmd),
            )
            return self._images[_tagged(name)].id

    def pull_image(
        self,
        name: str,
        *,
        on_progress: Callable[[TransferProgress], None],
        cancel: threading.Event,
        anonymous: bool = False,
    ) -> ImageInfo:
        """See `Images.pull_image`."""
        with self._lock:
            self.calls.append(("pull_image", name))
            errors = self.pull_errors.get(name)
            error = errors.pop(0) if errors else None
        on_progress(TransferProgress(image=name, status="Pulling from registry"))
        if name in self.stalled:
            cancel.wait()
        if cancel.is_set():
            raise ImagePullError(f"the pull of {name} was cancelled")
        if error is not None:
            raise error
        with self._lock:
            image = self.registry.get(_tagged(name))
            if image is None or (anonymous and name in self.private):
                raise ImagePullError(f"the image {name} can't be pulled: not found")
            self._images[_tagged(name)] = image
        on_progress(
            TransferProgress(
                image=name, layer="layer", status="Downloading", current_bytes=1, total_bytes=1
            )
        )
        return image

    def push_image(
        self,
        name: str,
        *,
        on_progress: Callable[[TransferProgress], None],
        cancel: threading.Event,
        login: RegistryLogin | None = None,
    ) -> PushedImage:
        """See `Images.push_image`; ``push_logins`` remembers who pushed."""
        tagged = _tagged(name)
        with self._lock:
            self.calls.append(("push_image", name))
            self.push_logins.append((name, login))
            image = self._images.get(tagged)
            errors = self.push_errors.get(name)
            error = errors.pop(0) if errors else None
        if image is None:
            raise ImagePushError(f"the engine has no image {name} to push")
        on_progress(TransferProgress(image=name, layer="layer", status="Pushing"))
        if name in self.stalled:
            cancel.wait()
        if cancel.is_set():
            raise ImagePushError(f"the push of {name} was cancelled")
        if error is not None:
            raise error
        digest = _fake_digest(f"manifest {image.id}")
        with self._lock:
            reused = tagged in self.registry
            self.registry[tagged] = msgspec.structs.replace(image, digest=digest)
            self._images[tagged] = self.registry[tagged]
        tag = ImageName.parse(tagged).tag
        return PushedImage(
            name=tagged,
            digest=digest,
            size_bytes=image.size_bytes,
            layers_pushed=0 if reused else 1,
            layers_reused=1 if reused else 0,
            log=(f"The push refers to repository [{name}]", f"{tag}: digest: {digest} size: 100"),
        )


def _image(name: str, digest: str, entrypoint: Sequence[str]) -> ImageInfo:
    return ImageInfo(
        id=_fake_digest(f"image {name}"),
        digest=digest,
        size_bytes=1_000_000,
        entrypoint=tuple(entrypoint),
        cmd=("sh",),
        layers=(_fake_digest(f"layer {name}"),),
    )


def _tagged(name: str) -> str:
    requested = ImageName.parse(name)
    return f"{requested.familiar}:{requested.tag or 'latest'}"


def _fake_digest(text: str) -> str:
    import hashlib

    return f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"


KILLED = 137
"""The exit code after a SIGKILL."""

NOT_FOUND = 127
"""The exit code if the program does not exist."""


class FakeContainer:
    """The state of one container. Callers hold the engine's lock, except for `output`.

    Args:
        container_id: its id.
        spec: as created.
        files_of: returns the files of a volume, by path in it.

    Attributes:
        spec: as created.
        state: ``created``, ``waiting`` (behind its gate), ``running`` or ``exited``.
        is_ahead: it was pre-started.
        is_refused: its gate did not run its program.
        signals: the signals that it received, in order.
    """

    def __init__(
        self,
        container_id: str,
        spec: ContainerSpec,
        files_of: Callable[[str], dict[str, bytes]],
    ) -> None:
        self.id = container_id
        self.spec = spec
        self.state = "created"
        self.is_ahead = False
        self.is_refused = False
        self.signals: list[str] = []
        self.ended = threading.Event()
        self.exit = ContainerExit(0)
        self.env = dict(entry.partition("=")[::2] for entry in spec.env)
        self._files: dict[str, bytes] = {}
        self._files_of = files_of
        self._written = b""
        self._errors = ErrorOutput()

    # -- its program -----------------------------------------------------------------------------

    def start(self) -> None:
        """Start the program, which writes its first output."""
        self.state = "running"
        self._written = self.env.get("OUTPUT", "").encode()
        self._errors = ErrorOutput(self.env.get("ERRORS", "").encode())

    def finish(self) -> None:
        """Finish the program as its environment says."""
        env = self.env
        code = int(env.get("EXIT_CODE", "0"))
        if "WRITE" in env:
            path, _, text = env["WRITE"].partition("=")
            files, inside = self._files_at(path)
            files[inside] = text.encode()
        if "READ" in env:
            files, inside = self._files_at(env["READ"])
            code = code if inside in files else 1
            self._written += files.get(inside, b"")
        if env.get("OOM"):
            self.end(KILLED, oom_killed=True)
        else:
            self.end(code)

    def kill(self, signal: str) -> None:
        """Send a signal to the program."""
        self.signals.append(signal)
        if signal == "SIGKILL":
            self.end(KILLED)
        elif signal == "SIGTERM" and self.state == "running" and "ON_SIGTERM" in self.env:
            self.end(int(self.env["ON_SIGTERM"]))

    def end(self, code: int, *, oom_killed: bool = False) -> None:
        """End the program, unless it has ended."""
        if not self.ended.is_set():
            self.exit = ContainerExit(code, oom_killed)
            self.state = "exited"
            self.ended.set()

    def output(self) -> Iterator[bytes]:
        """Yield the output of the start at once, and the rest when the container has ended."""
        if self.is_refused:
            raise GateRefused("the start gate did not run the step's program")
        first = self._written
        if first:
            yield first
        if self._errors:
            yield self._errors
        self.ended.wait()
        if rest := self._written[len(first) :]:
            yield rest

    # -- its files -------------------------------------------------------------------------------

    def unpack(self, path: str, archive: tarfile.TarFile) -> None:
        """Put the archive's files at ``path``.

        Raises:
            NotFound: the folder does not exist.
        """
        if not self._is_folder(path):
            raise NotFound(f"the container has no folder {path}")
        for entry in archive:
            content = archive.extractfile(entry) if entry.isreg() else None
            if content is not None:
                target = posixpath.join(path, posixpath.normpath(entry.name))
                files, inside = self._files_at(target)
                files[inside] = content.read()

    def pack(self, path: str) -> bytes:
        """Return a tar archive of ``path``.

        Raises:
            NotFound: the path does not exist.
        """
        files, inside = self._files_at(path)
        below = f"{inside}/" if inside else ""
        found = {
            name: content
            for name, content in files.items()
            if name == inside or name.startswith(below)
        }
        if not found and not self._is_folder(path):
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
        return buffer.getvalue()

    def _files_at(self, path: str) -> tuple[dict[str, bytes], str]:
        """Return the files (of a volume or the container) with ``path``, and the path there."""
        mounts = sorted(self.spec.mounts, key=lambda mount: -len(mount.target))
        for mount in mounts:
            if path == mount.target or path.startswith(f"{mount.target}/"):
                return self._files_of(mount.source), path[len(mount.target) :].lstrip("/")
        return self._files, path.lstrip("/")

    def _is_folder(self, path: str) -> bool:
        clean = path.rstrip("/")
        if not clean or any(mount.target == clean for mount in self.spec.mounts):
            return True
        files, inside = self._files_at(clean)
        return any(name.startswith(f"{inside}/") for name in files)


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
        """Let every container with ``SLEEP=name`` run to its end, now and later."""
        with self._lock:
            self._released.add(name)
            for container in self._live.values():
                if container.state == "running" and container.env.get("SLEEP") == name:
                    container.finish()

    def running(self) -> tuple[str, ...]:
        """Return the names (or ids) of the running containers, in order of creation."""
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

    def ping(self, *, anew: bool = False) -> None:
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
