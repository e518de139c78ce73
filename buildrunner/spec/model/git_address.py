"""Finds passwords in addresses of repositories, to refuse or to mask them. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, Final
from urllib.parse import unquote

from buildrunner.problem import Problem

MASK: Final = "***"
MESSAGE: Final = "the address of a repository holds a password or token"
HINT: Final = (
    "remove it, and keep it where credentials belong: [git.tokens] of the settings that fetch the"
    " repository, or ~/.netrc for a repository of packages"
)

# scheme://login@, or login@host:path; a login has no slash. People forget slashes of a scheme, or
# write one too many. They also paste what stands before an address: a blank, a quote, `git clone`.
_LOGIN: Final = re.compile(
    r"(?P<start>(?:[^:@]*[\s<'\"])?(?:(?i:https?|ssh|git|git\+ssh|ssh\+git|ftps?):/+"
    r"|[A-Za-z][A-Za-z0-9+.-]*://))?(?P<login>[^/?#]*)@"
)
_PARAMETER: Final = re.compile(r"([?&;#][^=&;#]*=)([^&;#]+)")
_SECRET_NAME: Final = re.compile("token|passw|secret|key|auth", re.IGNORECASE)
# Tokens that users paste as a user name: of GitHub, GitLab and others, or any long random text.
_TOKEN: Final = re.compile(
    r"gh[a-z]_\w+|github_pat_\w+|gl[a-z]+-[\w.-]+|ATB[A-Z]?\w{16,}|[0-9a-f]{32,}"
    r"|(?=[^@]*\d)(?=[^@]*[A-Za-z])[\w.~-]{30,}"
)
# Fields of builds and triggers that contain addresses of repositories; [] is each item of a list.
# Repositories of packages are among them: people write logins into these addresses, too.
_BUILD: Final = (
    ("artifacts", "pythonPackages", "[]", "repository"),
    ("artifacts", "mavenArtifacts", "[]", "repository"),
    ("artifacts", "npmPackages", "[]", "repository"),
    ("artifacts", "genericArtifacts", "[]", "registryPath"),
    ("source", "repoSource", "repoName"),
    ("source", "gitSource", "url"),
    ("source", "connectedRepository", "repository"),
    ("sourceProvenance", "resolvedGitSource", "url"),
    ("dependencies", "[]", "gitSource", "repository", "url"),
)
_TRIGGER: Final = (
    ("sourceToBuild", "uri"),
    ("sourceToBuild", "repository"),
    ("gitFileSource", "uri"),
    ("gitFileSource", "repository"),
    ("repositoryEventConfig", "repository"),
    ("triggerTemplate", "repoName"),
    *(("build", *path) for path in _BUILD),
)


def has_password(address: str) -> bool:
    """Return whether an address of a repository has a password, or a token in place of the user."""
    return _with(address, "") != address  # the mask counts as a password, too


def without_password(address: str) -> str:
    """Return the address with secret parts masked."""
    return _with(address, MASK)


def _with(address: str, mask: str) -> str:
    if "@" not in address and "=" not in address:
        return address
    found = _LOGIN.match(address)
    if found:
        login = found["login"]
        user, _, password = unquote(login).partition(":")
        is_token = user == MASK or _TOKEN.fullmatch(user)
        shown = f"{user}:{mask}" if password else mask if is_token else login
        address = f"{found['start'] or ''}{shown}@{address[found.end() :]}"
    return _PARAMETER.sub(
        lambda found: f"{found[1]}{mask}" if _SECRET_NAME.search(found[1]) else found[0], address
    )


def masked_build(document: dict[str, Any]) -> dict[str, Any]:
    """Return a Build document with masked passwords."""
    return _masked(document, _BUILD)


def masked_trigger(document: dict[str, Any]) -> dict[str, Any]:
    """Return a BuildTrigger document with masked passwords."""
    return _masked(document, _TRIGGER)


def build_problems(document: dict[str, Any]) -> list[Problem]:
    """Return a problem for each address with a password in a Build document.

    The problems do not quote the addresses.
    """
    return _problems(document, _BUILD)


def trigger_problems(document: dict[str, Any], old: dict[str, Any] | None = None) -> list[Problem]:
    """Return the problems of a BuildTrigger document, except for addresses that ``old`` has."""
    return _problems(document, _TRIGGER, old or {})


def _problems(
    document: dict[str, Any], paths: tuple[tuple[str, ...], ...], old: dict[str, Any] | None = None
) -> list[Problem]:
    return [
        Problem(MESSAGE, path=shown, hint=HINT, rule="git-password")
        for path in paths
        for shown, value in _values(document, path)
        if has_password(value) and (shown, value) not in tuple(_values(old or {}, path))
    ]


def _masked(document: dict[str, Any], paths: tuple[tuple[str, ...], ...]) -> dict[str, Any]:
    for path in paths:
        if any(has_password(value) for _, value in _values(document, path)):
            document = _replaced(document, path)
    return document


def _values(value: Any, path: tuple[str, ...], shown: str = "") -> Iterator[tuple[str, str]]:
    if not path:
        if isinstance(value, str):
            yield shown, value
        return
    first, rest = path[0], path[1:]
    if first == "[]":
        for index, item in enumerate(value if isinstance(value, list) else ()):
            yield from _values(item, rest, f"{shown}[{index}]")
    elif isinstance(value, dict) and first in value:
        yield from _values(value[first], rest, f"{shown}.{first}" if shown else first)


def _replaced(value: Any, path: tuple[str, ...]) -> Any:
    if not path:
        return without_password(value) if isinstance(value, str) else value
    first, rest = path[0], path[1:]
    if first == "[]":
        return [_replaced(item, rest) for item in value] if isinstance(value, list) else value
    if not isinstance(value, dict) or first not in value:
        return value
    return {**value, first: _replaced(value[first], rest)}
