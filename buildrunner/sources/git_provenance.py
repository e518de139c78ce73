"""What the Build says about the commit that was fetched."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from buildrunner.spec.model_results import SourceProvenance
    from buildrunner.spec.model_source import Source


def provenance_of(source: Source | None, url: str, commit: str) -> SourceProvenance:
    """``sourceProvenance``: the source's own message with the commit in place of its revision.

    Args:
        source: what asked for it; None: a Git source that a flag gave.
        url: the repository, without credentials.
        commit: full SHA.

    Source: ``SourceProvenance.resolvedGitSource``, ``resolvedRepoSource``,
        ``resolvedConnectedRepository``.
    """
    import msgspec

    from buildrunner.spec.model_results import SourceProvenance
    from buildrunner.spec.model_source import GitSource

    if source is not None and source.repo_source is not None:
        return SourceProvenance(
            resolved_repo_source=msgspec.structs.replace(
                source.repo_source, branch_name=None, tag_name=None, commit_sha=commit
            )
        )
    if source is not None and source.connected_repository is not None:
        return SourceProvenance(
            resolved_connected_repository=msgspec.structs.replace(
                source.connected_repository, revision=commit
            )
        )
    folder = source.git_source.dir if source is not None and source.git_source else ""
    return SourceProvenance(resolved_git_source=GitSource(url=url, dir=folder, revision=commit))
