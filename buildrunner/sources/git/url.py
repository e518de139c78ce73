"""Where a Git repository is, taken apart: transport, host, credentials, the name to show."""

from __future__ import annotations

import os
import re
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


class GitUrl(msgspec.Struct, frozen=True, kw_only=True):
    """A repository's URL without what must stay secret.

    Attributes:
        text: what git is given, what is stored and shown: no password, and for https no user.
        transport: how git reaches it.
        host: lower case, without port; empty for files.
        origin: ``scheme://host:port``, to which https credentials are bound; empty otherwise.
        path: path on the host, without leading ``/``.
        username: user that the URL named; empty when none.
        password: password that the URL held; empty when none.
    """

    text: str
    transport: Transport
    host: str
    origin: str
    path: str
    username: str = ""
    password: str = ""

    def __repr__(self) -> str:
        return f"GitUrl({self.text!r})"

    @property
    def full_name(self) -> str:
        """``owner/name``, whatever lies between host and ``.git``; for files the name alone."""
        path = self.path.strip("/").removesuffix(".git").rstrip("/")
        return path.rpartition("/")[2] if self.transport == "file" else path


def parse_git_url(url: str) -> GitUrl:
    """Take a URL, an scp-like address (``git@host:path``) or a local path apart.

    Raises:
        SourceError: it is none of these, or speaks a protocol that runs programs (``ext::``).
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
        name = host.strip("[]").lower()
        return GitUrl(
            text=url, transport="ssh", host=name, origin="", path=path, username=user or ""
        )
    path = os.path.abspath(os.path.expanduser(url))
    return GitUrl(text=path, transport="file", host="", origin="", path=path.lstrip("/"))


def _from_url(url: str) -> GitUrl:
    from urllib.parse import unquote, urlsplit

    scheme = url.partition("://")[0].lower()
    transport = _SCHEMES.get(scheme)
    if transport is None:
        raise SourceError(f"Git protocol {scheme!r} is not allowed", hint=_HINT)
    if transport == "file":
        path = unquote(url.partition("://")[2])
        return GitUrl(text=url, transport="file", host="", origin="", path=path.lstrip("/"))
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
    except ValueError:
        host, port, parts = "", None, urlsplit("")
    if not host or host.startswith("-"):
        shown = f"{scheme}://{url.rpartition('@')[2].partition('://')[2] or '...'}"
        raise SourceError(f"{shown} names no host", hint=_HINT)
    username, password = unquote(parts.username or ""), unquote(parts.password or "")
    if username.startswith("-"):
        raise SourceError(f"{scheme}://...@{host} is not the URL of a Git repository", hint=_HINT)
    place = f"[{host}]" if ":" in host else host
    place += f":{port}" if port else ""
    web = transport in ("https", "http")
    user_part = f"{parts.username}@" if username and transport == "ssh" else ""
    rest = parts.path + (f"?{parts.query}" if parts.query else "")
    return GitUrl(
        text=f"{scheme}://{user_part}{place}{rest}",
        transport=transport,
        host=host,
        origin=f"{scheme}://{place}" if web else "",
        path=unquote(parts.path).lstrip("/"),
        username=username,
        password=password,
    )


def _printable(url: str) -> str:
    """A URL that can't be parsed, without what may be a password in it."""
    return url.rpartition("@")[2]
