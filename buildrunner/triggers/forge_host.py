"""Forges: their kinds and hosts, and the addresses of their repositories and APIs. Pure.

A repository is identified by the kind of its forge, the forge's host and its full name there. Every
address of a repository and of a forge's API is computed from these three, and never taken from a
payload.

Source: the forges' own pages on clone URLs and REST APIs.
"""

from __future__ import annotations

import re
from typing import Final
from urllib.parse import quote, urlsplit

import msgspec

from buildrunner.errors import UsageError

KINDS: Final = ("github", "gitlab", "gitea", "bitbucket", "bitbucket-server")
PUBLIC: Final = {
    "github": "https://github.com",
    "gitlab": "https://gitlab.com",
    "bitbucket": "https://bitbucket.org",
}
"""The public forge of each kind that has one."""

_ALIASES: Final = {"forgejo": "gitea", "gogs": "gitea"}
_PUBLIC_KINDS: Final = {url.removeprefix("https://"): kind for kind, url in PUBLIC.items()}
_HOSTNAME: Final = re.compile(r"[a-z0-9]([a-z0-9.-]*[a-z0-9])?|[0-9a-f:.]+")
_PATH: Final = re.compile(r"(?:/[A-Za-z0-9_~-][A-Za-z0-9._~-]*)*/*")
"""A path with one spelling: without ``%41``, ``..``, ``//`` and parameters."""
_SCP_FORM: Final = re.compile(r"(?:[^@/:\s]+@)?(\[[^]/]+\]|[^/:\s]+):(?!//)(.+)", re.DOTALL)
_SEGMENT: Final = r"(?!\.{1,2}(?:/|$))[A-Za-z0-9_.~+-]+"
_FULL_NAME: Final = re.compile(rf"{_SEGMENT}(?:/{_SEGMENT})+")
_PORTS: Final = {"https": 443, "http": 80}


def request_word(kind: str) -> str:
    """Return what a kind of forge calls a request to merge: ``merge request`` on GitLab."""
    return "merge request" if kind == "gitlab" else "pull request"


def request_number(kind: str, number: int) -> str:
    """Return the number of such a request as its forge writes it: ``!7`` on GitLab, or ``#7``."""
    return f"{'!' if kind == 'gitlab' else '#'}{number}"


def request_name(kind: str, number: int) -> str:
    """Return word and number: ``merge request !7``, ``pull request #7``."""
    return f"{request_word(kind)} {request_number(kind, number)}"


class ForgeHost(msgspec.Struct, frozen=True, kw_only=True):
    """One forge: a kind and a host. `named_forge` makes it.

    Attributes:
        kind: one of `KINDS`.
        url: root of the forge: ``https://git.example.com``, or with a port that is not the
            scheme's default, and a path. Without a slash at the end.
    """

    kind: str
    url: str

    @property
    def key(self) -> str:
        """The host with its port and path, in the form of `repository_key`."""
        return repository_key(self.url)

    @property
    def api(self) -> str:
        """The root of the REST API."""
        is_public = self.url == PUBLIC.get(self.kind)
        match self.kind:
            case "github":
                return "https://api.github.com" if is_public else f"{self.url}/api/v3"
            case "gitlab":
                return f"{self.url}/api/v4"
            case "gitea":
                return f"{self.url}/api/v1"
            case "bitbucket":
                return f"{'https://api.bitbucket.org' if is_public else self.url}/2.0"
            case _:
                return f"{self.url}/rest"

    def clone_url(self, full_name: str) -> str:
        """Return the address from which Git fetches a repository."""
        if self.kind == "bitbucket-server":
            return f"{self.url}/scm/{_path(full_name.lower())}.git"
        return f"{self.url}/{_path(full_name)}.git"

    def full_name(self, url: str) -> str:
        """Return the full name of the repository at a URL; empty for a URL of another forge."""
        key, folded = repository_key(url), self.key
        if self.kind == "bitbucket-server" and key.startswith(f"{folded}/scm/"):
            folded += "/scm"
        path = key.removeprefix(f"{folded}/") if key.startswith(f"{folded}/") else ""
        # The key is in lower case; the name keeps its case.
        return url.rstrip("/").removesuffix(".git")[-len(path) :] if path else ""

    def has(self, url: str) -> bool:
        """Return whether an http(s) URL is on this forge."""
        return f"{repository_key(url)}/".startswith(f"{self.key}/")

    def pull_request_page(self, full_name: str, number: int) -> str:
        """Return the address of a pull request's page."""
        where = f"{self.url}/{_path(full_name)}"
        match self.kind:
            case "github":
                return f"{where}/pull/{number}"
            case "gitlab":
                return f"{where}/-/merge_requests/{number}"
            case "gitea":
                return f"{where}/pulls/{number}"
            case "bitbucket":
                return f"{where}/pull-requests/{number}"
            case _:
                project, _, slug = full_name.partition("/")
                where = f"{self.url}/projects/{_path(project)}/repos/{_path(slug)}"
                return f"{where}/pull-requests/{number}"

    def pull_request_api(self, full_name: str, number: int) -> str:
        """Return the API's address of a pull request in GitHub's form; empty for other forges."""
        if self.kind not in ("github", "gitea"):
            return ""
        return f"{self.api}/repos/{_path(full_name)}/pulls/{number}"

    def rights_api(self, full_name: str, person: str) -> str:
        """Return the API's address of a person's right to write to a repository.

        Source: GitHub's "Get repository permissions for a user", Gitea's
        ``repoGetRepoPermissions``, GitLab's "Get a member of a project, including inherited and
        invited members", Bitbucket Cloud's "List a repository permissions for a workspace",
        Bitbucket Data Center's "Get all users" with its filter ``permission``.

        Args:
            full_name: full name of the repository.
            person: a login; for GitLab a user's number, for Bitbucket Cloud a UUID.
        """
        owner, _, name = full_name.partition("/")
        who = quote(person, safe="")
        match self.kind:
            case "gitlab":
                return f"{self.api}/projects/{quote(full_name, safe='')}/members/all/{who}"
            case "bitbucket":
                where = f"workspaces/{_path(owner)}/permissions/repositories/{_path(name)}"
                query = 'user.uuid="{}"'.format(person.replace('"', ""))
                return f"{self.api}/{where}?q={quote(query)}"
            case "bitbucket-server":
                requested = f"permission.1.projectKey={_path(owner)}"
                requested += f"&permission.1.repositorySlug={_path(name)}"
                return (
                    f"{self.api}/api/latest/users?permission.1=REPO_WRITE&{requested}&filter={who}"
                )
            case _:
                return f"{self.api}/repos/{_path(full_name)}/collaborators/{who}/permission"


def named_forge(kind: str, text: str = "") -> ForgeHost:
    """Return the forge that a user names.

    Args:
        kind: one of `KINDS`, ``forgejo`` or ``gogs``.
        text: ``git.example.com``, ``http://10.0.0.7:3000``, ``https://example.com/gitea``; empty
            for the public forge of that kind.

    Raises:
        UsageError: the kind is unknown, or the text names no host.
    """
    kind = _ALIASES.get(kind, kind)
    if kind not in KINDS:
        raise UsageError(f"unknown kind of forge: {kind!r}", hint=f"one of {', '.join(KINDS)}")
    url = (text or PUBLIC.get(kind, "")).strip()
    if not url:
        raise UsageError(
            f"a forge of kind {kind} needs its host", hint="for example git.example.com"
        )
    place = _normalized(url if "://" in url else f"https://{url}")
    host = repository_key(place)
    is_public = host in _PUBLIC_KINDS
    if is_public and (kind != _PUBLIC_KINDS[host] or not place.startswith("https:")):
        public = _PUBLIC_KINDS[host]
        raise UsageError(f"{host} is a forge of kind {public}, at {PUBLIC[public]}")
    return ForgeHost(kind=kind, url=place)


def public_forge(url: str) -> ForgeHost | None:
    """Return the public forge of a repository's URL; None if the URL has another host."""
    host = repository_key(url).partition("/")[0]
    kind = _PUBLIC_KINDS.get(host)
    return ForgeHost(kind=kind, url=PUBLIC[kind]) if kind else None


def reported_forge(kind: str, full_name: str, urls: tuple[str, ...]) -> ForgeHost | None:
    """Return the forge of the URLs in a payload; None if they name none. Do not trust it."""
    for url in urls:
        page = url.rstrip("/").removesuffix(".git")
        if page.startswith(("https://", "http://")) and _folded(page).endswith(
            f"/{_folded(full_name)}"
        ):
            base = page[: -len(full_name) - 1].removesuffix("/scm")
            try:
                return named_forge(kind, base)
            except UsageError:
                continue
    return None


LONGEST_NAME: Final = 1000
"""The most bytes of the name of a ref or repository. PostgreSQL indexes 2,700 bytes at most."""


def is_too_long(name: str) -> bool:
    """Return whether a name of a ref or repository is longer than `LONGEST_NAME`."""
    return len(name.encode("utf-8", "surrogatepass")) > LONGEST_NAME


def is_full_name(name: str) -> bool:
    """Return whether a name has the form ``owner/name`` or ``group/subgroup/name``."""
    return not is_too_long(name) and _FULL_NAME.fullmatch(name) is not None


def is_url(text: str) -> bool:
    """Return whether a text is the address of a repository, and not a name."""
    return "://" in text or text.startswith("/") or ("@" in text and ":" in text)


def repository_key(address: str) -> str:
    """Return the same text for each address of a repository; empty for no address.

    Any text has a key, also one that is no address. The key has the host in lower case, the port if
    it is not the scheme's default, and the path in lower case (forges accept names in any case)
    without ``.git``. It omits a port of ssh, which is not that of the forge.
    """
    text = address.strip().rstrip("/").removesuffix(".git")
    scheme, mark, rest = text.partition("://")
    if not mark:
        scp = None if text.startswith("/") else _SCP_FORM.fullmatch(text)
        return _folded(f"{scp.group(1)}/{scp.group(2)}") if scp else _plain(text)
    scheme = scheme.lower()
    if scheme == "file":
        return rest
    place, slash, path = rest.partition("/")
    place = place.rpartition("@")[2]
    host, port = _host_and_port(place)
    if scheme not in _PORTS or port == str(_PORTS[scheme]):
        port = ""
    return _folded(f"{host}{':' if port else ''}{port}{slash}{path}")


def _plain(text: str) -> str:
    return text if text.startswith("/") else _folded(text)


def _host_and_port(place: str) -> tuple[str, str]:
    host, colon, port = place.rpartition(":")
    if not colon or "]" in port or not port.isdecimal():
        return place.rstrip(".:"), ""
    return host.rstrip("."), port.lstrip("0")


def _normalized(url: str) -> str:
    wrong = UsageError(
        "invalid address of a forge",
        hint="its host, or URL without login: git.example.com, https://example.com/gitea",
    )
    try:
        parts = urlsplit(url)
        host, port = (parts.hostname or "").rstrip("."), parts.port
    except ValueError as error:
        raise wrong from error
    if parts.scheme not in _PORTS or not _HOSTNAME.fullmatch(host):
        raise wrong
    if parts.username is not None or parts.query or parts.fragment:
        raise wrong
    if not _PATH.fullmatch(parts.path):
        raise wrong
    shown = f"[{host}]" if ":" in host else host
    shown += f":{port}" if port not in (None, _PORTS[parts.scheme]) else ""
    return f"{parts.scheme}://{shown}{parts.path.rstrip('/')}"


def _path(name: str) -> str:
    return quote(name, safe="/~")


def _folded(text: str) -> str:
    """Return a text in lower case, for ASCII only: names with other letters stay different."""
    return "".join(char.lower() if char.isascii() else char for char in text)
