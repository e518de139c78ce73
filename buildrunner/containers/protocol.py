"""The protocol of container engines, and the values that an engine and its caller exchange.

Three protocols, so that a caller of one does not see the others: `Images` (find, pull, push),
`Resources` (networks, volumes, files in volumes, the sweep by label), `Containers` (one
container's life). `ContainerEngine` is all three. `docker` and `fake` implement it and pass the
same contract suite (tests/contract/test_container_engine.py).

Rules for every implementation:

* Thread-safe: any method may be called from any thread at the same time.
* Idempotent: removing or killing a missing resource, and ensuring an existing one, succeed.
* Every failure is an `EngineError` (or a subclass) with a sentence for the user.
* Every new resource carries the given labels; `list_owned` finds it by them.
* No method blocks forever: `kill` releases attach and wait, `cancel` releases pulls and pushes.
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
        id: identifies the engine together with its images.
        api_version: e.g. ``1.41``.
        local: the engine sees the same file system as this process (a local socket, not a VM), so
            that host paths can be mounted.
        data_root: folder of the engine's data on its machine.
        storage_driver: e.g. ``overlay2``.
        containerd_images: images are in containerd's image store (the default since Docker 29).
            Their ids are digests of manifests.
        cpus: processors of the engine's machine.
        memory_bytes: memory of the engine's machine.
        socket_path: path, on the engine's machine, of the engine's own socket, which steps may
            mount; empty if unknown.
        no_socket: the reason why ``socket_path`` is empty, and the remedy.
        rootless: the engine runs without root.
        architecture: as the kernel names it: ``x86_64``, ``aarch64``, ...
        has_buildkit: steps can build with BuildKit.
        limits_resources: limits of memory and processors are enforced. Without root they are if the
            machine's control groups permit it.
        layered_volumes: files can be copied out of a volume that is itself a mount.
        needs_start_gate: a container can be pre-started only behind a start gate
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
        digest: ``sha256:...`` of the image in the registry *of the requested name*. An image that
            was built locally and never pushed has none; containerd's image store and Podman report
            the digest of its local manifest instead.
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
        image: the requested name.
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
        digest: the manifest's digest, as the registry reported it; empty if the build's steps
            control the registry.
        size_bytes: size of the image unpacked, as `docker images` shows it.
        layers_pushed: layers that were sent.
        layers_reused: layers that the registry already had. Podman reports neither: both are 0.
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
        identity_token: a token that the registry's token service exchanges for an access token.
    """

    username: str = ""
    password: str = ""
    identity_token: str = ""

    def __repr__(self) -> str:
        """Keep secrets out of messages, logs and crash dumps."""
        return f"RegistryLogin(username={self.username!r})"


class Mount(msgspec.Struct, frozen=True, kw_only=True):
    """A mount in a container.

    Attributes:
        source: a volume's name, or an absolute path of the engine's machine when ``bind``.
        target: absolute path in the container.
        bind: source is a path.
        read_only: the container can't write to it.
        no_copy: an empty volume stays empty, even if the image has files at ``target``. Otherwise
            the engine copies the image's files in, as Docker does.
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
        image: name or id of an image that the engine has.
        entrypoint: None keeps the image's; otherwise replaces it (and drops the image's command).
        cmd: arguments; None keeps the image's command.
        env: ``KEY=VALUE``, passed by the API and never by an argv.
        workdir: absolute.
        mounts: in this order.
        network: a network's name, or ``none``.
        network_aliases: names of the container on ``network``.
        extra_hosts: ``name:address`` entries for /etc/hosts.
        labels: see LABEL_*.
        privileged: run privileged.
        cpus: processors, None for no limit.
        memory_bytes: memory, None for no limit.
        keep_log: the engine keeps the output so that a later process can read it again; False
            streams it only to attached clients (faster).
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
    """A chunk of a container's stderr; plain `bytes` are its stdout."""

    __slots__ = ()


class FoundContainer(msgspec.Struct, frozen=True):
    """An existing container.

    Attributes:
        id: its id.
        labels: its labels.
        was_started: it runs, or has run; False if it was only created.
        has_ended: it has run, and no longer runs.
    """

    id: str
    labels: dict[str, str]
    was_started: bool
    has_ended: bool


class ContainerExit(msgspec.Struct, frozen=True):
    """The end of a container. ``code`` is 137 after a kill; ``oom_killed`` if memory ran out."""

    code: int
    oom_killed: bool = False


class OwnedResources(msgspec.Struct, frozen=True):
    """Names of the resources with some labels."""

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
    """Images of the engine, and their transfers from and to registries."""

    def find_image(self, name: str) -> ImageInfo | None:
        """Return the engine's image of that ``name`` (tag, digest or id), or None."""
        ...

    def tags_of(self, repository: str) -> tuple[str, ...]:
        """Return the engine's tags of ``repository`` (a name without a tag), sorted."""
        ...

    def tag_image(self, image: str, name: str) -> bool:
        """Give an image, by id, another name. Returns False if the image does not exist."""
        ...

    def untag_image(self, name: str) -> None:
        """Remove a name of an image. An unused image is deleted with its last name."""
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
        """Make an image of one layer from a root file system (a tar stream). Returns its id.

        ``name`` moves from the image that had it before.
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
        """Try once to pull ``name``, with the user's registry credentials unless ``anonymous``.

        Raises:
            ImagePullError: ``transient`` says whether to retry.
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
        """Try once to push ``name`` (with a tag). Returns once the registry has confirmed a digest.

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
        """Create a bridge network unless one of that name exists.

        Args:
            name: its name.
            labels: its labels if it is created.
            address_range: its addresses if it is created; None lets the engine choose.
        """
        ...

    def remove_network(self, name: str) -> bool:
        """Remove the network unless containers are on it. Returns whether it no longer exists."""
        ...

    def network_members(self, name: str) -> tuple[NetworkMember, ...]:
        """Return the running containers on the network."""
        ...

    def create_volume(
        self, name: str, labels: Mapping[str, str], *, options: Mapping[str, str] | None = None
    ) -> str:
        """Create a volume (``options``: of the local driver: type, device, o).

        Returns:
            The volume's folder on the engine's machine.
        """
        ...

    def remove_volume(self, name: str) -> None:
        """Remove a volume with its content."""
        ...

    def list_owned(self, labels: Mapping[str, str]) -> OwnedResources:
        """Return the resources with all of ``labels`` (an empty value matches any value)."""
        ...

    def find_containers(self, labels: Mapping[str, str]) -> tuple[FoundContainer, ...]:
        """Return the containers that `list_owned` finds, with their states."""
        ...

    def label_values(self, label: str) -> tuple[str, ...]:
        """Return every value of ``label`` on any container, volume or network, sorted."""
        ...


class Containers(Protocol):
    """The life of a container: create, (attach), start, wait, remove."""

    def create_container(self, spec: ContainerSpec) -> str:
        """Create a container without starting it. Returns its id.

        Raises:
            ContainerNameTaken: another container has that name.
            EngineError: the image is missing.
        """
        ...

    def prepare_start(self, container_id: str) -> None:
        """Do the preparations of an attached `start_container` ahead of time.

        For a container that starts some time later. Optional; a second call does nothing.

        Raises:
            EngineError: the container does not exist.
        """
        ...

    def start_ahead(self, container_id: str) -> None:
        """Do an attached start except for running the program, which `start_container` does later.

        Does the same as `prepare_start` if the engine needs a gate and the container has none.

        Raises:
            EngineError: the container can't start.
        """
        ...

    def start_container(self, container_id: str, *, attach: bool) -> Iterator[bytes]:
        """Start a container; ``attach`` attaches *before* the start, so that no byte is missed.

        Returns:
            An iterator of chunks of stdout and stderr (`ErrorOutput`) in order of arrival (neither
            whole lines nor valid UTF-8). It ends when the container's output ends. It is empty
            without ``attach``. The container has been started when this method returns.

        Raises:
            EngineError: it can't start (entrypoint not found, ...). The message is for the user.
            GateRefused: the gate did not run its program. The iterator may raise this error, too.
        """
        ...

    def follow_container(self, container_id: str) -> Iterator[bytes]:
        """Return all output of a started container with ``keep_log``, from its first byte.

        The result is that of `start_container`, for a process that did not start the container.
        The order within stdout and within stderr is the same; their interleaving may differ. A
        program that waits behind a gate is run first. Raises GateRefused as `start_container` does.
        """
        ...

    def wait_container(self, container_id: str) -> ContainerExit:
        """Wait until the container has ended."""
        ...

    def kill_container(self, container_id: str, signal: str = "SIGKILL") -> None:
        """Send a signal. Does nothing if the container does not run."""
        ...

    def remove_container(self, container_id: str) -> None:
        """Kill the container if it runs, and remove it with its anonymous volumes."""
        ...

    def remove_unstarted(self, container: str) -> bool:
        """Remove a container, by id or name, unless it was started. Returns whether it is gone.

        The engine itself decides: a concurrent start comes either before the removal, and then
        nothing is removed, or after it, and then the start fails. So a container that this method
        removed has never run.

        Raises:
            EngineError: the container ran and ended at the moment of its removal. It is removed.
        """
        ...

    def put_archive(self, container_id: str, path: str, tar: Iterable[bytes]) -> None:
        """Unpack a tar stream at ``path`` in a created or running container.

        On some engines, a member on a mount below ``path`` does not reach the mount.
        """
        ...

    def fill_mount(self, container_id: str, target: str, tar: Iterable[bytes]) -> None:
        """Unpack a tar stream in the mount of a created container at ``target``.

        All names in it begin with ``target`` without its slash. Symbolic links may lead anywhere.
        """
        ...

    def get_archive(self, container_id: str, path: str) -> Iterator[bytes]:
        """Return a tar stream of ``path``. Raises NotFound if the path does not exist.

        Names begin with the last part of ``path``. If that is the root of a mount, Podman's
        begin with a slash instead.
        """
        ...


class ContainerEngine(Images, Resources, Containers, Protocol):
    """A container engine: all parts of the protocol, and its identity."""

    def ping(self, *, anew: bool = False) -> None:
        """Check that the engine answers now.

        Args:
            anew: over a new connection: an engine that shuts down still answers on earlier ones.

        Raises:
            EngineUnavailable: it does not answer within some seconds.
        """
        ...

    def info(self) -> EngineInfo:
        """Return facts about the engine; cached after the first call. Raises EngineUnavailable."""
        ...

    def close(self) -> None:
        """Close all connections. Nothing on the engine changes."""
        ...
