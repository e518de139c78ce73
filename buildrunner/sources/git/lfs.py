"""Downloads Git LFS files, only from checked addresses.

An LFS server names the URLs of its files, and may redirect requests. git-lfs connects to any such
URL, and for loopback addresses even bypasses a proxy. So git-lfs transfers nothing here: it passes
each file to a transfer agent, which forwards the request to this process.

Source: git-lfs, "Adding Custom Transfer Agents" and "Git LFS Batch API".
"""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import socketserver
import ssl
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from netrc import NetrcParseError, netrc
from typing import Any
from urllib.parse import unquote, urljoin, urlsplit
from urllib.request import getproxies

import httpx
import msgspec

from buildrunner.deadline import Deadline
from buildrunner.errors import SourceError
from buildrunner.pinned_transport import PinnedTransport
from buildrunner.sources.git.command import GitCommand
from buildrunner.sources.git.errors import GitFailed
from buildrunner.sources.git.url import parse_git_url

_JSON = "application/vnd.git-lfs+json"
_TIMEOUT = httpx.Timeout(60.0, connect=30.0)
_TRIES = 3
_MOST_ANSWER = 4 << 20
_PIECE_BYTES = 1 << 20
# The limit for a whole file, for servers that send a byte now and then.
_ANSWERS_S = 300.0
_SLOWEST_BYTES_PER_S = 32 << 10
_ACCESS_S = 120.0  # how long a server's answer by ssh is used; most are valid for longer
_SSH = '!sh -c "$GIT_SSH_COMMAND \\"\\$@\\"" ssh'
# The program that git-lfs starts. It forwards lines, and returns one answer for each.
_AGENT = """
import json, os, socket, sys
with socket.socket(socket.AF_UNIX) as made:
    made.connect(sys.argv[1])
    with made.makefile("rwb", buffering=0) as peer:
        peer.write(json.dumps(os.getcwd()).encode() + b"\\n")
        for line in sys.stdin.buffer:
            peer.write(line)
            answer = peer.readline()
            if not answer:
                break
            sys.stdout.buffer.write(answer)
            sys.stdout.flush()
"""


class _Action(msgspec.Struct):
    """The URL and the headers of a request."""

    href: str
    header: dict[str, str] = {}


class _Failure(msgspec.Struct):
    code: int = 0
    message: str = ""


class _Object(msgspec.Struct):
    actions: dict[str, _Action] = {}
    error: _Failure | None = None


class _Batch(msgspec.Struct):
    objects: list[_Object] = []


class LfsTransfers:
    """The transfers of one checkout. A context manager.

    Args:
        git: runs git for the repository, and checks hosts.
    """

    def __init__(self, git: GitCommand) -> None:
        self._git = git
        self._lock = threading.Lock()  # `GitCommand` is for one thread at a time
        self._accesses: dict[str, tuple[float, _Action]] = {}
        self._contexts: dict[tuple[str, ...], ssl.SSLContext] = {}
        self._ended = threading.Event()
        self._folder = tempfile.TemporaryDirectory(prefix="buildrunner-lfs-")
        self._path = os.path.join(self._folder.name, "s")
        self._agent = os.path.join(self._folder.name, "agent.py")
        with open(self._agent, "w", encoding="utf-8") as file:  # settings must be on one line
            file.write(_AGENT)
        self._server = _Server(self._path, self)
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(0.05,), name="git-lfs", daemon=True
        )

    @property
    def settings(self) -> list[tuple[str, str]]:
        """Return the settings by which git-lfs passes each file to this object."""
        agent = "lfs.customtransfer.buildrunner"
        return [
            ("lfs.standalonetransferagent", "buildrunner"),
            (f"{agent}.path", sys.executable),
            (f"{agent}.args", shlex.join(["-I", "-S", self._agent, self._path])),
            (f"{agent}.concurrent", "true"),
            (f"{agent}.direction", "download"),
        ]

    def __enter__(self) -> LfsTransfers:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()  # a download that still runs would fill a folder that nobody watches
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
        self._folder.cleanup()

    def download(self, folder: str, oid: str, size: int) -> str:
        """Download a file into the folder of git-lfs. Returns its path.

        Args:
            folder: the work tree of the repository that names the file.
            oid: SHA-256 of the file.
            size: size of the file; no more is read.

        Raises:
            SourceError: the file can't be downloaded, or its content is not that of ``oid``.
        """
        with self._lock:
            access = self._access(folder)
            kept = self._git.run("rev-parse", "--absolute-git-dir", folder=folder)
        place = os.path.join(kept.removesuffix("\n"), "lfs", "tmp")
        os.makedirs(place, exist_ok=True)
        path = os.path.join(place, f"{oid}-{threading.get_ident()}")
        if access.href.startswith("file:"):
            found = self._local(access.href, oid)
            with open(found, "rb") as file:
                pieces = iter(lambda: file.read(_PIECE_BYTES), b"")
                _save(self._until_end(pieces), path, oid, size, found)
            return path
        limit_s = _ANSWERS_S + size / _SLOWEST_BYTES_PER_S
        with (
            Deadline(limit_s) as deadline,
            httpx.Client(
                transport=_GitTransport(self._git, self._lock, self._contexts, deadline),
                timeout=_TIMEOUT,
                trust_env=False,
                follow_redirects=True,
                max_redirects=3,
                headers={"Accept-Encoding": "identity", "User-Agent": "git-lfs/buildrunner"},
            ) as client,
        ):
            try:
                action = self._action(client, access, oid, size)
                answer = self._sent(client, "GET", action)
                try:
                    _save(self._until_end(answer.iter_raw()), path, oid, size, str(answer.url))
                except httpx.HTTPError as error:
                    raise SourceError(f"{action.href}: {_reason(error)}") from error
                finally:
                    answer.close()
            except SourceError as error:
                if not deadline.is_over:
                    raise
                text = f"{access.href} takes longer than {limit_s:.0f} s for {size:,} bytes"
                raise SourceError(text) from error
        return path

    def _until_end(self, pieces: Iterable[bytes]) -> Iterator[bytes]:
        for piece in pieces:
            if self._ended.is_set():
                raise SourceError("the checkout has ended")
            yield piece

    def _local(self, url: str, oid: str) -> str:
        """Return the file in a repository of this machine, if the policy allows that."""
        with self._lock:
            self._git.check_host(url)
        folder = f"/{parse_git_url(url).path}"
        inner = os.path.join("lfs", "objects", oid[:2], oid[2:4], oid)
        paths = (os.path.join(folder, inner), os.path.join(folder, ".git", inner))
        found = next(filter(os.path.isfile, paths), None)
        if found is None:
            raise SourceError(f"Repository or object not found: {url}")
        return found

    def _action(self, client: httpx.Client, access: _Action, oid: str, size: int) -> _Action:
        """Request a file's URL from the LFS server."""
        body = {
            "operation": "download",
            "transfers": ["basic"],
            "objects": [{"oid": oid, "size": size}],
            "hash_algo": "sha256",
        }
        batch = f"{access.href.rstrip('/')}/objects/batch"
        headers = {**access.header, "Accept": _JSON, "Content-Type": _JSON}
        answer = self._sent(client, "POST", _Action(batch, headers), json.dumps(body).encode())
        content = b""
        try:
            for piece in answer.iter_raw():
                content += piece
                if len(content) > _MOST_ANSWER:
                    raise SourceError(f"batch response: {batch} answers with too much")
            found = msgspec.json.decode(content, type=_Batch).objects[0]
        except httpx.HTTPError as error:
            raise SourceError(f"batch response: {_reason(error)}") from error
        except (msgspec.DecodeError, RecursionError, LookupError) as error:
            raise SourceError("batch response: Expected JSON type") from error
        finally:
            answer.close()
        if found.error is not None and found.error.code != 404:
            raise SourceError(f"{found.error.message}")
        action = found.actions.get("download")
        if found.error is not None or action is None:
            raise SourceError(f"Repository or object not found: {batch}")
        return _Action(urljoin(batch, action.href), action.header)

    def _sent(
        self, client: httpx.Client, method: str, action: _Action, body: bytes = b""
    ) -> httpx.Response:
        """Send a request, with a login if needed. Returns the successful answer, not yet read."""
        headers = dict(action.header)
        answer = self._tried(client, method, action.href, headers, body)
        is_named = any(name.lower() == "authorization" for name in headers)
        if (
            answer.status_code == httpx.codes.UNAUTHORIZED
            and not is_named
            and (login := self._login(action.href))
        ):
            authorized = next(login.auth_flow(httpx.Request("GET", action.href)))
            headers["Authorization"] = authorized.headers["Authorization"]
            answer = self._tried(client, method, action.href, headers, body)
        if answer.is_success:
            return answer
        answer.close()
        if answer.status_code in (httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN):
            raise SourceError(f"Authorization error: {action.href}")
        if answer.status_code == httpx.codes.NOT_FOUND:
            raise SourceError(f"Repository or object not found: {action.href}")
        raise SourceError(f"HTTP {answer.status_code}: {action.href}")

    @staticmethod
    def _tried(
        client: httpx.Client, method: str, url: str, headers: dict[str, str], body: bytes
    ) -> httpx.Response:
        """Send a request, up to three times if the server does not answer or breaks."""
        for left in range(_TRIES - 1, -1, -1):
            try:
                request = client.build_request(method, url, headers=headers, content=body)
                answer = client.send(request, stream=True)
            except (httpx.HTTPError, httpx.InvalidURL, UnicodeError) as error:
                if not left:
                    raise SourceError(f"{url}: {_reason(error)}") from error
            else:
                if not answer.is_server_error or not left:
                    return answer
                answer.close()
        raise AssertionError  # the last try returns or raises

    def _access(self, folder: str) -> _Action:
        """Return the LFS server of a repository, with the headers from its answer by ssh."""
        until, known = self._accesses.get(folder, (0.0, None))
        if known is not None and time.monotonic() < until:
            return known
        lines = self._git.run("lfs", "env", folder=folder).splitlines()
        endpoint = next((line for line in lines if line.startswith("Endpoint=")), "")
        url = endpoint.removeprefix("Endpoint=").rpartition(" (auth=")[0]
        after = lines[lines.index(endpoint) + 1 :][:1] if endpoint else []
        found = _Action(url)
        if after and after[0].startswith("  SSH="):
            found = self._authenticated(folder, after[0].removeprefix("  SSH="), url)
        self._accesses[folder] = time.monotonic() + _ACCESS_S, found
        return found

    def _authenticated(self, folder: str, place: str, url: str) -> _Action:
        user_and_host, _, path = place.partition(":")
        parse_git_url(f"ssh://{user_and_host}/")  # refuses a host that ssh would read as an option
        remote = parse_git_url(
            self._git.run("ls-remote", "--get-url", "origin", folder=folder).strip()
        )
        is_same = remote.host == user_and_host.rpartition("@")[2].lower()
        port = ["-p", str(remote.port)] if is_same and remote.port != 22 else []
        command = f"git-lfs-authenticate {shlex.quote(path)} download"
        said = self._git.run(
            *("-c", f"alias.lfs-authenticate={_SSH}", "lfs-authenticate"),
            *(*port, "--", user_and_host, command),
            folder=folder,
            timeout_s=_ACCESS_S,
        )
        try:
            found = msgspec.json.decode(said, type=dict[str, Any])
            return _Action(str(found.get("href") or url), dict(found.get("header") or {}))
        except (msgspec.DecodeError, RecursionError, ValueError, TypeError) as error:
            raise SourceError(f"batch response: {user_and_host} knows no Git LFS") from error

    def _login(self, url: str) -> httpx.BasicAuth | None:
        """Return the login for a URL, from Git's own sources."""
        parts = urlsplit(url)
        with suppress(OSError, NetrcParseError):
            found = (
                netrc().authenticators(parts.hostname or "") if parts.scheme == "https" else None
            )
            if found and found[2]:
                return httpx.BasicAuth(found[0], found[2])
        host = parts.netloc.rpartition("@")[2]
        path = unquote(parts.path).lstrip("/")
        if not f"{host}{path}".isprintable():  # a line of its own would name another host
            return None
        wanted = f"protocol={parts.scheme}\nhost={host}\npath={path}\n\n"
        try:
            with self._lock:
                lines = self._git.run("credential", "fill", text=wanted).splitlines()
        except GitFailed as failed:
            if failed.kind == "cancelled":
                raise
            return None
        filled = dict(line.split("=", 1) for line in lines if "=" in line)
        return httpx.BasicAuth(filled.get("username", ""), filled.get("password", ""))


class _GitTransport(PinnedTransport):
    """Connects to the hosts that Git may reach, with Git's settings for the URL."""

    def __init__(
        self,
        git: GitCommand,
        lock: threading.Lock,
        contexts: dict[tuple[str, ...], ssl.SSLContext],
        deadline: Deadline,
    ) -> None:
        super().__init__(ssl.create_default_context(), getproxies())
        self._git = git
        self._git_lock = lock
        self._contexts = contexts
        self._deadline = deadline

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """See `PinnedTransport.handle_request`.

        Raises:
            SourceError: the time is over.
        """
        if self._deadline.is_over:
            raise SourceError(f"{request.url.host} answers too slowly")
        # For this URL alone: a copy, since a redirect keeps the headers of the request.
        own = [
            (name, value)
            for name, value in self._extra_headers(str(request.url))
            if name.lower() not in request.headers
        ]
        extensions = {**request.extensions, "trace": self._deadline.trace}
        return super().handle_request(
            httpx.Request(
                request.method,
                request.url,
                headers=[*request.headers.multi_items(), *own],
                stream=request.stream,
                extensions=extensions,
            )
        )

    def tls(self, url: httpx.URL) -> ssl.SSLContext:
        """Return Git's TLS settings for a URL: authorities and client certificate.

        Raises:
            SourceError: a file that Git's settings name can't be used.
        """
        names = ("sslverify", "sslcainfo", "sslcert", "sslkey")
        settings = tuple(self._setting(f"http.{name}", str(url)) for name in names)
        context = self._contexts.get(settings)
        if context is None:
            context = self._contexts[settings] = _context(*settings)
        return context

    def _setting(self, name: str, url: str) -> str:
        """Return Git's setting for a URL; empty if there is none."""
        kind = "bool" if name == "http.sslverify" else "path"
        with self._git_lock, suppress(GitFailed):
            found = self._git.run("config", f"--type={kind}", "--get-urlmatch", name, url)
            return found.removesuffix("\n")
        return ""

    def _extra_headers(self, url: str) -> list[tuple[str, str]]:
        """Return Git's ``http.extraHeader`` for a URL.

        Git sends headers without a URL to every host. They are often a login, so here they go to
        only the host of the repository.
        """
        with self._git_lock:
            try:
                listed = self._git.run(
                    "config", "--null", "--get-regexp", r"^http\.(.*\.)?extraheader$"
                )
            except GitFailed as failed:
                if failed.kind == "cancelled":
                    raise
                return []  # the setting does not exist
        found: dict[str, list[str]] = {}
        for entry in filter(None, listed.split("\0")):
            key, _, value = entry.partition("\n")
            place = key.removeprefix("http.").removesuffix("extraheader").removesuffix(".")
            place = place or self._git.url.origin
            if place and _covers(place, url):
                headers = found.setdefault(place, [])
                headers.append(value) if value else headers.clear()
        best = found.get(max(found, key=len, default=""), [])
        split = (one.partition(":") for one in best)
        return [(name.strip(), value.strip()) for name, colon, value in split if colon]

    def addresses(self, url: httpx.URL, host: str) -> Sequence[str]:  # noqa: ARG002
        """See `PinnedTransport.addresses`."""
        with self._git_lock:
            try:
                return self._git.addresses_of(str(url))
            except GitFailed as failed:
                if failed.kind != "network":
                    raise
                raise httpx.ConnectError(str(failed)) from failed

    def wrong_proxy(self, kind: str) -> SourceError:
        """See `PinnedTransport.wrong_proxy`."""
        return SourceError(f"Git LFS can't be reached by a proxy of {kind}://")


class _Server(socketserver.ThreadingUnixStreamServer):
    daemon_threads = True
    block_on_close = False

    def __init__(self, path: str, transfers: LfsTransfers) -> None:
        super().__init__(path, _Handler)
        self.transfers = transfers

    def handle_error(self, *_: object) -> None:
        """Log nothing: git-lfs reports that its agent has ended."""


class _Handler(socketserver.StreamRequestHandler):
    server: _Server

    def handle(self) -> None:
        """Serve one agent of git-lfs."""
        folder = str(json.loads(self.rfile.readline()))
        for line in self.rfile:
            event = json.loads(line)
            if event["event"] == "terminate":
                return
            answer = {} if event["event"] == "init" else self._complete(folder, event)
            self.wfile.write(json.dumps(answer).encode() + b"\n")

    def _complete(self, folder: str, event: Mapping[str, Any]) -> dict[str, Any]:
        oid = str(event["oid"])
        done = {"event": "complete", "oid": oid}
        try:
            return {**done, "path": self.server.transfers.download(folder, oid, event["size"])}
        except (SourceError, OSError, ssl.SSLError) as error:
            return {**done, "error": {"code": 1, "message": f"LFS: {error}"}}


def _save(pieces: Iterable[bytes], path: str, oid: str, size: int, name: str) -> None:
    """Write a file.

    Raises:
        SourceError: the content is larger than ``size``, or its digest is not ``oid``.
        httpx.HTTPError: the file did not arrive.
    """
    digest = hashlib.sha256()
    with open(path, "wb") as file:
        for piece in pieces:
            file.write(piece)
            digest.update(piece)
            if file.tell() > size:
                raise SourceError(f"{name} is larger than {size:,} bytes")
        written = file.tell()
    if digest.hexdigest() != oid:
        raise SourceError(f"expected OID {oid}, got {digest.hexdigest()} after {written} bytes")


def _reason(error: Exception) -> str:
    return str(error) or type(error).__name__


def _context(verify: str, authorities: str, certificate: str, key: str) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context()
        if verify == "false":
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        elif authorities:
            context.load_verify_locations(authorities)
        if certificate:
            # There is no prompt for a password, so a key with one can't be used.
            context.load_cert_chain(certificate, key or None, password="")
    except OSError as error:
        named = ", ".join(filter(None, (authorities, certificate, key)))
        raise SourceError(f"Git's settings http.ssl* name {named}: {error}") from error
    return context


def _covers(place: str, url: str) -> bool:
    """Return whether a URL is at or below the URL of a Git setting."""
    try:
        one, other = httpx.URL(place), httpx.URL(url)
    except httpx.InvalidURL:
        return False
    same = (one.scheme, one.host, one.port) == (other.scheme, other.host, other.port)
    path = one.path.rstrip("/")
    return same and (other.path.rstrip("/") == path or other.path.startswith(f"{path}/"))
