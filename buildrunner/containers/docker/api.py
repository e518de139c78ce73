"""The Docker Engine API of one engine, by `docker.APIClient`, and the differences between engines.

Importing the SDK takes some 90 ms. It is imported with the first request, or by `submit` right
before it requests the network.

`Capabilities` decides everything that buildrunner does in two ways, once per engine, by what the
engine answers to its first request. Code elsewhere reads a field and never the engine's name.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from buildrunner.containers.docker.endpoint import Endpoint
from buildrunner.containers.docker.errors import Refusal, Stopped
from buildrunner.errors import EngineError, EngineUnavailable

if TYPE_CHECKING:
    from docker import APIClient
    from requests import Response, Session

    from buildrunner.containers.docker.transport import Stream


ANSWER_TIMEOUT_S = 300.0
"""Silence after which an engine counts as unavailable. It is long, since an engine may copy a large
folder of the image into a volume before it has created or started a container."""

NEWEST_VERSION = (1, 44)
"""The API version that this code is written for, and the oldest that Docker 29 supports."""

OLDEST_VERSION = (1, 30)
"""The version of Docker 17.06. Docker 20.10 is the oldest that the tests run on."""

_PING_TIMEOUT_S = 10.0
_LOOK_S = 0.1

_REQUESTS = "http+docker://localhost"
_STREAMS = "http+stream://localhost"


def filters(**values: Iterable[str]) -> str:
    """Return the value of ``filters`` in a query."""
    return json.dumps({name: list(value) for name, value in values.items()})


class DockerApi:
    """The engine's API under one version that both sides know. Thread-safe.

    Args:
        endpoint: the engine's address.
    """

    def __init__(self, endpoint: Endpoint, *, _engine: _Engine | None = None) -> None:
        self._endpoint = endpoint
        self._engine = _engine
        self._lock = threading.Lock()
        self._opened: _Opened | None = None

    @contextmanager
    def client(self) -> Iterator[APIClient]:
        """Yield the SDK's client, for requests and for reading their answers.

        Raises:
            Refusal: the engine answered with an error.
            EngineUnavailable: the engine does not answer.
            EngineError: the answer violates the API.
        """
        client = self._open().client
        from docker.errors import DockerException

        try:
            yield client
        except (
            DockerException,
            ValueError,
            LookupError,
            TypeError,
            AttributeError,
            RecursionError,  # deeply nested JSON
        ) as error:
            raise EngineError(f"the engine's answer can't be understood: {error!r}") from error

    def version(self) -> str:
        """Return the API version in use, e.g. ``1.41``; the first call sends one ``_ping``."""
        return self._open().engine.version

    def capabilities(self) -> Capabilities:
        """Return the capabilities of the engine; the first call sends one ``_ping``."""
        return self._open().engine.capabilities

    def ping(self, *, anew: bool = False) -> None:
        """See `ContainerEngine.ping`."""
        opened = self._open(timeout_s=_PING_TIMEOUT_S)
        try:
            opened.ping(_PING_TIMEOUT_S, _STREAMS if anew else _REQUESTS)
        except Refusal as refusal:  # of a proxy before an engine that is gone
            raise EngineUnavailable(
                f"the engine does not answer: {refusal.message}",
                hint="See whether it runs: `docker info`.",
            ) from refusal

    def send(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
        json: Any = None,
        body: Iterable[bytes] | None = None,
        timeout_s: float | None = ANSWER_TIMEOUT_S,
    ) -> bytes:
        """Send a request for which the SDK has no fitting method. Returns the body of the answer.

        Args:
            method: HTTP method.
            path: encoded, without the API version.
            params: the query.
            headers: further headers of the request.
            json: the request's body.
            body: the request's body, a tar stream in pieces.
            timeout_s: seconds that the engine may be silent; None for no limit.

        Raises:
            Refusal: the engine answered with an error.
            EngineUnavailable: the engine does not answer.
        """
        response = self._request(
            _REQUESTS,
            method,
            path,
            headers=headers,
            body=body,
            params=params,
            json=json,
            timeout=timeout_s,
        )
        return response.content

    def stream(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
        json: Any = None,
        body: Iterable[bytes] | None = None,
        timeout_s: float | None = ANSWER_TIMEOUT_S,
    ) -> Stream:
        """Send a request whose answer is read while it arrives. See `send`.

        The SDK's own streams set no limit to a line, and can't be closed from another thread on
        every kind of connection.
        """
        from buildrunner.containers.docker.transport import Stream

        return Stream(
            self._request(
                _STREAMS,
                method,
                path,
                params=params,
                headers=headers,
                json=json,
                body=body,
                timeout=timeout_s,
                stream=True,
            )
        )

    def _request(
        self,
        prefix: str,
        method: str,
        path: str,
        *,
        headers: Mapping[str, str] | None = None,
        body: Iterable[bytes] | None,
        **options: Any,
    ) -> Response:
        from buildrunner.containers.docker.transport import Upload

        opened = self._open()
        url = f"{prefix}/v{opened.engine.version}{path}"
        if body is None:
            return opened.client.request(method, url, headers=headers, **options)
        upload = Upload(body)
        headers = {**(headers or {}), "Content-Type": "application/x-tar"}
        try:
            return opened.client.request(method, url, data=upload, headers=headers, **options)
        except Exception:
            if upload.failure is not None:
                raise upload.failure from None
            raise

    @contextmanager
    def until(self, cancel: threading.Event) -> Iterator[DockerApi]:
        """Yield this API with requests that end when ``cancel`` is set.

        Raises:
            Stopped: ``cancel`` was set before the block ended.
        """
        own = DockerApi(self._endpoint, _engine=self._open().engine)
        done = threading.Event()

        def watch() -> None:
            while not done.wait(_LOOK_S):
                if cancel.is_set():
                    own.shut_down()

        watcher = threading.Thread(target=watch, name="cancel of a transfer")
        watcher.start()
        try:
            if cancel.is_set():
                raise Stopped
            yield own
        except EngineUnavailable:
            if cancel.is_set():
                raise Stopped from None
            raise
        finally:
            done.set()
            watcher.join()
            own.shut_down()
            own.close()

    def shut_down(self) -> None:
        """End all conversations, from any thread."""
        if self._opened is not None:
            self._opened.shut_down()

    def close(self) -> None:
        """Drop idle connections; later requests open new ones."""
        with self._lock:
            opened, self._opened = self._opened, None
        if opened is not None:
            opened.close()

    def _open(self, timeout_s: float = ANSWER_TIMEOUT_S) -> _Opened:
        opened = self._opened
        if opened is None:
            with self._lock:
                opened = self._opened
                if opened is None:
                    opened = self._opened = _Opened(self._endpoint, self._engine, timeout_s)
        self._engine = opened.engine
        return opened


class _Engine(NamedTuple):
    version: str
    capabilities: Capabilities


class _Opened:
    """The SDK's client of an engine, and its connections.

    Args:
        endpoint: the engine's address.
        engine: its API version and capabilities; None requests them.
        timeout_s: seconds that the engine may take to answer.

    Raises:
        EngineUnavailable: the engine does not answer, or buildrunner does not support it.
    """

    def __init__(self, endpoint: Endpoint, engine: _Engine | None, timeout_s: float) -> None:
        from requests import Session

        from buildrunner.containers.docker.transport import EngineAdapter, EngineClient

        self._adapters = {
            _REQUESTS: EngineAdapter(endpoint, keep=True),
            _STREAMS: EngineAdapter(endpoint, keep=False),
        }
        self._session = Session()
        self._attach(self._session)
        try:
            self.engine = engine or self._introduced(timeout_s)
            self.client = EngineClient(_REQUESTS, self.engine.version, ANSWER_TIMEOUT_S)
        except BaseException:
            self._session.close()
            raise
        self._attach(self.client)

    def ping(self, timeout_s: float, prefix: str) -> Mapping[str, str]:
        """Send a ping, over the connections of a prefix. Returns the headers of the answer."""
        return self._session.get(f"{prefix}/_ping", timeout=timeout_s).headers

    def _introduced(self, timeout_s: float) -> _Engine:
        headers = self.ping(timeout_s, _REQUESTS)
        capabilities = capabilities_of(headers)
        return _Engine(_common_version(headers.get("Api-Version", "")), capabilities)

    def _attach(self, session: Session) -> None:
        session.trust_env = False  # no proxy, and no credentials from .netrc
        session.headers["Accept-Encoding"] = "identity"
        for prefix, adapter in self._adapters.items():
            session.mount(prefix, adapter)

    def shut_down(self) -> None:
        """End all conversations, from any thread."""
        for adapter in self._adapters.values():
            adapter.shut_down()

    def close(self) -> None:
        """Drop idle connections."""
        self.client.close()


def _common_version(offered: str) -> str:
    major, _, minor = offered.partition(".")
    if not (major.isdigit() and minor.isdigit()):
        raise EngineUnavailable(
            "what answers there is not a Docker engine (it names no API version)",
            hint="Point DOCKER_HOST at the socket of a Docker engine.",
        )
    version = min((int(major), int(minor)), NEWEST_VERSION)
    if version < OLDEST_VERSION:
        raise EngineUnavailable(
            f"the engine is too old: it speaks API {offered}, and 1.30 is the least",
            hint="Update it to Docker 17.06 or newer.",
        )
    return f"{version[0]}.{version[1]}"


OLDEST_PODMAN = 5
"""The oldest supported version. Older ones ignore the tag of an imported image, for example."""


class Capabilities(msgspec.Struct, frozen=True, kw_only=True):
    """Capabilities of one kind of engine, and its conventions.

    Attributes:
        product: ``docker`` or ``podman``.
        death_events: ``/events`` reports the end of a container as soon as its process has ended.
        asks_registries: ``/distribution`` returns the digest that a registry has for a name.
        stable_id: the id in ``/info`` is the same at every request.
        names_its_socket: ``/libpod/info`` returns the address that the engine listens on.
        log_driver: the driver that stores a container's output so that another process can read it.
        follows_logs_to_the_end: no line is missing in a followed log of a container that has ended.
        attach_is_passive: a container can be attached to long before it starts. Podman sets the
            container up on attach, and reports the errors of a start.
        removes_joined: a container can be removed while others share its network namespace.
            With Podman, the request must remove those, too.
        mounts_unstarted: the volumes of a container that was never started are mounted while files
            are copied out of it.
        names_folder_itself: the names in an archive of ``FOLDER/.`` begin with ``./``.
        has_buildkit: ``docker buildx build`` and ``DOCKER_BUILDKIT=1`` work.
        unpacks_into_mounts: an archive that is unpacked at the root reaches a container's mounts.
        inline_seccomp: a request holds a seccomp profile; otherwise, the path of one.
        local_prefix: prefix of the names of images from no registry; empty if there is none.
        trust_plain_http: advice on how to make the engine use a registry over plain HTTP; ``{}`` is
            the registry.
    """

    product: str
    death_events: bool
    asks_registries: bool
    stable_id: bool
    names_its_socket: bool
    log_driver: str
    follows_logs_to_the_end: bool
    attach_is_passive: bool
    removes_joined: bool
    mounts_unstarted: bool
    names_folder_itself: bool
    has_buildkit: bool
    unpacks_into_mounts: bool
    inline_seccomp: bool
    local_prefix: str
    trust_plain_http: str


DOCKER = Capabilities(
    product="docker",
    death_events=True,
    asks_registries=True,
    stable_id=True,
    names_its_socket=False,
    log_driver="local",
    follows_logs_to_the_end=True,
    attach_is_passive=True,
    removes_joined=True,
    mounts_unstarted=True,
    names_folder_itself=True,
    has_buildkit=True,
    unpacks_into_mounts=True,
    inline_seccomp=True,
    local_prefix="",
    trust_plain_http='Add "{}" to insecure-registries in daemon.json of the engine.',
)

PODMAN = Capabilities(
    product="podman",
    death_events=False,
    asks_registries=False,
    stable_id=False,
    names_its_socket=True,
    log_driver="k8s-file",
    follows_logs_to_the_end=False,
    attach_is_passive=False,
    removes_joined=False,
    mounts_unstarted=False,
    names_folder_itself=False,
    has_buildkit=False,
    unpacks_into_mounts=False,
    inline_seccomp=False,
    local_prefix="localhost/",
    trust_plain_http='Add a [[registry]] with location = "{}" and insecure = true to '
    "/etc/containers/registries.conf on the engine's machine.",
)


def capabilities_of(headers: Mapping[str, str]) -> Capabilities:
    """Return the capabilities of an engine, given the headers of its answer to ``/_ping``.

    Raises:
        EngineUnavailable: buildrunner does not support the engine.
    """
    version = headers.get("libpod-api-version", "")
    if not version:
        return DOCKER
    major = version.partition(".")[0]
    if not major.isdigit() or int(major) < OLDEST_PODMAN:
        raise EngineUnavailable(
            f"the engine is Podman {version}; buildrunner needs Podman {OLDEST_PODMAN} or newer",
            hint="Update Podman (Debian 13, Ubuntu 25.04 and Fedora 40 have Podman 5), or point "
            "DOCKER_HOST at a Docker engine.",
        )
    return PODMAN
