"""The table ``[git]`` of a settings file; see `settings`."""

from __future__ import annotations

import os
from typing import Any

import msgspec

GIT_KEYS: dict[str, type] = {
    "cache": str,
    "cache_gib": int,
    "submodules": bool,
    "lfs": bool,
    "repositories": dict,
    "tokens": dict,
    "ssh_keys": dict,
    "known_hosts": str,
    "host_keys": dict,
}


class GitSettings(msgspec.Struct, frozen=True, kw_only=True):
    """How Git repositories are fetched. Paths are absolute.

    Attributes:
        cache: folder of the cache; empty for `cache_folder`.
        cache_gib: what the cache may keep, in GiB.
        submodules: fetch them, too.
        lfs: fetch the content of files that Git LFS keeps elsewhere, too.
        repositories: name of a ``repoSource`` or ``connectedRepository`` -> URL.
        tokens: host -> ``env:NAME`` or ``file:PATH``; for what keys mean see `GitAccess`.
        ssh_keys: host -> path of a private key.
        known_hosts: path of a file of ssh host keys, beside the user's own; empty for none.
        host_keys: host -> fingerprints of its ssh host keys, separated by spaces.
    """

    cache: str = ""
    cache_gib: int = 20
    submodules: bool = False
    lfs: bool = False
    repositories: dict[str, str] = {}
    tokens: dict[str, str] = {}
    ssh_keys: dict[str, str] = {}
    known_hosts: str = ""
    host_keys: dict[str, str] = {}


def git_fields(table: dict[str, Any], folder: str) -> dict[str, Any]:
    """The fields of `GitSettings` that the table sets, paths made absolute.

    Args:
        table: with keys and types as they must be.
        folder: of the settings file.
    """
    fields = dict(table)
    for name in ("cache", "known_hosts"):
        if table.get(name):
            fields[name] = os.path.join(folder, os.path.expanduser(table[name]))
    keys = table.get("ssh_keys", {})
    fields["ssh_keys"] = {
        host: os.path.join(folder, os.path.expanduser(key)) for host, key in keys.items()
    }
    tokens = table.get("tokens", {})
    fields["tokens"] = {host: anchored(source, folder) for host, source in tokens.items()}
    return fields


def with_fields(git: GitSettings, fields: dict[str, Any]) -> GitSettings:
    """``git`` with fields that win; of tables, their entries."""
    changes = {
        name: {**getattr(git, name), **value} if isinstance(value, dict) else value
        for name, value in fields.items()
    }
    return msgspec.structs.replace(git, **changes)


def anchored(source: str, folder: str) -> str:
    """A reference with its path, if it has one, made absolute: ``file:x`` means beside the file."""
    kind, _, value = source.partition(":")
    if kind != "file":
        return source
    return f"file:{os.path.join(folder, os.path.expanduser(value))}"
