"""``Build.dependencies``: other repositories beside the source in ``/workspace``."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

from msgspec.structs import replace

from buildrunner.errors import SourceError
from buildrunner.sources.git.checkout import GitOptions
from buildrunner.sources.git.source import GitPlace, GitRequest, fetch_git
from buildrunner.spec.model.source import GitSourceDependency
from buildrunner.workspace.protocol import (
    BELOW,
    Preparation,
    PreparedWorkspace,
    Workspace,
    WrappedWorkspace,
)
from buildrunner.workspace.volume import fill_volume


class PlacedSource(Protocol):
    """A source that is fetched into a folder below ``/workspace``."""

    def place(
        self,
        unpack: Callable[[Iterable[bytes]], None],
        *,
        cancel: threading.Event,
        line: Callable[[str], None],
    ) -> None:
        """Fetch the source and pass it on, in the calling thread.

        Args:
            unpack: receives the files as a tar stream, as `fill_volume` does.
            cancel: set to stop soon.
            line: receives lines for the log.

        Raises:
            SourceError: the source can't be fetched; the message is one sentence.
            EngineError: ``unpack`` raised it.
        """
        ...


class DependentWorkspace(WrappedWorkspace):
    """A workspace with the dependencies of the build. Implements `Workspace`.

    Args:
        workspace: the workspace with the source.
        dependencies: dependencies in the order of the build; later ones overwrite earlier ones.
    """

    def __init__(self, workspace: Workspace, dependencies: Sequence[PlacedSource]) -> None:
        super().__init__(workspace)
        self._dependencies = dependencies

    def prepare(self, wanted: Preparation) -> PreparedWorkspace:
        """See `Workspace.prepare`."""
        prepared = self._workspace.prepare(wanted)
        lines: list[str] = []

        def unpack(tar: Iterable[bytes]) -> None:
            fill_volume(wanted.engine, prepared.volume, wanted.labels, tar)

        for dependency in self._dependencies:
            dependency.place(
                unpack,
                cancel=wanted.cancel,
                line=wanted.report.line if wanted.report else lines.append,
            )
        return replace(prepared, log=(*prepared.log, *lines))


_WORKSPACE = "/workspace"


def dependency_request(dependency: GitSourceDependency) -> GitRequest:
    """Return the Git request of a ``dependencies[].gitSource``.

    Raises:
        SourceError: the dependency names no repository.

    Source: ``GitSourceDependency``: depth 1 unless said otherwise, -1 for the whole history.
    """
    repository = dependency.repository
    if repository is None or not repository.url:
        raise SourceError("a dependency names no repository", hint="give repository.url")
    return GitRequest(
        url=repository.url,
        revision=dependency.revision,
        options=GitOptions(
            depth=max(dependency.depth, 0) if dependency.depth else 1,
            tags=dependency.fetch_tags,
            submodules=dependency.recurse_submodules,
        ),
    )


class GitDependency:
    """Implements `PlacedSource`: fetches a Git repository.

    Args:
        request: the Git request.
        dest_path: folder below ``/workspace``, relative or absolute.
        place: the allowed origins, and the cache.

    Raises:
        SourceError: the folder is not below ``/workspace``.
    """

    def __init__(self, request: GitRequest, dest_path: str, place: GitPlace) -> None:
        from buildrunner.spec.lexical_path import join_paths

        path = dest_path if dest_path.startswith("/") else join_paths(_WORKSPACE, dest_path)
        below = join_paths(path).removeprefix(f"{_WORKSPACE}/")
        if below.startswith("/"):
            raise SourceError(
                f"the dependency {request.url} has no place below {_WORKSPACE}: {dest_path!r}",
                hint="give a destPath such as third-party/name",
            )
        self._request = request
        self._below = below
        self._place = place

    def place(
        self,
        unpack: Callable[[Iterable[bytes]], None],
        *,
        cancel: threading.Event,
        line: Callable[[str], None],
    ) -> None:
        """See `PlacedSource.place`."""
        from buildrunner.workspace.fetched import GitFolder

        def progress(text: str, percent: int | None) -> None:
            if percent is None:
                line(text)

        checkout = fetch_git(
            self._request,
            mirror=self._place.mirror,
            cancel=cancel,
            progress=progress,
            allow_host=self._place.allow_host,
            pin=self._place.pin,
            temporary=self._place.temporary,
            room=self._place.room,
        )
        try:
            for text in checkout.log:
                line(f"{text} in {_WORKSPACE}/{self._below}")
            unpack(GitFolder(checkout).pack(cancel, root=BELOW, below=self._below))
        finally:
            checkout.release()
