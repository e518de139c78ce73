"""Reads the registry logins that steps left in their home folder.

Source: semantics 6.3. The hosted service pushes ``images`` with the home volume's Docker config, so
that a ``docker login`` in a step counts for them.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping

from buildrunner.containers.protocol import ContainerEngine
from buildrunner.registries.logins import DockerLogins, parse_docker_config
from buildrunner.workspace.archive import read_volume_file
from buildrunner.workspace.shared_files import open_folder

_LIMIT = 1024 * 1024


def read_home_logins(
    engine: ContainerEngine, volume: str, folder: str, labels: Mapping[str, str]
) -> DockerLogins:
    """The logins in ``~/.docker/config.json`` of the steps; none when they left no such file.

    Where the volume's folder is a folder of this machine too, the file is read there. Its content
    is the steps', so no link is followed and nothing but a file is read.

    Args:
        engine: who ran the steps.
        volume: the home volume.
        folder: its folder on the engine's machine.
        labels: for what is made on the engine.

    Raises:
        EngineError: the engine can't give the file.
    """
    try:
        data = _read_here(folder)
    except OSError:
        data = read_volume_file(engine, volume, ".docker/config.json", labels, limit=_LIMIT)
    return parse_docker_config(data) if data else DockerLogins()


def _read_here(folder: str) -> bytes:
    no_link = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK
    home = open_folder(folder)  # fails where it is not our machine
    try:
        directory = os.open(".docker", no_link | os.O_DIRECTORY, dir_fd=home)
        try:
            file = os.open("config.json", no_link, dir_fd=directory)
        finally:
            os.close(directory)
    except (FileNotFoundError, NotADirectoryError):
        return b""
    finally:
        os.close(home)
    with open(file, "rb") as content:
        if not stat.S_ISREG(os.fstat(file).st_mode):
            return b""
        return content.read(_LIMIT)
