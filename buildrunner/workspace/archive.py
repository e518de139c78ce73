"""Fills a plain volume with the source by sending a tar stream: works with every engine."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from buildrunner.containers.protocol import ContainerEngine
from buildrunner.containers.types import ContainerSpec, Mount
from buildrunner.errors import NotFound
from buildrunner.workspace.protocol import WORKSPACE

CARRIER_IMAGE = "buildrunner/empty:1"
"""An image without a file. Archives are put into a container that never starts."""

_EMPTY_TAR = bytes(1024)


def fill_volume(
    engine: ContainerEngine, volume: str, labels: Mapping[str, str], tar: Iterable[bytes]
) -> None:
    """Unpack ``tar`` in ``volume``, on the engine's machine, as root.

    All its names begin with `workspace_protocol.BELOW`.

    The stream goes through a container that is created, never started, and removed. No image of
    the build is needed, so that pulls can go on meanwhile.

    Raises:
        EngineError: the engine refused, or its disk is full.
    """
    container = create_carrier(engine, (Mount(source=volume, target=WORKSPACE),), labels)
    try:
        engine.fill_mount(container, WORKSPACE, tar)
    finally:
        engine.remove_container(container)


def read_volume_file(
    engine: ContainerEngine, volume: str, path: str, labels: Mapping[str, str], *, limit: int
) -> bytes:
    """The beginning of a regular file in a volume; empty when there is none.

    Args:
        engine: the engine with the volume.
        volume: its name.
        path: the file, relative to the volume.
        labels: for the container through which it is read.
        limit: bytes that are wanted.

    Raises:
        EngineError: the engine refused.
    """
    container = create_carrier(engine, (Mount(source=volume, target=WORKSPACE),), labels)
    try:
        return read_file(engine, container, f"{WORKSPACE}/{path}", limit=limit)
    finally:
        engine.remove_container(container)


def read_file(engine: ContainerEngine, container: str, path: str, *, limit: int) -> bytes:
    """The beginning of a regular file in a container; empty when there is none.

    Raises:
        EngineError: the engine can't give the file.
    """
    import tarfile

    head = b""
    try:
        for piece in engine.get_archive(container, path):
            head += piece
            if len(head) >= limit + 4 * tarfile.BLOCKSIZE:
                break
    except NotFound:
        return b""
    if len(head) < tarfile.BLOCKSIZE:
        return b""
    header = tarfile.TarInfo.frombuf(head[: tarfile.BLOCKSIZE], "utf-8", "surrogateescape")
    if not header.isreg():
        return b""
    return head[tarfile.BLOCKSIZE :][: min(header.size, limit)]


def create_carrier(
    engine: ContainerEngine, mounts: tuple[Mount, ...], labels: Mapping[str, str]
) -> str:
    """A container that never starts, through which archives reach what it mounts; its id.

    Raises:
        EngineError: the engine refused.
    """
    ensure_carrier_image(engine)
    return engine.create_container(
        ContainerSpec(
            image=CARRIER_IMAGE,
            cmd=("none",),
            mounts=mounts,
            network="none",
            labels=dict(labels),
        )
    )


def ensure_carrier_image(engine: ContainerEngine) -> None:
    """Make the image without a file where the engine does not have it.

    Raises:
        EngineError: the engine refused.
    """
    if engine.find_image(CARRIER_IMAGE) is None:
        engine.import_image(
            CARRIER_IMAGE, [_EMPTY_TAR], cmd=("none",), labels={"buildrunner.image": "empty"}
        )
