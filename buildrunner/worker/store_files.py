"""What an engine keeps about its images, read through the engine itself: by who is not root.

A container that never starts has the folder mounted; its archive call gives the files.
"""

from __future__ import annotations

import io
import os
import tarfile
from typing import TYPE_CHECKING

from buildrunner.containers.engine_types import ContainerSpec, Mount
from buildrunner.containers.image_share import DRIVER
from buildrunner.engine.workspace_archive import CARRIER_IMAGE
from buildrunner.errors import NotFound

if TYPE_CHECKING:
    from collections.abc import Mapping

    from buildrunner.containers.engine_protocol import ContainerEngine

_PLACE = "/store"
_PARTS = ("repositories.json", "imagedb/content", "layerdb/sha256", "distribution")


class ArchivedFiles:
    """`StoreFiles` as they are now: some 50 ms. The carrier image must be there.

    Args:
        engine: the engine.
        data_root: its data folder.
        labels: for the container.

    Raises:
        EngineError: the engine refused.
    """

    def __init__(self, engine: ContainerEngine, data_root: str, labels: Mapping[str, str]) -> None:
        self._files: dict[str, bytes] = {}
        folder = os.path.join(data_root, "image", DRIVER)
        container = engine.create_container(
            ContainerSpec(
                image=CARRIER_IMAGE,
                cmd=("none",),
                mounts=(Mount(source=folder, target=_PLACE, bind=True, read_only=True),),
                network="none",
                labels=dict(labels),
            )
        )
        try:
            for part in _PARTS:
                self._take(engine, container, part)
        finally:
            engine.remove_container(container)

    def read(self, path: str) -> bytes:
        """See `StoreFiles.read`."""
        try:
            return self._files[path]
        except KeyError:
            raise FileNotFoundError(path) from None

    def _take(self, engine: ContainerEngine, container: str, part: str) -> None:
        try:
            archive = b"".join(engine.get_archive(container, f"{_PLACE}/{part}"))
        except NotFound:  # an engine that never pulled has no distribution folder
            return
        above = os.path.dirname(part)
        with tarfile.open(fileobj=io.BytesIO(archive), mode="r:") as tar:
            for member in tar:
                content = tar.extractfile(member) if member.isreg() else None
                if content is not None:
                    self._files[os.path.join(above, member.name)] = content.read()
