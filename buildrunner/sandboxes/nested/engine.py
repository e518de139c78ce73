"""The engine in a nested sandbox, as a build sees it.

Every call waits until the engine is up, and says why when it is gone. Images that it lacks come
from the host engine, which pulls them once, with the user's credentials. All else goes straight to
the nested engine.

The two engines may know the same image by different ids. To the caller, an image of the host engine
has the id of the host engine, before and after it was copied.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Protocol, runtime_checkable

import msgspec
from msgspec.structs import replace

from buildrunner.containers.docker.errors import Stopped
from buildrunner.containers.forwarding import Answer, ForwardingEngine
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
        host_pulls: pulls the images that the host engine does not have.
        is_common: whether an image of the host engine, by name, is for all builds. None: each is.
    """

    host: ContainerEngine
    host_pulls: HostPulls
    is_common: Callable[[str], bool] | None

    def ready(self) -> Running:
        """Wait for the nested engine. Raises EngineUnavailable if it can't be had."""
        ...

    def why_gone(self) -> EngineUnavailable | None:
        """Return why the nested engine does not answer any more; None if that is not known."""
        ...

    def copy_image(self, image: str, names: Iterable[str], cancel: threading.Event) -> str:
        """Copy an image, by its id on the host engine, under names; its id in the nested one."""
        ...

    def note_use(self, images: Iterable[str]) -> None:
        """Note images, by their ids on the host engine, that the build uses."""
        ...

    def pull_turn(self, name: str) -> AbstractContextManager[None]:
        """Wait until no other build pulls an image for itself alone; until the end, none does."""
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
        """Push from the nested engine with such a login, which does not go there."""
        ...

    def digest_of(self, name: str) -> str:
        """Return the digest that a registry has for an image, asked without a login."""
        ...

    def note_push(self) -> None:
        """Note that something was pushed."""
        ...


class NestedEngine(ForwardingEngine):
    """The engine of a sandbox: calls wait until it is up, and say why when it is gone.

    Args:
        access: the services of the sandbox.
    """

    def __init__(self, access: NestedAccess) -> None:
        self._access = access
        self._host = access.host
        self._why_gone = access.why_gone
        self._note_use = access.note_use
        self._of_host: dict[str, ImageInfo] = {}  # by the name that was asked for
        self._copied: dict[str, str] = {}  # id on the host engine -> id in the nested one
        self.copied_layers: set[str] = set()
        """DiffIDs of the layers that were copied from the host engine."""
        self._copying = threading.Lock()

    def _ask(self, question: Callable[[ContainerEngine], Answer]) -> Answer:
        engine = self._access.ready().engine
        try:
            return question(engine)
        except EngineUnavailable as error:
            raise self._why_gone() or error from error

    # -- an engine that is gone has taken along everything that it held ---------------------------

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

    # -- streams: when one breaks, it says why ----------------------------------------------------

    def start_container(self, container_id: str, *, attach: bool) -> Iterator[bytes]:
        """See `Containers.start_container`."""
        return _Output(super().start_container(container_id, attach=attach), self._why_gone)

    def follow_container(self, container_id: str) -> Iterator[bytes]:
        """See `Containers.follow_container`."""
        return _Output(super().follow_container(container_id), self._why_gone)

    def get_archive(self, container_id: str, path: str) -> Iterator[bytes]:
        """See `Containers.get_archive`."""
        return _Output(super().get_archive(container_id, path), self._why_gone)

    # -- images of the host engine ----------------------------------------------------------------

    def find_image(self, name: str) -> ImageInfo | None:
        """See `Images.find_image`. What the host engine has counts, and is copied when used."""
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
            return known  # it knows the registry's digest, which is lost in a copy
        return replace(found, id=host_id)

    def pull_image(
        self,
        name: str,
        *,
        on_progress: Callable[[TransferProgress], None],
        cancel: threading.Event,
        anonymous: bool = False,
    ) -> ImageInfo:
        """See `Images.pull_image`. The host engine pulls what it does not have.

        Without a login, the nested engine pulls it: what the host engine has may have come with a
        login. The image counts for the limit of the disk, and goes with the sandbox.
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

        The registry decides whether the project may have the image, also if the host engine has it.
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
        """The image that the host engine has under a name or id, if the build may see it."""
        is_common = self._access.is_common
        known = {image.id for image in tuple(self._of_host.values())}
        if is_common is None or name in known or is_common(name):
            return self._host.find_image(name)
        return None

    def have_image(self, image: str, cancel: threading.Event) -> None:
        """Copy an image, by name or id, that the host engine has and the nested one has not.

        Raises:
            EngineError: it can't be copied, or ``cancel`` was set.
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
        asked = [name for name, one in tuple(self._of_host.items()) if one.id == host_id]
        known = [
            name for name, one in self._access.ready().images.missing.items() if one == host_id
        ]
        names = {*asked, *known} - {host_id}
        self._copied[host_id] = self._ask(lambda _: self._access.copy_image(host_id, names, cancel))
        self.copied_layers.update(image.layers)

    def _ids(self) -> dict[str, str]:
        """The nested engine's ids, by those of the host engine."""
        return {**self._access.ready().images.ids, **self._copied}

    def _host_ids(self) -> dict[str, str]:
        return {inside: host_id for host_id, inside in self._ids().items()}

    def _inside(self, name: str) -> str:
        """The image's id in the nested engine where the caller asks for ``name``."""
        return self._ids().get(name, name)

    def create_container(self, spec: ContainerSpec) -> str:
        """See `Containers.create_container`. An image that a step has removed comes back."""
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

        A login does not go to the engine, which the steps can replace. What was pushed is known
        from the registry. A registry that a step has at a loopback address of the sandbox is
        in the hands of the steps, too: the digest of such a push is empty.
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
        """See `Resources.create_volume`. The folder is given as this machine sees it.

        Raises:
            EngineError: the engine, which steps can replace, names another folder.
        """
        folder = self._ask(lambda engine: engine.create_volume(name, labels, options=options))
        below = f"volumes/{name}/_data"
        if folder != f"{DATA}/{below}":
            raise EngineError(f"the build's engine says that the volume {name} is at {folder!r}")
        return os.path.join(self._access.ready().data_folder, below)


@runtime_checkable
class Closable(Protocol):
    """Something that is closed before its end."""

    def close(self) -> None:
        """Close it."""
        ...


class _Output:
    """A stream of the engine; when it breaks, it says why."""

    def __init__(
        self, stream: Iterator[bytes], why_gone: Callable[[], EngineUnavailable | None]
    ) -> None:
        self._stream = stream
        self._why_gone = why_gone

    def __iter__(self) -> _Output:
        return self

    def __next__(self) -> bytes:
        try:
            return next(self._stream)
        except EngineUnavailable as error:
            raise self._why_gone() or error from error

    def close(self) -> None:
        """Stop reading, as a generator's ``close`` does."""
        if isinstance(self._stream, Closable):
            self._stream.close()


class SandboxImages(msgspec.Struct, frozen=True, kw_only=True):
    """The host engine's images, as a sandbox finds them at its start.

    Attributes:
        ids: of those that the nested engine has: the host engine's id -> its own id.
        missing: name -> id on the host engine, of those that it has not.
        aging: see `SharedImages`.
        diff_ids: layers that it has; none when that is not known.
    """

    ids: dict[str, str] = {}
    missing: dict[str, str] = {}
    aging: dict[str, str] = {}
    diff_ids: frozenset[str] = frozenset()


class Running(msgspec.Struct, frozen=True, kw_only=True):
    """A nested engine that answers.

    Attributes:
        state: as it was when it was found or started.
        engine: the sandbox closes it.
        data_folder: its data as a folder of this machine.
        images: what it began with.
    """

    state: DaemonState
    engine: ContainerEngine
    data_folder: str
    images: SandboxImages = SandboxImages()
