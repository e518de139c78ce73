"""Of what a build was made: repository, branch and commit, as far as they are known. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

if TYPE_CHECKING:
    from collections.abc import Mapping


class Revision(msgspec.Struct, frozen=True):
    """Of what a build was made.

    Attributes:
        repository: short name, or where the source lies.
        ref: branch, tag or revision; empty for none.
        commit: in full; empty when not known.
        address: the repository's URL; empty when not known.
    """

    repository: str = ""
    ref: str = ""
    commit: str = ""
    address: str = ""


def revision_of(document: Mapping[str, Any]) -> Revision:
    """Of what a build was made, as far as it is known."""
    values = document.get("substitutions", {})
    source = document.get("source", {})
    provenance = document.get("sourceProvenance", {})
    commit = values.get("COMMIT_SHA") or _first(
        provenance,
        ("resolvedRepoSource", "commitSha"),
        ("resolvedGitSource", "revision"),
        ("resolvedConnectedRepository", "revision"),
    )
    ref = (
        values.get("BRANCH_NAME")
        or values.get("TAG_NAME")
        or _first(
            source,
            ("repoSource", "branchName"),
            ("repoSource", "tagName"),
            ("gitSource", "revision"),
            ("connectedRepository", "revision"),
        )
    )
    repository = values.get("REPO_FULL_NAME") or _first(
        source,
        ("repoSource", "repoName"),
        ("gitSource", "url"),
        ("connectedRepository", "repository"),
    )
    if not repository and "storageSource" in source:
        repository = f"gs://{source['storageSource'].get('bucket', '')}"
    short_ref = ref.removeprefix("refs/heads/").removeprefix("refs/tags/")
    address = _first(provenance, ("resolvedGitSource", "url")) or _first(
        source, ("gitSource", "url")
    )
    return Revision(repository, short_ref if short_ref != commit else "", commit, address)


def provenance_of(document: Mapping[str, Any]) -> dict[str, str]:
    """What exactly was built, by name, for a table."""
    shown: dict[str, str] = {}
    for kind, fields in document.get("sourceProvenance", {}).items():
        if kind != "fileHashes" and isinstance(fields, dict):
            shown |= {f"{kind}.{name}": str(value) for name, value in fields.items()}
    return shown


def _first(tree: Mapping[str, Any], *paths: tuple[str, str]) -> str:
    for outer, inner in paths:
        found = tree.get(outer, {}).get(inner)
        if found:
            return str(found)
    return ""
