"""Reads what a step left in ``$BUILDER_OUTPUT/output``."""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING

from buildrunner.engine.shared_files import open_folder
from buildrunner.engine.step_container import OUTPUTS
from buildrunner.engine.workspace_archive import read_file, read_volume_file
from buildrunner.errors import EngineError, EngineUnavailable

if TYPE_CHECKING:
    from collections.abc import Mapping

    from buildrunner.containers.engine_protocol import ContainerEngine

OUTPUT_LIMIT = 51_200
"""Bytes that are kept of a step's output (hosted: "50 KB"); the rest is ignored."""


def read_output(
    engine: ContainerEngine,
    container: str,
    *,
    folder: str,
    volume: str,
    labels: Mapping[str, str],
) -> bytes:
    """The beginning of a step's output file, empty when it wrote none.

    Where the volume's folder is a folder of this machine too, the file is read there: 0.1 instead
    of 40 ms. Its content is the step's, so no link is followed and nothing but a file is read.

    Args:
        engine: who ran the step.
        container: the step's ended container.
        folder: the outputs volume's folder on the engine's machine.
        volume: the outputs volume.
        labels: for what is made on the engine.

    Raises:
        EngineError: the engine can't give the file.
    """
    try:
        return _read_here(folder)
    except OSError:
        return _read_there(engine, container, volume, labels)


def _read_here(folder: str) -> bytes:
    directory = open_folder(folder)
    try:
        try:
            flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK
            file = os.open("output", flags, dir_fd=directory)
        except FileNotFoundError:
            return b""
    finally:
        os.close(directory)
    with open(file, "rb") as content:
        if not stat.S_ISREG(os.fstat(file).st_mode):
            return b""
        return content.read(OUTPUT_LIMIT)


def _read_there(
    engine: ContainerEngine, container: str, volume: str, labels: Mapping[str, str]
) -> bytes:
    try:
        return read_file(engine, container, f"{OUTPUTS}/output", limit=OUTPUT_LIMIT)
    except EngineUnavailable:
        raise
    except EngineError:  # moby#52653: no look into containers with the socket below a link
        return read_volume_file(engine, volume, "output", labels, limit=OUTPUT_LIMIT)
