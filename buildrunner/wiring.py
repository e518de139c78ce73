"""The only place that names concrete adapters: which engine, which store, which workspace.

Everything is made on demand, and imported then: a command pays for what it uses.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from buildrunner.containers.engine_protocol import ContainerEngine
    from buildrunner.engine.secret_resolver import SecretResolver
    from buildrunner.engine.workspace_protocol import Workspace
    from buildrunner.store.build_store import BuildStore


def container_engine() -> ContainerEngine:
    """The engine that the ``docker`` command would use. Opens no connection yet."""
    from buildrunner.containers.docker import DockerEngine

    return DockerEngine(environ=os.environ)


def pause_image(engine: ContainerEngine) -> str | None:
    """Image for holding network namespaces, made when missing; None where there is none.

    Raises:
        EngineError: the engine does not answer, or refused.
    """
    from buildrunner.containers.pause_image import ensure_pause_image

    return ensure_pause_image(engine)


def workspace(folder: str | None, *, ignore_file: str = "") -> Workspace:
    """A workspace that begins with ``folder``; empty when None.

    Raises:
        UsageError: no such folder, or no such ignore file.
        SourceError: ignore rules that can't be read.
    """
    from buildrunner.engine.workspace import EmptyWorkspace, FolderWorkspace

    if folder is None:
        return EmptyWorkspace()
    from buildrunner.sources.local_folder import LocalFolder

    return FolderWorkspace(LocalFolder(folder, ignore_file=ignore_file))


def secret_resolver(mapping: Mapping[str, str]) -> SecretResolver:
    """Secrets by a mapping of names to ``env:VARIABLE`` and ``file:PATH``."""
    from buildrunner.secrets.mapped import MappedSecrets

    return MappedSecrets(mapping, os.environ)


def build_store(folder: str) -> BuildStore:
    """The local store in a folder."""
    from buildrunner.store.local_store import LocalBuildStore

    return LocalBuildStore(folder)
