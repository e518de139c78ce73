"""Images made from a root file system, through the Docker Engine API."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import msgspec

from buildrunner.containers.docker import errors as docker_errors
from buildrunner.containers.docker.api import DockerApi
from buildrunner.containers.docker.http import quoted
from buildrunner.containers.docker.transfers import TransferFailure, transfer_events
from buildrunner.containers.image_name import ImageName
from buildrunner.errors import EngineError


def import_changes(
    entrypoint: Sequence[str], cmd: Sequence[str], env: Sequence[str], labels: Mapping[str, str]
) -> list[str]:
    """An image's config as the Dockerfile lines that the engine's import takes."""

    def quoted_text(text: str) -> str:
        if "\n" in text:
            raise EngineError(f"an image's setting can't have several lines: {text!r}")
        escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("$", "\\$")
        return f'"{escaped}"'

    changes = [f"LABEL {key}={quoted_text(value)}" for key, value in labels.items()]
    for entry in env:
        key, _, value = entry.partition("=")
        changes.append(f"ENV {key}={quoted_text(value)}")
    if entrypoint:
        changes.append(f"ENTRYPOINT {msgspec.json.encode(list(entrypoint)).decode()}")
    if cmd:
        changes.append(f"CMD {msgspec.json.encode(list(cmd)).decode()}")
    return changes


def import_tar(api: DockerApi, name: str, tar: Iterable[bytes], changes: Sequence[str]) -> None:
    """Make an image from a root file system.

    Raises:
        EngineError: the engine could not.
    """
    asked = ImageName.parse(name)
    path = f"/images/create?fromSrc=-&repo={quoted(asked.repository)}&tag={asked.tag or 'latest'}"
    path += "".join(f"&changes={quoted(change)}" for change in changes)
    headers = {"Content-Type": "application/x-tar"}
    response = api.request("POST", path, body=tar, headers=headers)
    body = response.body()
    if response.status != 200:
        raise docker_errors.engine_error(f"the image {name} can't be made", response.status, body)
    try:
        for _ in transfer_events([body]):
            pass
    except TransferFailure as error:
        raise EngineError(f"the image {name} can't be made: {error}") from error


def vanished(name: str) -> EngineError:
    """The import went well, and the image is not there all the same."""
    return EngineError(
        f"the image {name} was made, but the engine does not have it",
        hint="Is something removing images at the same time?",
    )
