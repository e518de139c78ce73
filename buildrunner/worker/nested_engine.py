"""The engine in a nested sandbox, as a build sees it.

Every call waits until the engine is up, and says why when it is gone. Images come from the host
engine, which is the cache of all nested ones: it pulls, with the user's credentials, each image
once. All else goes straight to the nested engine.
"""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING, Any

from buildrunner.containers.engine_types import OwnedResources
from buildrunner.containers.loopback import loopback_ports
from buildrunner.containers.nested_container import DATA
from buildrunner.errors import EngineUnavailable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from buildrunner.containers.engine_protocol import ContainerEngine
    from buildrunner.containers.engine_types import (
        ContainerSpec,
        ImageInfo,
        PushedImage,
        RegistryLogin,
        TransferProgress,
    )


# What is asked for when cleaning up, and the answer once the engine is gone with all it held.
_GONE_WITH_IT: dict[str, Any] = {
    "kill_container": None,
    "list_owned": OwnedResources(),
    "network_members": (),
    "remove_container": None,
    "remove_network": True,
    "remove_volume": None,
}


class NestedEngine:
    """Implements `ContainerEngine`.

    What it does not do itself is passed on by `__getattr__`, so that it has whatever the protocol
    has.

    Args:
        ready: waits for the nested engine and gives it; raises EngineUnavailable when it can't be.
        why_gone: says why the nested engine does not answer any more; None when that is not known.
        host: the engine that it runs on.
        data_folder: the nested engine's data as a folder of this machine, once it is ready.
        copy: copies an image (by name) from the host engine.
        open_port: makes a port of this machine's loopback address reachable for it.
        on_pushed: told after each push.
    """

    def __init__(
        self,
        *,
        ready: Callable[[], ContainerEngine],
        why_gone: Callable[[], EngineUnavailable | None],
        host: ContainerEngine,
        data_folder: Callable[[], str],
        copy: Callable[[str, threading.Event], None],
        open_port: Callable[[int], None],
        on_pushed: Callable[[], None],
    ) -> None:
        self._ready = ready
        self._why_gone = why_gone
        self._host = host
        self._data_folder = data_folder
        self._copy = copy
        self._open_port = open_port
        self._on_pushed = on_pushed
        self._of_host: dict[str, ImageInfo] = {}  # by the name that was asked for
        self._names: dict[str, str] = {}  # id -> that name
        self._fetching = threading.Lock()

    def __getattr__(self, name: str) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            try:
                return self._ask(lambda engine: getattr(engine, name)(*arguments, **named))
            except EngineUnavailable:
                if name in _GONE_WITH_IT and self._why_gone() is not None:
                    return _GONE_WITH_IT[name]
                raise

        return call

    def _ask(self, question: Callable[[ContainerEngine], Any]) -> Any:
        engine = self._ready()
        try:
            answer = question(engine)
        except EngineUnavailable as error:
            raise self._why_gone() or error from error
        return _Output(answer, self._why_gone) if hasattr(answer, "__next__") else answer

    def find_image(self, name: str) -> ImageInfo | None:
        """See `Images.find_image`. What the host engine has counts: it is copied when it is used.

        Mostly all of that is here already, without a copy.
        """
        found: ImageInfo | None = self._ask(lambda engine: engine.find_image(name))
        known = self._of_host.get(name)
        if found is None:
            found = known = self._host.find_image(name)
            if known is not None:
                self._of_host[name] = known
                self._names[known.id] = name
        elif known is not None and known.id == found.id:
            found = known  # it knows the registry's digest, which is lost in a copy
        return found

    def pull_image(
        self,
        name: str,
        *,
        on_progress: Callable[[TransferProgress], None],
        cancel: threading.Event,
        anonymous: bool = False,
    ) -> ImageInfo:
        """See `Images.pull_image`. The host engine pulls what it does not have.

        Without a login it always asks the registry: what it has may have come with one.
        """
        image = None if anonymous else self._host.find_image(name)
        if image is None:
            image = self._host.pull_image(
                name, on_progress=on_progress, cancel=cancel, anonymous=anonymous
            )
        self._of_host[name] = image
        self._names[image.id] = name
        here: ImageInfo | None = self._ask(lambda engine: engine.find_image(name))
        if here is None or here.id != image.id:
            self._ask(lambda _: self._copy(name, cancel))
        return image

    def create_container(self, spec: ContainerSpec) -> str:
        """See `Containers.create_container`."""
        self._fetch(spec.image)
        created: str = self._ask(lambda engine: engine.create_container(spec))
        return created

    def _fetch(self, image: str) -> None:
        """Copy an image, by name or id, that was found on the host engine and is not here."""
        name = self._names.get(image) or (image if image in self._of_host else "")
        if not name:
            return
        with self._fetching:
            if self._ask(lambda engine: engine.find_image(image)) is None:
                self._ask(lambda _: self._copy(name, threading.Event()))

    def push_image(
        self,
        name: str,
        *,
        on_progress: Callable[[TransferProgress], None],
        cancel: threading.Event,
        login: RegistryLogin | None = None,
    ) -> PushedImage:
        """See `Images.push_image`. A registry on this machine's loopback address is reached."""
        if self.find_image(name) is not None:
            self._fetch(name)
        for port in loopback_ports(name):
            self._open_port(port)
        pushed: PushedImage = self._ask(
            lambda engine: engine.push_image(
                name, on_progress=on_progress, cancel=cancel, login=login
            )
        )
        self._on_pushed()
        return pushed

    def create_volume(
        self, name: str, labels: Mapping[str, str], *, options: Mapping[str, str] | None = None
    ) -> str:
        """See `Resources.create_volume`. The folder is given as this machine sees it."""
        folder: str = self._ask(lambda engine: engine.create_volume(name, labels, options=options))
        return os.path.join(self._data_folder(), os.path.relpath(folder, DATA))


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

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
