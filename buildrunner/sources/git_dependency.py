"""A repository that a build depends on, fetched into a folder of ``/workspace``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from buildrunner.engine.workspace_protocol import BELOW
from buildrunner.errors import SourceError
from buildrunner.sources.git_checkout import GitOptions
from buildrunner.sources.git_request import GitRequest
from buildrunner.sources.git_source import fetch_git

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable, Iterable

    from buildrunner.sources.git_source import GitPlace
    from buildrunner.spec.model_source import GitSourceDependency

_WORKSPACE = "/workspace"


def dependency_request(dependency: GitSourceDependency) -> GitRequest:
    """What a ``dependencies[].gitSource`` asks for.

    Raises:
        SourceError: it names no repository.

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
    """Implements `engine.workspace_dependencies.PlacedSource`.

    Args:
        request: what to fetch.
        dest_path: folder below ``/workspace``, relative or absolute.
        place: where from, and where to.

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
        from buildrunner.sources.git_workspace import GitFolder

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
        )
        try:
            for text in checkout.log:
                line(f"{text} in {_WORKSPACE}/{self._below}")
            unpack(GitFolder(checkout).pack(cancel, root=BELOW, below=self._below))
        finally:
            checkout.release()
