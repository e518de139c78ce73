"""Requests to the Docker Engine API: its version, JSON both ways."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

import msgspec

from buildrunner.containers.capabilities import DOCKER, Capabilities, capabilities_of
from buildrunner.containers.docker.http import (
    ANSWER_TIMEOUT_S,
    HttpClient,
    PendingResponse,
    Response,
    quoted,
)
from buildrunner.errors import EngineError, EngineUnavailable

NEWEST_VERSION = (1, 44)
"""What this code was written for; newer engines still speak it. Docker 29 speaks nothing older."""

OLDEST_VERSION = (1, 30)
"""``wait?condition=next-exit`` came with it (Docker 17.06)."""

_PING_TIMEOUT_S = 10.0

Model = TypeVar("Model")


def json_body(body: bytes, model: type[Model]) -> Model:
    """An answer's JSON as ``model``; unknown fields are ignored."""
    try:
        return msgspec.json.decode(body, type=model)
    except msgspec.DecodeError as error:
        raise EngineError(f"the engine's answer can't be understood: {error}") from error


def filters(**values: Iterable[str]) -> str:
    """The ``filters=`` part of a query."""
    encoded = msgspec.json.encode({name: list(value) for name, value in values.items()})
    return f"filters={quoted(encoded.decode())}"


class DockerApi:
    """The engine's API under one version that both sides know. Thread-safe."""

    def __init__(self, client: HttpClient) -> None:
        self._client = client
        self._version = ""
        self._capabilities = DOCKER

    def version(self) -> str:
        """The API version in use, e.g. ``1.41``; one ``_ping`` the first time."""
        if not self._version:
            response = self._client.request("GET", "/_ping")
            response.body()
            self._capabilities = capabilities_of(response.headers)
            self._version = _common_version(response.headers.get("api-version", ""))
        return self._version

    def ping(self) -> None:
        """Raises EngineUnavailable when nothing answers within some seconds."""
        self._client.request("GET", "/_ping", timeout_s=_PING_TIMEOUT_S).body()

    def capabilities(self) -> Capabilities:
        """How the engine differs from others; one ``_ping`` the first time."""
        self.version()
        return self._capabilities

    def send(
        self,
        method: str,
        path: str,
        *,
        json: Any = None,
        body: bytes | Iterable[bytes] = b"",
        headers: Mapping[str, str] | None = None,
        upgrade: bool = False,
        timeout_s: float | None = ANSWER_TIMEOUT_S,
        stop: threading.Event | None = None,
    ) -> PendingResponse:
        """Send a request without waiting for the answer. ``path`` has no version in it."""
        target = f"/v{self.version()}{path}"
        fields = dict(headers or {})
        if json is not None:
            fields["Content-Type"] = "application/json"
            body = msgspec.json.encode(json)
        if upgrade:
            fields["Connection"] = "Upgrade"
            fields["Upgrade"] = "tcp"
        return self._client.send(
            method, target, body=body, headers=fields, timeout_s=timeout_s, stop=stop
        )

    def request(
        self,
        method: str,
        path: str,
        *,
        json: Any = None,
        body: bytes | Iterable[bytes] = b"",
        headers: Mapping[str, str] | None = None,
        timeout_s: float | None = ANSWER_TIMEOUT_S,
    ) -> Response:
        """Send a request and wait for the head of its answer."""
        return self.send(
            method, path, json=json, body=body, headers=headers, timeout_s=timeout_s
        ).head()

    def call(self, method: str, path: str, *, json: Any = None) -> tuple[int, bytes]:
        """A whole exchange: status and body."""
        response = self.request(method, path, json=json)
        return response.status, response.body()

    def close(self) -> None:
        """Drop idle connections."""
        self._client.close()


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
