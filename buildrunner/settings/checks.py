"""What is wrong in a settings file: tables, keys, types, and what a project's file may not set."""

from __future__ import annotations

import ipaddress
import os
from typing import Any

from buildrunner.errors import UsageError
from buildrunner.settings.environment import config_folder
from buildrunner.settings.git_table import GIT_KEYS
from buildrunner.spec.git_address import HINT, MESSAGE, has_password
from buildrunner.spec.problem import Problem
from buildrunner.store.keep_rule import parse_keep_rule

KEYS: dict[str, dict[str, type]] = {
    "project": {"id": str},
    "images": {"aliases": dict, "untrusted": list},
    "sandbox": {
        "docker_socket": bool,
        "privileged": bool,
        "egress_allow": list,
        "egress_deny": list,
    },
    "artifacts": {"repositories": dict},
    "registries": {"share_logins": bool},
    "storage": {"folders": dict, "buckets": list},
    "git": GIT_KEYS,
    "secret_sources": {"google": bool, "kms_command": list, "key": str},
    "server": {"keep_builds": dict},
}
TYPE_NAMES = {
    str: "a string",
    bool: "true or false",
    int: "a whole number",
    dict: "a table of strings",
    list: "a list of strings",
}
PROJECT_TABLES = ("images", "sandbox", "artifacts", "registries", "storage", "git")
"""What can be said for one project alone, below ``[projects.NAME]``."""

# A project's file comes with the project. It must not run commands here, nor spend the user's own
# Google credentials, nor hand out logins and keys, nor say where files are written.
_USER_ONLY = (
    "secret_sources",
    "registries",
    "storage",
    "git",
    "server",
    "projects",
    "images.untrusted",
)
_KEY_PLACES = ("file", "keyring")


def settings_problems(path: str, tree: dict[str, Any], *, is_own: bool) -> list[Problem]:
    """All that is wrong with a settings file.

    Args:
        path: of the file.
        tree: what it says.
        is_own: it is the user's own, not a project's.
    """
    return [
        *_shape_problems(path, tree),
        *_secret_problems(path, tree),
        *_source_problems(path, tree, is_own=is_own),
        *_git_problems(path, tree),
        *_server_problems(path, tree),
        *_projects_problems(path, tree.get("projects", {})),
        *_egress_problems(path, tree, is_own=is_own),
    ]


def _shape_problems(path: str, tree: dict[str, Any]) -> list[Problem]:
    problems = []
    known = [*KEYS, "secrets", "projects"]
    for table, content in tree.items():
        if table not in known:
            problems.append(_unknown(path, table, known, "table"))
        elif not isinstance(content, dict):
            problems.append(Problem("must be a table", path=table, file=path))
        elif table in KEYS:
            problems.extend(_key_problems(path, table, content))
    return problems


def _projects_problems(path: str, projects: Any) -> list[Problem]:
    """What is wrong below ``[projects.NAME]``, which has some of the tables for one project."""
    problems = []
    for project, tree in projects.items() if isinstance(projects, dict) else ():
        place = f"projects.{project}"
        if not isinstance(tree, dict):
            problems.append(Problem("must be a table of tables", path=place, file=path))
            continue
        for table, content in tree.items():
            below = f"{place}.{table}"
            if table not in PROJECT_TABLES:
                known = [f"{place}.{name}" for name in PROJECT_TABLES]
                problems.append(_unknown(path, below, known, "table"))
            elif not isinstance(content, dict):
                problems.append(Problem("must be a table", path=below, file=path))
            else:
                problems.extend(_key_problems(path, table, content, f"{place}."))
        problems.extend(_git_problems(path, tree, f"{place}."))
    return problems


def _key_problems(path: str, table: str, content: dict[str, Any], above: str = "") -> list[Problem]:
    problems = []
    for key, value in content.items():
        place = f"{above}{table}.{key}"
        kind = KEYS[table].get(key)
        if kind is None:
            known = [f"{above}{table}.{name}" for name in KEYS[table]]
            problems.append(_unknown(path, place, known, "key"))
        elif not _is_a(value, kind) or not _all_strings(value):
            problems.append(Problem(f"must be {TYPE_NAMES[kind]}", path=place, file=path))
    return problems


def _secret_problems(path: str, tree: dict[str, Any]) -> list[Problem]:
    content = tree.get("secrets")
    return _reference_problems(path, "secrets", content if isinstance(content, dict) else {})


def _reference_problems(path: str, table: str, content: dict[str, Any]) -> list[Problem]:
    return [
        Problem(
            "must be a string that starts with env: or file:",
            path=f'{table}."{name}"',
            file=path,
            hint='e.g. "env:API_KEY" or "file:~/api-key"',
        )
        for name, value in content.items()
        if not isinstance(value, str) or not value.startswith(("env:", "file:"))
    ]


def _source_problems(path: str, tree: dict[str, Any], *, is_own: bool) -> list[Problem]:
    problems = []
    if not is_own:
        hint = f"put it into {os.path.join(config_folder(), 'config.toml')}"
        problems = [
            Problem("is not for a project's file", path=table, file=path, hint=hint)
            for table in _USER_ONLY
            if _has(tree, table)
        ]
    sources = tree.get("secret_sources")
    if isinstance(sources, dict):
        if sources.get("key", "file") not in _KEY_PLACES:
            places = '"file" or "keyring"'
            problems.append(Problem(f"must be {places}", path="secret_sources.key", file=path))
        if sources.get("kms_command") == []:
            place = "secret_sources.kms_command"
            problems.append(Problem("must name a program", path=place, file=path))
    return problems


def _has(tree: dict[str, Any], place: str) -> bool:
    table, _, key = place.partition(".")
    content = tree.get(table)
    return content is not None and (not key or (isinstance(content, dict) and key in content))


def _git_problems(path: str, tree: dict[str, Any], above: str = "") -> list[Problem]:
    git = tree.get("git")
    if not isinstance(git, dict):
        return []
    tokens = git.get("tokens")
    problems = _reference_problems(
        path, f"{above}git.tokens", tokens if isinstance(tokens, dict) else {}
    )
    repositories = git.get("repositories")
    problems += [
        Problem(MESSAGE, path=f'{above}git.repositories."{name}"', file=path, hint=HINT)
        for name, url in (repositories.items() if isinstance(repositories, dict) else ())
        if has_password(str(url))
    ]
    if _is_a(git.get("cache_gib"), int) and git["cache_gib"] < 0:
        problems.append(Problem("must not be negative", path=f"{above}git.cache_gib", file=path))
    return problems


def _server_problems(path: str, tree: dict[str, Any]) -> list[Problem]:
    server = tree.get("server")
    rules = server.get("keep_builds") if isinstance(server, dict) else None
    problems = []
    for project, rule in rules.items() if isinstance(rules, dict) else ():
        try:
            parse_keep_rule(str(rule))
        except UsageError as error:
            place = f'server.keep_builds."{project}"'
            problems.append(Problem(str(error), path=place, file=path, hint=error.hint))
    return problems


def _egress_problems(path: str, tree: dict[str, Any], *, is_own: bool) -> list[Problem]:
    sandbox = tree.get("sandbox")
    if not isinstance(sandbox, dict):
        return []
    problems = []
    for key in ("egress_allow", "egress_deny"):
        place = f"sandbox.{key}"
        if key in sandbox and not is_own:
            hint = f"put it into {os.path.join(config_folder(), 'config.toml')}"
            text = "is not for a project's file"
            problems.append(Problem(text, path=place, file=path, hint=hint))
        networks = sandbox.get(key)
        for network in networks if isinstance(networks, list) else ():
            try:
                ipaddress.IPv4Network(network)
            except (ValueError, TypeError):
                text = f"{network!r} is not an IPv4 network"
                hint = "write an address, or a block such as 10.0.0.0/8"
                problems.append(Problem(text, path=place, file=path, hint=hint))
    return problems


def _is_a(value: object, kind: type) -> bool:
    # For Python true is a number, for a reader it is not.
    return isinstance(value, kind) and (kind is bool or not isinstance(value, bool))


def _all_strings(value: object) -> bool:
    if isinstance(value, dict):
        return all(isinstance(entry, str) for entry in value.values())
    return not isinstance(value, list) or all(isinstance(entry, str) for entry in value)


def _unknown(path: str, place: str, known: list[str], what: str) -> Problem:
    from difflib import get_close_matches

    near = get_close_matches(place, known, n=1)
    hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(known)}"
    return Problem(f"there is no such {what}", path=place, file=path, hint=hint)
