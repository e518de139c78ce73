"""The engine of a build in a nested sandbox.

Every call waits until the nested engine is up. If the engine has ended, the call reports why.
Missing images come from the host engine, which pulls them once, with the user's credentials. All
other calls go to the nested engine.

The two engines may know the same image by different ids. To the caller, an image of the host engine
has the id of the host engine, before and after its copy.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Protocol

import msgspec
from msgspec.structs import replace

from buildrunner.containers.docker.errors import Stopped
from buildrunner.containers.forwarding import Answer, ExplainedStream, ForwardingEngine
from buildrunner.containers.image_name import ImageName
from buildrunner.containers.protocol import (
    ContainerEngine,
    ContainerSpec,
    ImageInfo,
    NetworkMember,
    OwnedResources,
    PushedImage,
    RegistryLogin,
    TransferProgress,
)
from buildrunner.errors import (
    CredentialsError,
    EngineError,
    EngineUnavailable,
    ImagePushError,
)
from buildrunner.registries.registry_transport import is_loopback
from buildrunner.sandboxes.nested.container import DATA
from buildrunner.sandboxes.nested.daemon import DaemonState
from buildrunner.sandboxes.nested.gateway_push import check_pushed
from buildrunner.sandboxes.nested.host_pulls import HostPulls
from buildrunner.sandboxes.nested.loopback import (
    is_registry,
    loopback_ports,
)


class NestedAccess(Protocol):
    """The services of a sandbox for its engine.

    Attributes:
        host: the engine that the nested one runs on.
        host_pulls: pulls images that the host engine lacks.
        is_common: returns whether an image of the host engine is for all builds. None: all are.
    """

    host: ContainerEngine
    host_pulls: HostPulls
    is_common: Callable[[str], bool] | None

    def ready(self) -> Running:
        """Wait for the nested engine. Raises EngineUnavailable if it can't start."""
        ...

    def why_gone(self) -> EngineUnavailable | None:
        """Return why the nested engine has ended; None if unknown."""
        ...

    def copy_image(self, image: str, names: Iterable[str], cancel: threading.Event) -> str:
        """Copy an image, by its id on the host engine, under names. Returns its nested id."""
        ...

    def note_use(self, images: Iterable[str]) -> None:
        """Record images, by their ids on the host engine, that the build uses."""
        ...

    def pull_turn(self, name: str) -> AbstractContextManager[None]:
        """Return a context in which no other build pulls an image of this name for itself alone."""
        ...

    def open_port(self, port: int) -> None:
        """Make a port of this machine's loopback address reachable for the nested engine."""
        ...

    def login_for(self, registry: str, cancel: threading.Event) -> RegistryLogin | None:
        """Return the machine's login for a registry; None if there is none."""
        ...

    def push_with(
        self,
        engine: ContainerEngine,
        name: str,
        login: RegistryLogin,
        *,
        on_progress: Callable[[TransferProgress], None],
        cancel: threading.Event,
    ) -> PushedImage:
        """Push from the nested engine with ``login``, which the nested engine does not get."""
        ...

    def digest_of(self, name: str) -> str:
        """Return the digest that a registry has for an image, requested without a login."""
        ...

    def note_push(self) -> None:
        """Record that an image was pushed."""
        ...


class NestedEngine(ForwardingEngine):
    """The engine of a sandbox: calls wait until it is up. If it has ended, they report why.

    Args:
        access: the services of the sandbox.
    """

    def __init__(self, access: NestedAccess) -> None:
        self._access = access
        self._host = access.host
        self._why_gone = access.why_gone
        self._note_use = access.note_use
        self._of_host: dict[str, ImageInfo] = {}  # by requested name
        self._copied: dict[str, str] = {}  # id on the host engine -> id in the nested one
        self.copied_layers: set[str] = set()
        """DiffIDs of the layers that were copied from the host engine."""
        self._copying = threading.Lock()

    def _ask(self, question: Callable[[ContainerEngine], Answer]) -> Answer:
        engine = self._access.ready().engine
        try:
            return question(engine)
        except EngineUnavailable as error:
            raise self._explained(error) from error

    def _explained(self, error: EngineUnavailable) -> EngineUnavailable:
        return self._why_gone() or error

    # -- removals succeed on an engine that has ended, since all its resources ended with it ------

    def _ask_cleaning(
        self, question: Callable[[ContainerEngine], Answer], if_gone: Answer
    ) -> Answer:
        try:
            return self._ask(question)
        except EngineUnavailable:
            if self._why_gone() is None:
                raise
            return if_gone

    def kill_container(self, container_id: str, signal: str = "SIGKILL") -> None:
        """See `Containers.kill_container`."""
        self._ask_cleaning(lambda engine: engine.kill_container(container_id, signal), None)

    def remove_container(self, container_id: str) -> None:
        """See `Containers.remove_container`."""
        self._ask_cleaning(lambda engine: engine.remove_container(container_id), None)

    def remove_network(self, name: str) -> bool:
        """See `Resources.remove_network`."""
        return self._ask_cleaning(lambda engine: engine.remove_network(name), if_gone=True)

    def remove_volume(self, name: str) -> None:
        """See `Resources.remove_volume`."""
        self._ask_cleaning(lambda engine: engine.remove_volume(name), None)

    def list_owned(self, labels: Mapping[str, str]) -> OwnedResources:
        """See `Resources.list_owned`."""
        return self._ask_cleaning(lambda engine: engine.list_owned(labels), OwnedResources())

    def network_members(self, name: str) -> tuple[NetworkMember, ...]:
        """See `Resources.network_members`."""
        return self._ask_cleaning(lambda engine: engine.network_members(name), ())

    def tags_of(self, repository: str) -> tuple[str, ...]:
        """See `Images.tags_of`."""
        return self._ask_cleaning(lambda engine: engine.tags_of(repository), ())

    # -- streams that report why they broke -------------------------------------------------------

    def start_container(self, container_id: str, *, attach: bool) -> Iterator[bytes]:
        """See `Containers.start_container`."""
        return ExplainedStream(
            super().start_container(container_id, attach=attach), self._explained
        )

    def follow_container(self, container_id: str) -> Iterator[bytes]:
        """See `Containers.follow_container`."""
        return ExplainedStream(super().follow_container(container_id), self._explained)

    def get_archive(self, container_id: str, path: str) -> Iterator[bytes]:
        """See `Containers.get_archive`."""
        return ExplainedStream(super().get_archive(container_id, path), self._explained)

    # -- images of the host engine ----------------------------------------------------------------

    def find_image(self, name: str) -> ImageInfo | None:
        """See `Images.find_image`. Images of the host engine count, and are copied when used."""
        inside = self._inside(name)
        found = self._ask(lambda engine: engine.find_image(inside))
        if found is None:
            on_host = self._on_host(name)
            if on_host is not None:
                self._of_host[name] = on_host
            return on_host
        host_id = self._host_ids().get(found.id)
        if host_id is None:
            return found
        self._note_use((host_id,))
        known = self._of_host.get(name)
        if known is not None and known.id == host_id:
            return known  # the host engine has the registry's digest, which a copy loses
        return replace(found, id=host_id)

    def pull_image(
        self,
        name: str,
        *,
        on_progress: Callable[[TransferProgress], None],
        cancel: threading.Event,
        anonymous: bool = False,
    ) -> ImageInfo:
        """See `Images.pull_image`. The host engine pulls images that it lacks.

        Without a login (``anonymous``), the nested engine pulls the image, since the host engine
        may have pulled its image with a login. The nested engine's image counts for the disk limit,
        and is deleted with the sandbox.
        """
        if anonymous:
            pulled: ImageInfo = self._ask(
                lambda engine: engine.pull_image(
                    name, on_progress=on_progress, cancel=cancel, anonymous=True
                )
            )
            return pulled
        if self._access.is_common is not None and not self._access.is_common(name):
            return self._pull_alone(name, on_progress, cancel)
        image = self._host.find_image(name) or self._access.host_pulls.pull(
            name, on_progress=on_progress, cancel=cancel
        )
        self._of_host[name] = image
        here = self._ask(lambda engine: engine.find_image(name))
        if here is None or here.id != self._inside(image.id):
            with self._copying:
                self._take_copy(image, cancel)
        return image

    def _pull_alone(
        self,
        name: str,
        on_progress: Callable[[TransferProgress], None],
        cancel: threading.Event,
    ) -> ImageInfo:
        """Pull with the logins of the build's project, and leave no image to other projects.

        The registry decides whether the project may have the image, even if the host engine has it.
        """
        with self._access.pull_turn(name):
            before, image = self._host.find_image(name), None
            try:
                image = self._access.host_pulls.pull(name, on_progress=on_progress, cancel=cancel)
                self._of_host[name] = image
                with self._copying:
                    self._take_copy(image, cancel)
            finally:
                self._access.host_pulls.restore(name, before, image)
        return image

    def _on_host(self, name: str) -> ImageInfo | None:
        """Return the host engine's image of a name or id, if the build may see it."""
        is_common = self._access.is_common
        known = {image.id for image in tuple(self._of_host.values())}
        if is_common is None or name in known or is_common(name):
            return self._host.find_image(name)
        return None

    def have_image(self, image: str, cancel: threading.Event) -> None:
        """Copy an image, by name or id, that the host engine has and the nested one lacks.

        Raises:
            EngineError: the image can't be copied, or ``cancel`` was set.
        """
        with self._copying:
            inside = self._inside(image)
            if self._ask(lambda engine: engine.find_image(inside)) is None:
                on_host = self._on_host(image)
                if on_host is not None:
                    if image != on_host.id:
                        self._of_host[image] = on_host
                    self._take_copy(on_host, cancel)

    def _take_copy(self, image: ImageInfo, cancel: threading.Event) -> None:
        host_id = image.id
        self._note_use((host_id,))
        requested = [name for name, one in tuple(self._of_host.items()) if one.id == host_id]
        known = [
            name for name, one in self._access.ready().images.missing.items() if one == host_id
        ]
        names = {*requested, *known} - {host_id}
        self._copied[host_id] = self._ask(lambda _: self._access.copy_image(host_id, names, cancel))
        self.copied_layers.update(image.layers)

    def _ids(self) -> dict[str, str]:
        """Return the nested engine's ids, by those of the host engine."""
        return {**self._access.ready().images.ids, **self._copied}

    def _host_ids(self) -> dict[str, str]:
        return {inside: host_id for host_id, inside in self._ids().items()}

    def _inside(self, name: str) -> str:
        """Return the image's id in the nested engine, for a name or id of the caller."""
        return self._ids().get(name, name)

    def create_container(self, spec: ContainerSpec) -> str:
        """See `Containers.create_container`. An image that a step has removed is copied again."""
        self.have_image(spec.image, threading.Event())
        wanted = replace(spec, image=self._inside(spec.image))
        return self._ask(lambda engine: engine.create_container(wanted))

    def push_image(
        self,
        name: str,
        *,
        on_progress: Callable[[TransferProgress], None],
        cancel: threading.Event,
        login: RegistryLogin | None = None,
    ) -> PushedImage:
        """See `Images.push_image`.

        The engine never gets a login, since the steps can replace it. The pushed digest comes
        from the registry. A registry of a step at a loopback address of the sandbox is
        controlled by the steps, too: the digest of such a push is empty.
        """
        self.have_image(name, cancel)
        registry = ImageName.parse(name).registry
        ports = [port for port in loopback_ports(name) if is_registry(port)]
        is_inside = is_loopback(registry) and not ports
        used = login or self._machine_login(name, cancel)
        if used is not None and not is_inside:
            pushed = self._ask(
                lambda engine: self._access.push_with(
                    engine, name, used, on_progress=on_progress, cancel=cancel
                )
            )
        else:
            for port in ports:
                self._access.open_port(port)
            pushed = self._ask(
                lambda engine: engine.push_image(
                    name, on_progress=on_progress, cancel=cancel, login=login
                )
            )
            if is_inside:
                pushed = replace(pushed, digest="")
            else:
                check_pushed(name, pushed, self._access.digest_of(name))
        self._access.note_push()
        return pushed

    def _machine_login(self, name: str, cancel: threading.Event) -> RegistryLogin | None:
        try:
            return self._access.login_for(ImageName.parse(name).registry, cancel)
        except CredentialsError as error:
            raise ImagePushError(str(error), unauthorized=True, hint=error.hint) from error
        except Stopped as error:
            raise ImagePushError(f"the push of {name} was cancelled") from error

    def create_volume(
        self, name: str, labels: Mapping[str, str], *, options: Mapping[str, str] | None = None
    ) -> str:
        """See `Resources.create_volume`. Returns the folder's path on this machine.

        Raises:
            EngineError: the engine, which steps can replace, names another folder.
        """
        folder = self._ask(lambda engine: engine.create_volume(name, labels, options=options))
        below = f"volumes/{name}/_data"
        if folder != f"{DATA}/{below}":
            raise EngineError(f"the build's engine says that the volume {name} is at {folder!r}")
        return os.path.join(self._access.ready().data_folder, below)


class SandboxImages(msgspec.Struct, frozen=True, kw_only=True):
    """The host engine's images at the start of a sandbox.

    Attributes:
        ids: images that the nested engine has: the host engine's id -> its own id.
        missing: images that it lacks: name -> id on the host engine.
        aging: see `SharedImages`.
        diff_ids: layers that it has; empty if unknown.
    """

    ids: dict[str, str] = {}
    missing: dict[str, str] = {}
    aging: dict[str, str] = {}
    diff_ids: frozenset[str] = frozenset()


class Running(msgspec.Struct, frozen=True, kw_only=True):
    """A nested engine that answers.

    Attributes:
        state: its state when it was found or started.
        engine: the sandbox closes it.
        data_folder: folder of its data on this machine.
        images: its images at the start.
    """

    state: DaemonState
    engine: ContainerEngine
    data_folder: str
    images: SandboxImages = SandboxImages()
