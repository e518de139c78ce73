"""The repository, ref and commit of a build, from facts that its caller does not choose. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from buildrunner.spec.model.source import is_commit
from buildrunner.triggers.labels import BUILT_REF, FORK, HEAD_REPOSITORY


class BuiltRevision(msgspec.Struct, frozen=True):
    """The repository, ref and commit of a build.

    Attributes:
        repository: short name, or location of the source.
        ref: branch, tag or revision; ``REPOSITORY:BRANCH`` for a fork's; empty for none.
        commit: full SHA; empty if unknown.
        address: the repository's URL; empty if unknown.
    """

    repository: str = ""
    ref: str = ""
    commit: str = ""
    address: str = ""


def built_revision(document: Mapping[str, Any], labels: Mapping[str, str]) -> BuiltRevision:
    """Return the repository, ref and commit of a build, as far as they are known.

    The caller of a run chooses its substitutions. So they count for other sources only.

    Args:
        document: the build.
        labels: its labels, which only the server sets.
    """
    source = document.get("source", {})
    provenance = document.get("sourceProvenance", {})
    is_fetched = any(kind in source for kind in ("repoSource", "gitSource", "connectedRepository"))
    values = {} if is_fetched else document.get("substitutions", {})
    named = _first(
        source,
        ("repoSource", "commitSha"),
        ("gitSource", "revision"),
        ("connectedRepository", "revision"),
    )
    commit = (
        _first(
            provenance,
            ("resolvedRepoSource", "commitSha"),
            ("resolvedGitSource", "revision"),
            ("resolvedConnectedRepository", "revision"),
        )
        or labels.get("commit", "")
        or (named if is_commit(named) else values.get("COMMIT_SHA", ""))
    )
    ref = (
        _fork_ref(labels)
        or labels.get(BUILT_REF)
        or labels.get("branch")
        or _first(source, ("repoSource", "branchName"), ("repoSource", "tagName"))
        or ("" if is_commit(named) else named)
        or values.get("BRANCH_NAME")
        or values.get("TAG_NAME")
        or ""
    )
    repository = (
        labels.get("repository")
        or values.get("REPO_FULL_NAME")
        or _first(
            source,
            ("repoSource", "repoName"),
            ("gitSource", "url"),
            ("connectedRepository", "repository"),
        )
    )
    if not repository and "storageSource" in source:
        repository = f"gs://{source['storageSource'].get('bucket', '')}"
    short_ref = ref.removeprefix("refs/heads/").removeprefix("refs/tags/")
    address = _first(provenance, ("resolvedGitSource", "url")) or _first(
        source, ("gitSource", "url")
    )
    return BuiltRevision(repository, short_ref if short_ref != commit else "", commit, address)


def labelled_ref(labels: Mapping[str, str]) -> str:
    """Return the branch or tag that the server itself knows of a build; empty if it knows none.

    A fork's branch is none of the repository.

    Args:
        labels: labels of the build. Only the server sets them.
    """
    if labels.get(FORK):
        return ""
    ref = labels.get(BUILT_REF) or labels.get("branch", "")
    return ref.removeprefix("refs/heads/").removeprefix("refs/tags/")


def _fork_ref(labels: Mapping[str, str]) -> str:
    """Return ``REPOSITORY:BRANCH`` for a fork's build, which no branch is called; else nothing."""
    if not labels.get(FORK):
        return ""
    return f"{labels.get(HEAD_REPOSITORY) or 'fork'}:{labels.get('branch', '')}"


def _first(tree: Mapping[str, Any], *paths: tuple[str, str]) -> str:
    for outer, inner in paths:
        found = tree.get(outer, {}).get(inner)
        if found:
            return str(found)
    return ""
