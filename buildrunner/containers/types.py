"""Values that an engine and its caller exchange: images, containers, exit results."""

from __future__ import annotations

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
