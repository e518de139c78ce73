"""The seam between buildrunner and whatever runs containers.

Three protocols, so that whoever needs one does not see the others: `Images` (find, pull, push),
`Resources` (networks, volumes, files in volumes, the sweep by label), `Containers` (one
container's life). `ContainerEngine` is all three. `docker.py` and `fake.py` implement it and pass
the same contract suite (tests/contract/test_container_engine.py). Their arguments and results are
in types.py.

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

from buildrunner.containers.types import (
    AddressRange,
    ContainerExit,
    ContainerSpec,
    EngineInfo,
    FoundContainer,
    ImageInfo,
    NetworkMember,
    OwnedResources,
    PushedImage,
    RegistryLogin,
    TransferProgress,
)


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
