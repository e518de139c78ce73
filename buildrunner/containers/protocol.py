"""The protocol of container engines, and the values that an engine and its caller exchange.

Three protocols, so that a caller of one does not see the others: `Images` (find, pull, push),
`Resources` (networks, volumes, files in volumes, the sweep by label), `Containers` (one
container's life). `ContainerEngine` is all three. `docker` and `fake` implement it and pass the
same contract suite (tests/contract/test_container_engine.py).

Rules for every implementation:

* Thread-safe: any method may be called from any thread at the same time.
* Idempotent: removing, killing or stopping what is gone, and ensuring what exists, succeed.
* Every failure is an `EngineError` (or its subclasses) with a sentence for a person.
* Everything made carries the labels that were given; `list_owned`/`remove_owned` find it by them.
* No method blocks for ever: attach and wait are released by `kill`, pulls and pushes by `cancel`.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Protocol

import msgspec

LABEL_BUILD = "buildrunner.build"
LABEL_STEP = "buildrunner.step"
LABEL_OWNER = "buildrunner.owner"


class EngineInfo(msgspec.Struct, frozen=True, kw_only=True):
    """Facts about an engine for `buildrunner doctor` and the workspace.

    Attributes:
        name: e.g. ``docker``.
        version: e.g. ``20.10.24``.
        id: identifies the engine with its images, for as long as they are there.
        api_version: e.g. ``1.41``.
        local: the engine sees the same file system as we do (a local socket, not a VM), so that
            host paths can be mounted.
        data_root: folder of the engine's data on its machine.
        storage_driver: e.g. ``overlay2``.
        containerd_images: images are in containerd's image store (the default since Docker 29).
            Their ids are digests of manifests.
        cpus: processors of the engine's machine.
        memory_bytes: memory of the engine's machine.
        socket_path: path, on the engine's machine, of the engine's own socket, which steps may
            mount; empty where none is known.
        no_socket: why ``socket_path`` is empty, and what to do.
        rootless: the engine runs without root.
        architecture: as the kernel names it: ``x86_64``, ``aarch64``, ...
        has_buildkit: steps can build with BuildKit.
        limits_resources: limits of memory and processors hold. Without root they do where the
            machine's control groups allow it.
        layered_volumes: files can be copied out of a volume that is a mount of its own.
        needs_start_gate: a container can be started ahead of its turn only behind a start gate
            (start_gate.py).
    """

    name: str
    version: str
    id: str = ""
    api_version: str
    local: bool
    data_root: str = ""
    storage_driver: str = ""
    containerd_images: bool = False
    cpus: int = 0
    memory_bytes: int = 0
    socket_path: str = "/var/run/docker.sock"
    no_socket: str = ""
    rootless: bool = False
    architecture: str = ""
    has_buildkit: bool = True
    limits_resources: bool = True
    layered_volumes: bool = True
    needs_start_gate: bool = True

    @property
    def supports_nested(self) -> bool:
        """Whether a build can have an engine of its own, in a container of this one."""
        return self.local and not self.rootless


class ImageInfo(msgspec.Struct, frozen=True, kw_only=True):
    """An image in the engine's store.

    Attributes:
        id: ``sha256:...`` of its config, or of its manifest in containerd's image store.
        digest: ``sha256:...`` under which a registry knows it *by the name that was asked for*.
            An image that was built here and never pushed has none; containerd's image store and
            Podman report the digest of its local manifest instead.
        size_bytes: size unpacked.
        entrypoint: the image's own entrypoint.
        cmd: the image's default command.
        layers: diff ids of its layers, lowest first.
        user: the image's ``USER``; empty is root.
    """

    id: str
    digest: str = ""
    size_bytes: int = 0
    entrypoint: tuple[str, ...] = ()
    cmd: tuple[str, ...] = ()
    layers: tuple[str, ...] = ()
    user: str = ""


class TransferProgress(msgspec.Struct, frozen=True, kw_only=True):
    """The progress of a pull or push, reported often. A receiver may drop reports.

    Attributes:
        image: as asked for.
        layer: short id of the layer, or empty for the whole image.
        status: the engine's own word (``Downloading``, ``Pushed``, ``Layer already exists``, ...).
        current_bytes: bytes of this layer done.
        total_bytes: bytes of this layer in all; 0 when unknown.
    """

    image: str
    layer: str = ""
    status: str = ""
    current_bytes: int = 0
    total_bytes: int = 0


class PushedImage(msgspec.Struct, frozen=True, kw_only=True):
    """One tag that a registry confirmed.

    Attributes:
        name: ``repository:tag``.
        digest: the manifest's digest, as the registry answered it; empty if the registry is in the
            hands of the build's steps.
        size_bytes: size of the image unpacked, as `docker images` shows it.
        layers_pushed: layers that were sent.
        layers_reused: layers that the registry already had. Podman tells neither: both are 0.
        log: the engine's push output, one line an entry, for the build's log.
    """

    name: str
    digest: str
    size_bytes: int = 0
    layers_pushed: int = 0
    layers_reused: int = 0
    log: tuple[str, ...] = ()


class RegistryLogin(msgspec.Struct, frozen=True, kw_only=True):
    """A login at a registry, used instead of the user's own.

    Attributes:
        username: empty with an identity token.
        password: the password, or an access token used as one.
        identity_token: a token that the registry's token service changes for access.
    """

    username: str = ""
    password: str = ""
    identity_token: str = ""

    def __repr__(self) -> str:
        """No secret in messages, logs and crash dumps."""
        return f"RegistryLogin(username={self.username!r})"


class Mount(msgspec.Struct, frozen=True, kw_only=True):
    """Something mounted in a container.

    Attributes:
        source: a volume's name, or an absolute path of the engine's machine when ``bind``.
        target: absolute path in the container.
        bind: source is a path.
        read_only: the container can't write to it.
        no_copy: an empty volume stays empty, whatever the image has at ``target``. Without it the
            engine copies the image's files in, as Docker does.
    """

    source: str
    target: str
    bind: bool = False
    read_only: bool = False
    no_copy: bool = False


class ContainerSpec(msgspec.Struct, frozen=True, kw_only=True):
    """A container to create.

    Attributes:
        name: unique name; empty lets the engine choose.
        image: name or id that the engine has.
        entrypoint: None keeps the image's; otherwise replaces it (and drops the image's command).
        cmd: arguments; None keeps the image's command.
        env: ``KEY=VALUE``, passed by the API and never by an argv.
        workdir: absolute.
        mounts: in this order.
        network: a network's name, or ``none``.
        network_aliases: names under which the container is known on ``network``.
        extra_hosts: ``name:address`` entries for /etc/hosts.
        labels: see LABEL_*.
        privileged: run privileged.
        cpus: processors, None for no limit.
        memory_bytes: memory, None for no limit.
        keep_log: the engine keeps the output so that a later process can read it again; False
            streams it to whoever is attached only (faster).
        init: run a minimal init as process 1.
        user: overrides the image's user; empty keeps it.
        gate: path, in the container, of the start gate (start_gate.py), behind which
            `Containers.start_ahead` can start it. Needs an entrypoint. Empty: it has none.
    """

    image: str
    name: str = ""
    entrypoint: tuple[str, ...] | None = None
    cmd: tuple[str, ...] | None = None
    env: tuple[str, ...] = ()
    workdir: str = ""
    mounts: tuple[Mount, ...] = ()
    network: str = ""
    network_aliases: tuple[str, ...] = ()
    extra_hosts: tuple[str, ...] = ()
    labels: dict[str, str] = {}
    privileged: bool = False
    cpus: float | None = None
    memory_bytes: int | None = None
    keep_log: bool = False
    init: bool = False
    user: str = ""
    gate: str = ""


class ErrorOutput(bytes):
    """A chunk of a container's stderr; plain `bytes` are of its stdout."""

    __slots__ = ()


class FoundContainer(msgspec.Struct, frozen=True):
    """A container that somebody made earlier.

    Attributes:
        id: its id.
        labels: what it carries.
        was_started: it runs, or has run; False when it was created only.
        has_ended: it has run, and does not any more.
    """

    id: str
    labels: dict[str, str]
    was_started: bool
    has_ended: bool


class ContainerExit(msgspec.Struct, frozen=True):
    """The end of a container. ``code`` is 137 after a kill; ``oom_killed`` gives the reason."""

    code: int
    oom_killed: bool = False


class OwnedResources(msgspec.Struct, frozen=True):
    """Names of what carries some labels."""

    containers: tuple[str, ...] = ()
    volumes: tuple[str, ...] = ()
    networks: tuple[str, ...] = ()


class AddressRange(msgspec.Struct, frozen=True):
    """Addresses of a network: ``subnet`` in CIDR form, and the engine's own address in it."""

    subnet: str
    gateway: str


class NetworkMember(msgspec.Struct, frozen=True):
    """A running container on a network, with its IPv4 address there."""

    id: str
    labels: dict[str, str]
    address: str = ""


class Images(Protocol):
    """Images of the engine, and their way from and to registries."""

    def find_image(self, name: str) -> ImageInfo | None:
        """The image the engine has under ``name`` (tag, digest or id), or None."""
        ...

    def tags_of(self, repository: str) -> tuple[str, ...]:
        """Tags the engine has of ``repository`` (no tag in it), sorted."""
        ...

    def tag_image(self, image: str, name: str) -> bool:
        """Give an image, by id, one more name; False when it is gone."""
        ...

    def untag_image(self, name: str) -> None:
        """Take a name off an image. With its last name it goes, unless a container needs it."""
        ...

    def import_image(
        self,
        name: str,
        tar: Iterable[bytes],
        *,
        entrypoint: Sequence[str] = (),
        cmd: Sequence[str] = (),
        env: Sequence[str] = (),
        labels: Mapping[str, str] | None = None,
    ) -> str:
        """Make an image of one layer from a root file system (a tar stream); its id.

        ``name`` moves from whatever image had it before.
        """
        ...

    def pull_image(
        self,
        name: str,
        *,
        on_progress: Callable[[TransferProgress], None],
        cancel: threading.Event,
        anonymous: bool = False,
    ) -> ImageInfo:
        """One try to pull ``name``, with the user's registry credentials unless ``anonymous``.

        Raises:
            ImagePullError: ``transient`` says whether to try again.
        """
        ...

    def push_image(
        self,
        name: str,
        *,
        on_progress: Callable[[TransferProgress], None],
        cancel: threading.Event,
        login: RegistryLogin | None = None,
    ) -> PushedImage:
        """One try to push ``name`` (with a tag). Returns only once the registry confirmed a digest.

        ``login`` is used instead of the user's registry credentials.

        Raises:
            ImagePushError: ``transient``, ``unauthorized`` say why.
        """
        ...


class Resources(Protocol):
    """Networks, volumes and files in them."""

    def ensure_network(
        self, name: str, labels: Mapping[str, str], *, address_range: AddressRange | None = None
    ) -> None:
        """A bridge network of that name exists afterwards (made here or by anyone).

        Args:
            name: its name.
            labels: what it carries when it is made here.
            address_range: its addresses when it is made here; None lets the engine choose.
        """
        ...

    def remove_network(self, name: str) -> bool:
        """Remove it unless containers are on it; whether it is gone."""
        ...

    def network_members(self, name: str) -> tuple[NetworkMember, ...]:
        """Containers that run on the network."""
        ...

    def create_volume(
        self, name: str, labels: Mapping[str, str], *, options: Mapping[str, str] | None = None
    ) -> str:
        """Create a volume (``options``: of the local driver: type, device, o).

        Returns:
            Its folder on the engine's machine.
        """
        ...

    def remove_volume(self, name: str) -> None:
        """Remove a volume and all that is in it."""
        ...

    def list_owned(self, labels: Mapping[str, str]) -> OwnedResources:
        """All that carries every one of ``labels`` (an empty value: the label with any value)."""
        ...

    def find_containers(self, labels: Mapping[str, str]) -> tuple[FoundContainer, ...]:
        """The containers that `list_owned` finds, and what became of each."""
        ...

    def label_values(self, label: str) -> tuple[str, ...]:
        """Every value of ``label`` on any container, volume or network, sorted."""
        ...


class Containers(Protocol):
    """One container's life: create, (attach), start, wait, remove."""

    def create_container(self, spec: ContainerSpec) -> str:
        """Create, don't start. Returns the id.

        Raises:
            ContainerNameTaken: there is one of that name.
            EngineError: the image is missing.
        """
        ...

    def prepare_start(self, container_id: str) -> None:
        """Do ahead of time what an attached `start_container` does before the start itself.

        For a container that has some time left before it starts. Not needed, and done once.

        Raises:
            EngineError: there is no such container.
        """
        ...

    def start_ahead(self, container_id: str) -> None:
        """Do all of an attached start but run the program; `start_container` does that later.

        Does what `prepare_start` does if the container has no gate and the engine needs one.

        Raises:
            EngineError: the container can't start.
        """
        ...

    def start_container(self, container_id: str, *, attach: bool) -> Iterator[bytes]:
        """Start it; attached *before* the start when ``attach``, so that no byte is missed.

        Returns:
            An iterator of chunks of stdout and stderr (`ErrorOutput`) in order of arrival (neither
            whole lines nor valid UTF-8), which ends when the container's output ends. Empty
            without ``attach``. The container has been started when this returns.

        Raises:
            EngineError: it can't start (entrypoint not found, ...); message is for a person.
            GateRefused: its program was not run from behind the gate; the iterator, too, may
                raise that.
        """
        ...

    def follow_container(self, container_id: str) -> Iterator[bytes]:
        """All output of a started container with ``keep_log``, from its first byte on.

        As `start_container` gives it, for a process that did not start the container. The order
        within stdout and within stderr is the same; how they alternate may differ. A program that
        waits behind a gate is let go first. Raises GateRefused as `start_container` does.
        """
        ...

    def wait_container(self, container_id: str) -> ContainerExit:
        """Block until it ended."""
        ...

    def kill_container(self, container_id: str, signal: str = "SIGKILL") -> None:
        """Send a signal; no error when it is not running (any more)."""
        ...

    def remove_container(self, container_id: str) -> None:
        """Kill if need be, and remove with its anonymous volumes."""
        ...

    def remove_unstarted(self, container: str) -> bool:
        """Remove the one of that id or name, unless it was started; whether it is gone.

        Decided by the engine itself: a start that somebody else has asked for comes before, and
        then nothing is removed, or behind, and then it fails. The caller may rely on a removed
        container never having run.

        Raises:
            EngineError: the container ran and ended at the very moment of its removal. It is gone.
        """
        ...

    def put_archive(self, container_id: str, path: str, tar: Iterable[bytes]) -> None:
        """Unpack a tar stream at ``path`` in a created or running container.

        A member whose place is on a mount below ``path`` does not reach the mount on every engine.
        """
        ...

    def fill_mount(self, container_id: str, target: str, tar: Iterable[bytes]) -> None:
        """Unpack a tar stream in what a created container has mounted at ``target``.

        All names in it begin with ``target``, less its slash. Symbolic links may lead anywhere.
        """
        ...

    def get_archive(self, container_id: str, path: str) -> Iterator[bytes]:
        """A tar stream of ``path``. Raises NotFound when there is no such path.

        Names begin with the last part of ``path``. Where that is the root of a mount, Podman's
        begin with a slash instead.
        """
        ...


class ContainerEngine(Images, Resources, Containers, Protocol):
    """A container engine: all parts of the protocol, and its identity."""

    def ping(self) -> None:
        """Ask whether it answers, now. Raises EngineUnavailable."""
        ...

    def info(self) -> EngineInfo:
        """Return facts about the engine; cached after the first call. Raises EngineUnavailable."""
        ...

    def close(self) -> None:
        """Drop connections. Nothing on the engine changes."""
        ...
