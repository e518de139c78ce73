"""The engine of a build in a Pod.

A step with the engine's socket can replace the engine. So the engine gets no login: it pushes and
pulls through gateways of this process, which add the login. See ADR 0035.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Iterator, Mapping

import msgspec
from msgspec.structs import replace

from buildrunner.addresses import Egress
from buildrunner.builders.catalog import GATEWAY_PORT
from buildrunner.containers.docker.errors import Stopped
from buildrunner.containers.docker.images import check_is_pulled
from buildrunner.containers.forwarding import Answer, ForwardingEngine
from buildrunner.containers.image_name import ImageName
from buildrunner.containers.protocol import (
    ContainerEngine,
    EngineInfo,
    ImageInfo,
    PushedImage,
    RegistryLogin,
    TransferProgress,
)
from buildrunner.containers.registry_auth import registry_login
from buildrunner.errors import CredentialsError, EngineError, ImagePullError, ImagePushError
from buildrunner.registries.pull_gateway import PullGateway
from buildrunner.registries.push_gateway import RegistryClient
from buildrunner.registries.registry_transport import is_loopback
from buildrunner.sandboxes.nested.container import HostFacts
from buildrunner.sandboxes.nested.gateway_push import (
    SOCKET,
    GatewayPush,
    check_pushed,
    listening,
    registry_place,
    repository_path,
)

DAEMON_FILE = "/etc/docker/daemon.json"
"""The settings of Docker on the worker: they name registries without TLS."""

_PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY")
_LOOK_S = 0.2


class _DaemonSettings(msgspec.Struct):
    insecure: tuple[str, ...] = msgspec.field(name="insecure-registries", default=())


class PodRelay:
    """Implements `GatewayRelay`: the engine forwards `GATEWAY_PORT` to the shared folder.

    The engine is not asked about registries, since the steps control its answers.

    Args:
        environ: names the proxies.
        daemon_file: see `DAEMON_FILE`.
    """

    def __init__(self, environ: Mapping[str, str], daemon_file: str = DAEMON_FILE) -> None:
        self._environ = environ
        self._daemon_file = daemon_file

    def facts(self) -> HostFacts:
        """See `GatewayRelay.facts`.

        Raises:
            EngineError: the settings of Docker can't be read.
        """
        try:
            with open(self._daemon_file, "rb") as file:
                settings = msgspec.json.decode(file.read(), type=_DaemonSettings)
        except FileNotFoundError:
            settings = _DaemonSettings()
        except (OSError, msgspec.DecodeError) as error:
            raise EngineError(f"{self._daemon_file} can't be read: {error}") from error
        return HostFacts(
            identity="",
            arguments=tuple(f"--insecure-registry={one}" for one in settings.insecure),
            proxies=tuple(
                f"{name}={value}"
                for name, value in self._environ.items()
                if name.upper() in _PROXIES and value
            ),
        )

    @contextlib.contextmanager
    def relayed_port(self, container: str, socket_path: str) -> Iterator[int]:  # noqa: ARG002
        """See `GatewayRelay.relayed_port`: the relay exists from the start of the engine."""
        yield GATEWAY_PORT


class PodEngine(ForwardingEngine):
    """The engine of a Pod without logins. Thread-safe.

    Args:
        engine: the engine of the Pod. It uses no logins of its own.
        folder: the folder with the engine's socket, which engine and worker share.
        environ: environment with the settings of the registry logins of builds.
        egress: networks that builds do not reach.
        relay: forwards connections of the engine to this process.
    """

    def __init__(
        self,
        engine: ContainerEngine,
        folder: str,
        environ: Mapping[str, str],
        egress: Egress,
        relay: PodRelay,
    ) -> None:
        self._engine = engine
        self._folder = folder
        self._environ = environ
        self._egress = egress
        self._relay = relay
        self._gateway = GatewayPush(relay, str, lambda: folder, egress)
        self._turn = threading.Lock()  # one socket, one gateway
        self._pulled: dict[str, ImageInfo] = {}

    def _ask(self, question: Callable[[ContainerEngine], Answer]) -> Answer:
        return question(self._engine)

    def info(self) -> EngineInfo:
        """See `ContainerEngine.info`. This process does not see the engine's folders."""
        return replace(super().info(), local=False)

    def find_image(self, name: str) -> ImageInfo | None:
        """See `Images.find_image`."""
        found = super().find_image(name)
        known = self._pulled.get(name)
        if known is None:
            return found
        if found is None and ImageName.parse(name).digest:  # no engine can set such a name
            return known if super().find_image(known.id) else None
        return known if found and found.id == known.id else found

    def pull_image(
        self,
        name: str,
        *,
        on_progress: Callable[[TransferProgress], None],
        cancel: threading.Event,
        anonymous: bool = False,
    ) -> ImageInfo:
        """See `Images.pull_image`. A pull with a login goes through a gateway."""
        check_is_pulled(name)
        registry = ImageName.parse(name).registry
        login = None
        if not anonymous and not is_loopback(registry):
            try:
                login = registry_login(registry, self._environ, cancel)
            except CredentialsError as error:
                raise ImagePullError(str(error), hint=error.hint) from error
            except Stopped as error:
                raise ImagePullError(f"the pull of {name} was cancelled") from error
        if login is None:
            return super().pull_image(
                name, on_progress=on_progress, cancel=cancel, anonymous=anonymous
            )
        with self._turn_of(cancel, ImagePullError(f"the pull of {name} was cancelled")):
            image = self._pull(name, login, on_progress, cancel)
        self._pulled[name] = image
        return image

    def _pull(
        self,
        name: str,
        login: RegistryLogin,
        on_progress: Callable[[TransferProgress], None],
        cancel: threading.Event,
    ) -> ImageInfo:
        requested = ImageName.parse(name)
        path = repository_path(requested)
        reference = requested.digest or requested.tag or "latest"
        place = registry_place(requested.registry, self._relay.facts())
        with (
            RegistryClient(place, path, login, self._egress, pulls_only=True) as client,
            listening(self._folder, SOCKET) as listener,
            PullGateway(listener, client, path, reference) as gateway,
            self._relay.relayed_port("", SOCKET) as port,
        ):
            ours = f"127.0.0.1:{port}"
            inner = f"{ours}/{path}{'@' if requested.digest else ':'}{reference}"
            try:
                image = self._engine.pull_image(
                    inner,
                    on_progress=lambda progress: on_progress(replace(progress, image=name)),
                    cancel=cancel,
                    anonymous=True,
                )
            except ImagePullError as error:
                raise ImagePullError(
                    str(error).replace(ours, requested.registry),
                    transient=error.transient,
                    retry_after_s=error.retry_after_s,
                    hint=error.hint.replace(ours, requested.registry),
                ) from error
        if requested.digest:  # an engine that has the content requests nothing
            return replace(image, digest=requested.digest)
        if not gateway.digest:
            raise ImagePullError(f"the engine says that it has {name}, and did not pull it")
        self._engine.tag_image(image.id, name)
        self._engine.untag_image(inner)
        return replace(image, digest=gateway.digest)

    def push_image(
        self,
        name: str,
        *,
        on_progress: Callable[[TransferProgress], None],
        cancel: threading.Event,
        login: RegistryLogin | None = None,
    ) -> PushedImage:
        """See `Images.push_image`.

        A push with a login goes through a gateway. The pushed digest comes from the registry. A
        registry at a loopback address is controlled by the steps: it gets only their logins,
        and the digest of the push is empty.
        """
        registry = ImageName.parse(name).registry
        if is_loopback(registry):
            pushed = self._engine.push_image(
                name, on_progress=on_progress, cancel=cancel, login=login
            )
            return replace(pushed, digest="")
        try:
            used = login or registry_login(registry, self._environ, cancel)
        except CredentialsError as error:
            raise ImagePushError(str(error), unauthorized=True, hint=error.hint) from error
        except Stopped as error:
            raise ImagePushError(f"the push of {name} was cancelled") from error
        if used is None:
            pushed = self._engine.push_image(name, on_progress=on_progress, cancel=cancel)
            check_pushed(name, pushed, self._gateway.digest_of(name))
            return pushed
        with self._turn_of(cancel, ImagePushError(f"the push of {name} was cancelled")):
            return self._gateway.push(
                self._engine, name, used, on_progress=on_progress, cancel=cancel
            )

    @contextlib.contextmanager
    def _turn_of(self, cancel: threading.Event, cancelled: EngineError) -> Iterator[None]:
        while not self._turn.acquire(timeout=_LOOK_S):
            if cancel.is_set():
                raise cancelled
        try:
            yield
        finally:
            self._turn.release()


def shared_folder(socket_path: str) -> str:
    """Return the folder that worker and engine share, which has the engine's socket.

    Raises:
        EngineError: the engine is not reached by a socket.
    """
    if not socket_path:
        raise EngineError(
            "the engine of a Pod is reached by a socket in a folder that worker and engine share",
            hint="set DOCKER_HOST=unix:///run/buildrunner/docker.sock",
        )
    return os.path.dirname(socket_path)
