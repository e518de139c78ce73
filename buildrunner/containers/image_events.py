"""Which images a Docker engine pulls, and whether it pushes any, as it happens."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from buildrunner.containers.docker_api import DockerApi, filters
from buildrunner.containers.endpoint import open_socket
from buildrunner.containers.http_client import HttpClient
from buildrunner.errors import EngineError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from buildrunner.containers.endpoint import Endpoint
    from buildrunner.containers.http_response import Response


_MOST_BYTES = 1 << 20
"""Of an event. Engines write less than 1 KiB."""


class _Actor(msgspec.Struct):
    name: str = msgspec.field(name="ID", default="")


class _Event(msgspec.Struct):
    action: str = msgspec.field(name="Action", default="")
    actor: _Actor = msgspec.field(name="Actor", default_factory=_Actor)


class PulledImages:
    """Names of images that an engine pulls, from its start on. Iterate in a thread.

    What BuildKit pulls for itself is not told of.

    Attributes:
        pushed: the engine has pushed something, as far as was iterated.

    Args:
        endpoint: where the engine is.

    Raises:
        EngineError: the engine does not tell.
    """

    def __init__(self, endpoint: Endpoint) -> None:
        self.pushed = False
        self._api = DockerApi(HttpClient(lambda: open_socket(endpoint)))
        query = filters(type=["image"], event=["pull", "push"])
        self._answer: Response = self._api.request("GET", f"/events?since=0&{query}")
        self._answer.wait_for_ever()

    def __iter__(self) -> Iterator[str]:
        rest = b""
        try:
            for piece in self._answer.pieces():
                *lines, rest = (rest + piece).split(b"\n")
                if len(rest) > _MOST_BYTES:  # steps can replace the engine of a sandbox
                    return
                for line in filter(None, lines):
                    event = msgspec.json.decode(line, type=_Event)
                    if event.action == "push":
                        self.pushed = True
                    else:
                        yield event.actor.name
        except (EngineError, msgspec.DecodeError):  # it is gone, or we are closed
            return

    def close(self) -> None:
        """End the iteration, also of another thread."""
        self._answer.close()
        self._api.close()
