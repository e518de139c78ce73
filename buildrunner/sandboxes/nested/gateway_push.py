"""Pushes from a nested engine, whose steps can replace it.

The engine never sees a login, and its report of a push is not trusted. The digest of a push is the
digest of the manifest that the registry accepted from the gateway, or that it returns afterwards.
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Protocol

import httpx
from msgspec.structs import replace

from buildrunner.addresses import Egress
from buildrunner.containers.image_name import ImageName
from buildrunner.containers.protocol import (
    ContainerEngine,
    PushedImage,
    RegistryLogin,
    TransferProgress,
)
from buildrunner.deadline import Deadline
from buildrunner.errors import BuildrunnerError, EngineError, ImagePushError
from buildrunner.registries.push_gateway import PushGateway, RegistryClient, RegistryPlace
from buildrunner.sandboxes.nested.container import FOLDER, HostFacts

SOCKET = "push.sock"  # no longer than the name of the engine's socket: paths of sockets are limited
_ANSWER_S = 60.0
# The limit of a push, besides the time for its bytes: a registry may send a byte now and then.
_ANSWERS_S = 600.0
_SLOWEST_BYTES_PER_S = 64 << 10
_INSECURE = "--insecure-registry="


class GatewayRelay(Protocol):
    """Forwards connections of a build's engine to a gateway of this process."""

    def facts(self) -> HostFacts:
        """Return the settings by which registries are reached."""
        ...

    def relayed_port(self, container: str, socket_path: str) -> AbstractContextManager[int]:
        """Forward a port of the engine's loopback address to a socket. The context has the port.

        Args:
            container: container of the engine.
            socket_path: path of the socket in the container.
        """
        ...


class GatewayPush:
    """Pushes images of one sandbox.

    Args:
        relay: forwards connections of the engine.
        container: returns the sandbox's container, once it runs.
        folder: returns the folder of this machine that is `FOLDER` in the sandbox.
        egress: the networks that the sandbox may reach.
    """

    def __init__(
        self,
        relay: GatewayRelay,
        container: Callable[[], str],
        folder: Callable[[], str],
        egress: Egress,
    ) -> None:
        self._egress = egress
        self._relay = relay
        self._container = container
        self._folder = folder

    def push(
        self,
        engine: ContainerEngine,
        name: str,
        login: RegistryLogin,
        *,
        on_progress: Callable[[TransferProgress], None],
        cancel: threading.Event,
    ) -> PushedImage:
        """Push an image that ``engine`` has under ``name``, like `Images.push_image`.

        Raises:
            ImagePushError: the push failed, was too slow for its size, or ``cancel`` was set.
        """
        requested = ImageName.parse(name)
        path = repository_path(requested)
        tag = requested.tag or "latest"
        place = registry_place(requested.registry, self._relay.facts())
        found = engine.find_image(name)
        limit_s = _ANSWERS_S + (found.size_bytes if found else 0) / _SLOWEST_BYTES_PER_S
        with (
            Deadline(limit_s) as deadline,
            RegistryClient(place, path, login, self._egress, deadline=deadline) as client,
            listening(self._folder(), SOCKET) as listener,
            PushGateway(listener, client, path, tag) as gateway,
            self._relay.relayed_port(self._container(), f"{FOLDER}/{SOCKET}") as port,
        ):
            ours = f"127.0.0.1:{port}"
            inner = f"{ours}/{path}:{tag}"
            if not engine.tag_image(name, inner):
                raise ImagePushError(f"the engine has no image {name} to push")
            try:
                pushed = engine.push_image(
                    inner,
                    on_progress=lambda progress: on_progress(replace(progress, image=name)),
                    cancel=cancel,
                )
            except ImagePushError as error:
                raise ImagePushError(
                    str(error).replace(ours, requested.registry),
                    transient=error.transient,
                    unauthorized=error.unauthorized,
                    retry_after_s=error.retry_after_s,
                    hint=error.hint.replace(ours, requested.registry),
                ) from error
            finally:
                with contextlib.suppress(EngineError):
                    engine.untag_image(inner)
        check_pushed(name, pushed, gateway.digest)
        lines = (line.replace(ours, requested.registry) for line in pushed.log)
        return replace(pushed, name=f"{requested.repository}:{tag}", log=tuple(lines))

    def digest_of(self, name: str) -> str:
        """Return the digest that the registry has for an image, requested without a login.

        Raises:
            ImagePushError: the registry refuses, or does not answer within a minute.
        """
        requested = ImageName.parse(name)
        place = registry_place(requested.registry, self._relay.facts())
        with Deadline(_ANSWER_S) as deadline:
            try:
                with RegistryClient(
                    place, repository_path(requested), None, self._egress, deadline=deadline
                ) as client:
                    digest = client.digest_of(requested.tag or "latest")
                if deadline.is_over:  # a closed connection may look like the end of the answer
                    raise httpx.ReadTimeout(f"no answer within {_ANSWER_S:g} s")
            except BuildrunnerError as error:
                raise ImagePushError(
                    _unconfirmed(name, error), hint=error.hint, transient=deadline.is_over
                ) from error
            except httpx.HTTPError as error:
                raise ImagePushError(_unconfirmed(name, error), transient=True) from error
        return digest


def check_pushed(name: str, pushed: PushedImage, digest: str) -> None:
    """Compare the report of an engine with the digest that the registry has for the image.

    Raises:
        ImagePushError: they differ.
    """
    if pushed.digest != digest:
        raise ImagePushError(
            f"the registry has {digest or 'nothing'} as {name} after the push of {pushed.digest}",
            transient=True,
        )


def _unconfirmed(name: str, error: Exception) -> str:
    reason = str(error) or type(error).__name__
    return f"the registry does not tell what it has as {name} after the push: {reason}"


def registry_place(registry: str, facts: HostFacts) -> RegistryPlace:
    """Return how the machine's engine reaches a registry."""
    insecure = [
        argument.removeprefix(_INSECURE)
        for argument in facts.arguments
        if argument.startswith(_INSECURE)
    ]
    return RegistryPlace(registry=registry, insecure=tuple(insecure), proxies=facts.proxies)


def repository_path(requested: ImageName) -> str:
    """Return the name of the repository in its registry."""
    if requested.registry == "docker.io":
        return requested.familiar if "/" in requested.familiar else f"library/{requested.familiar}"
    return requested.repository.removeprefix(f"{requested.registry}/")


@contextlib.contextmanager
def listening(folder: str, name: str) -> Iterator[socket.socket]:
    """Yield a listening socket in the folder shared with the sandbox. Steps may write there."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name, dir_fd=descriptor)
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(f"/proc/self/fd/{descriptor}/{name}")
            listener.listen(64)
            yield listener
    finally:
        with contextlib.suppress(OSError):
            os.unlink(name, dir_fd=descriptor)
        os.close(descriptor)
