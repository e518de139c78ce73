"""The URL of a Git repository, parsed: transport, host, credentials, the name to show."""

from __future__ import annotations

import os
import re
import unicodedata
from typing import Literal

import msgspec

from buildrunner.errors import SourceError

Transport = Literal["https", "http", "ssh", "git", "file"]

_SCP_FORM = re.compile(r"(?:([^@/:\s]+)@)?(\[[^]/]+\]|[^/:\s]+):(?!//)(.+)", re.DOTALL)
_SCHEMES: dict[str, Transport] = {
    "https": "https",
    "http": "http",
    "ssh": "ssh",
    "git+ssh": "ssh",
    "ssh+git": "ssh",
    "git": "git",
    "file": "file",
}
_HINT = "give an https, ssh, git or file URL, or the path of a repository"
_HOST_HINT = (
    "write the host as a name in ASCII without a dot at its end, or as an address; and the user's "
    "name without any of /?#[]\\"
)
_NAME = r"[A-Za-z0-9_.-]*[A-Za-z0-9_-]"
_PLACE = re.compile(rf"(?:\[([0-9A-Fa-f:.]+)\]|({_NAME}))(?::([0-9]{{0,5}}))?")
_MOST_PORT = 65535
_MOST_DECODINGS = 4
_PORTS: dict[Transport, int] = {"https": 443, "http": 80, "ssh": 22, "git": 9418, "file": 0}


class GitUrl(msgspec.Struct, frozen=True, kw_only=True):
    """A repository's URL without its secret parts.

    Attributes:
        text: the URL for git, storage and display: without password, and for https without user.
        transport: git's transport.
        host: lower case, without port; empty for files.
        port: port of the connection; 0 for files.
        origin: ``scheme://host:port``, to which https credentials are bound; empty otherwise.
        path: path on the host, without leading ``/``.
        username: user in the URL; empty for none.
        password: password in the URL; empty for none.
    """

    text: str
    transport: Transport
    host: str
    port: int
    origin: str
    path: str
    username: str = ""
    password: str = ""

    def __repr__(self) -> str:
        return f"GitUrl({self.text!r})"

    @property
    def full_name(self) -> str:
        """Return ``owner/name``: everything between host and ``.git``; for files the name alone."""
        path = self.path.strip("/").removesuffix(".git").rstrip("/")
        return path.rpartition("/")[2] if self.transport == "file" else path


def parse_git_url(url: str) -> GitUrl:
    """Parse a URL, an scp-like address (``git@host:path``) or a local path.

    Raises:
        SourceError: the text is none of these, or its protocol runs programs (``ext::``), or it
            looks like a URL without its slashes, or its host or path is ambiguous: Git decodes an
            ssh or git URL before it finds the host, and curl and resolvers change some names.
    """
    if not url or url.startswith("-") or any(ord(c) < 32 or ord(c) == 127 for c in url):
        raise SourceError(f"{_printable(url)!r} is not the URL of a Git repository", hint=_HINT)
    if re.match(r"[A-Za-z0-9+.-]+::", url):
        raise SourceError(f"Git protocol {url.partition('::')[0]!r} is not allowed", hint=_HINT)
    if "://" in url:
        return _from_url(url)
    scp = _SCP_FORM.fullmatch(url)
    if scp and not os.path.exists(url):
        user, host, path = scp.groups()
        if host.startswith("-") or (user or "").startswith("-"):
            raise SourceError(f"{url!r} is not the URL of a Git repository", hint=_HINT)
        if host.lower() in _SCHEMES and not user:
            raise SourceError(
                f"the address of a Git repository begins with {host}: and has no two slashes",
                hint=f"write {host.lower()}://HOST/PATH; or ssh://{host}/PATH for a host of that "
                "name",
            )
        name, port = _host_and_port(host, "ssh")
        _check_path(path)
        return GitUrl(
            text=url,
            transport="ssh",
            host=name,
            port=port,
            origin="",
            path=path,
            username=user or "",
        )
    path = os.path.abspath(os.path.expanduser(url))
    return GitUrl(text=path, transport="file", host="", port=0, origin="", path=path.lstrip("/"))


def _host_and_port(place: str, transport: Transport) -> tuple[str, int]:
    """Return the host and the port of a connection, by ``HOST[:PORT]``."""
    found = _PLACE.fullmatch(place)
    port = int(found[3] or 0) if found else 0
    if found is None or port > _MOST_PORT:
        raise SourceError(f"{place!r} is not the host of a Git repository", hint=_HOST_HINT)
    return (found[1] or found[2]).lower(), port or _PORTS[transport]


def _from_url(url: str) -> GitUrl:
    from urllib.parse import unquote

    scheme = url.partition("://")[0].lower()
    transport = _SCHEMES.get(scheme)
    if transport is None:
        raise SourceError(f"Git protocol {scheme!r} is not allowed", hint=_HINT)
    if transport == "file":
        path = unquote(url.partition("://")[2])
        _check_path(path)
        return GitUrl(text=url, transport="file", host="", port=0, origin="", path=path.lstrip("/"))
    web = transport in ("https", "http")
    # After decoding the URL, Git takes everything before the first slash as user and host.
    authority = re.split("[/?#]" if web else "/", url.partition("://")[2], maxsplit=1)[0]
    login, _, place = authority.rpartition("@")
    if not place or place.startswith(("-", ":")):
        shown = f"{scheme}://{url.rpartition('@')[2].partition('://')[2] or '...'}"
        raise SourceError(f"{shown} names no host", hint=_HINT)
    host, port = _host_and_port(place, transport)
    user, _, password = login.partition(":")
    username = unquote(user)
    if username.startswith("-"):
        raise SourceError(f"{scheme}://...@{host} is not the URL of a Git repository", hint=_HINT)
    if "\\" in login or (not web and set(unquote(login)) & set("/?#[]\\")):
        raise SourceError(
            f"the user of {scheme}://...@{host} can't be told from its host", hint=_HOST_HINT
        )
    rest = url.partition("://")[2][len(authority) :].partition("#")[0]
    _check_path(rest.partition("?")[0])
    place = place.lower().removesuffix(":")
    user_part = f"{user}@" if username and transport == "ssh" else ""
    return GitUrl(
        text=f"{scheme}://{user_part}{place}{rest}",
        transport=transport,
        host=host,
        port=port,
        origin=f"{scheme}://{place}" if web else "",
        path=unquote(rest.partition("?")[0]).lstrip("/"),
        username=username,
        password=unquote(password),
    )


def _check_path(path: str) -> None:
    """Check that a path names one repository, however often a server decodes and shortens it.

    Raises:
        SourceError: it has a segment ``.`` or ``..`` or an empty one, also with parameters
            (``..;``), a backslash, an encoded slash or control character, or text that is encoded
            many times.
    """
    from urllib.parse import unquote

    decoded = path
    for _ in range(_MOST_DECODINGS):
        decoded = unquote(decoded)
    is_endless = unquote(decoded) != decoded
    segments = decoded.removeprefix("/").removesuffix("/").split("/")
    # Some servers drop parameters before they shorten the path.
    names = {one.partition(";")[0] for one in segments}
    has_hidden = decoded.count("/") != path.count("/")
    has_controls = any(unicodedata.category(one) in ("Cc", "Zl", "Zp") for one in decoded)
    is_hidden = is_endless or has_hidden or has_controls or "\\" in decoded
    if is_hidden or (segments != [""] and {"", ".", ".."} & names):
        raise SourceError(
            "the path of the Git repository can be read in more than one way",
            hint="write it without . and .. between slashes, double slashes, backslashes and %2f",
        )


def _printable(url: str) -> str:
    """Return an unparsable URL without a possible password."""
    return url.rpartition("@")[2]
