"""Builds as a table, in gcloud's columns.

Source: semantics 11.3.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from buildrunner.cli.listing import table

if TYPE_CHECKING:
    from collections.abc import Sequence

    from buildrunner.store.build_store import Document

_COLUMNS = ("ID", "CREATE_TIME", "DURATION", "SOURCE", "IMAGES", "STATUS")


def build_table(builds: Sequence[Document]) -> str:
    """The table; nothing at all without builds."""
    return table(_COLUMNS, [_row(build) for build in builds])


def _row(document: Document) -> tuple[str, ...]:
    return (
        document["id"],
        _instant(document.get("createTime", "")),
        _duration(document),
        _source(document.get("source", {})),
        _images(document.get("results", {}).get("images", ())),
        document["status"],
    )


def _instant(text: str) -> str:
    return f"{text[:19]}+00:00" if text else "-"


def _duration(document: Document) -> str:
    start, finish = document.get("startTime"), document.get("finishTime")
    if not start or not finish:
        return "-"
    from datetime import datetime

    elapsed = datetime.fromisoformat(finish) - datetime.fromisoformat(start)
    whole = int(elapsed.total_seconds())
    hours, minutes, left = whole // 3600, whole % 3600 // 60, whole % 60
    if hours:
        return f"{hours}H{minutes}M{left}S"
    return f"{minutes}M{left}S" if minutes else f"{left}S"


def _source(source: Document) -> str:
    if storage := source.get("storageSource"):
        return f"gs://{storage.get('bucket', '')}/{storage.get('object', '')}"
    if repo := source.get("repoSource"):
        revision = repo.get("branchName") or repo.get("tagName") or repo.get("commitSha", "")
        return f"{repo.get('repoName', '')}@{revision}"
    if git := source.get("gitSource"):
        return f"{git.get('url', '')}@{git.get('revision', '')}".rstrip("@")
    if connected := source.get("connectedRepository"):
        name = connected.get("repository", "").rpartition("/repositories/")[2]
        return f"{name}@{connected.get('revision', '')}".rstrip("@")
    return "-"


def _images(images: Sequence[Document]) -> str:
    if not images:
        return "-"
    first: str = images[0].get("name", "")
    return f"{first} (+{len(images) - 1} more)" if len(images) > 1 else first
