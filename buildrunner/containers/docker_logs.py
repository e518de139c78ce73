"""A container's output read from the engine's own log of it, by a process that did not start it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from buildrunner.containers import docker_errors
from buildrunner.containers.docker_stream import FrameDemultiplexer
from buildrunner.containers.engine_types import ErrorOutput
from buildrunner.containers.http_client import quoted

if TYPE_CHECKING:
    from collections.abc import Iterator

    from buildrunner.containers.docker_api import DockerApi

LOG_OPTIONS = {"max-size": "1t", "max-file": "2"}
"""Of the engine's log of a container: nothing is dropped while its build may have to read it."""


def follow(api: DockerApi, container_id: str) -> Iterator[bytes]:
    """All output from its first byte on; ends when the container has ended.

    The engine's following answer may end before the last bytes (seen in 4 of 24 containers on
    Docker 20.10). So the log is read once more then, and what is new in it given too.
    """
    given = {False: 0, True: 0}
    for chunk in _read(api, container_id, follow=True):
        given[isinstance(chunk, ErrorOutput)] += len(chunk)
        yield chunk
    passed = {False: 0, True: 0}
    for chunk in _read(api, container_id, follow=False):
        error = isinstance(chunk, ErrorOutput)
        new = chunk[max(0, given[error] - passed[error]) :]
        passed[error] += len(chunk)
        if new:
            yield ErrorOutput(new) if error else new


def _read(api: DockerApi, container_id: str, *, follow: bool) -> Iterator[bytes]:
    response = api.request(
        "GET",
        f"/containers/{quoted(container_id)}/logs?stdout=1&stderr=1&follow={int(follow)}",
    )
    if response.status != 200:
        raise docker_errors.engine_error(
            "the container's log can't be read", response.status, response.body()
        )
    response.wait_for_ever()
    frames = FrameDemultiplexer()
    for piece in response.pieces():
        yield from frames.feed(piece)
