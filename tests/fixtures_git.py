"""Real Git servers for tests: smart HTTP (with LFS), sshd, git daemon; and a repository to serve.

Everything listens on 127.0.0.1 with keys, ports and folders of its own.
"""

from __future__ import annotations

import base64
import contextlib
import gzip
import json
import os
import signal
import socket
import ssl
import subprocess
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from wsgiref.simple_server import make_server

from tests.conftest import program, started_when

_IDENTITY = {
    "GIT_AUTHOR_NAME": "A",
    "GIT_AUTHOR_EMAIL": "a@example.test",
    "GIT_COMMITTER_NAME": "A",
    "GIT_COMMITTER_EMAIL": "a@example.test",
    "GIT_CONFIG_GLOBAL": os.devnull,
    "GIT_CONFIG_NOSYSTEM": "1",
}


def git(folder: Path | str, *arguments: str, **environment: str) -> str:
    """Run git as a user would; its output without the final newline."""
    done = subprocess.run(
        ["git", "-c", "protocol.file.allow=always", *arguments],
        cwd=folder,
        env={**os.environ, **_IDENTITY, **environment},
        check=True,
        capture_output=True,
    )
    return done.stdout.decode("utf-8", "surrogateescape").removesuffix("\n")


class Repository:
    """A bare repository with a history, in which a test may change things."""

    def __init__(self, root: Path, name: str = "team/shop.git") -> None:
        self.root = root
        self.name = name
        self.path = root / name
        self.work = root / "work"
        self.path.mkdir(parents=True)
        git(self.path, "init", "-q", "--bare", "-b", "main", ".")
        git(root, "init", "-q", "-b", "main", "work")
        git(self.work, "remote", "add", "origin", str(self.path))

    def commit(self, files: dict[str | bytes, bytes], message: str = "change") -> str:
        """Add files, commit; the commit's SHA."""
        for name, content in files.items():
            path = self.work / os.fsdecode(name)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        git(self.work, "add", "-A")
        git(self.work, "commit", "-q", "--allow-empty", "-m", message)
        return git(self.work, "rev-parse", "HEAD")

    def push(self, *refspecs: str) -> None:
        git(self.work, "push", "-q", "--force", "origin", *refspecs)


class Shop(Repository):
    """The repository that every transport serves.

    Attributes:
        first, second, tip: commits of main, the oldest first.
        feature: tip of feature/x.
        pull: what refs/pull/1/head names, which lies on no branch.
        tag_object: of the annotated tag v1.0, which points to ``second``.
    """

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.work.joinpath("run.sh").write_bytes(b"#!/bin/sh\necho hello\n")
        self.work.joinpath("run.sh").chmod(0o755)
        self.work.joinpath("outside").symlink_to("/etc/passwd")
        self.work.joinpath("broken").symlink_to("nowhere/at all")
        self.work.joinpath("etc").symlink_to("/etc")
        self.first = self.commit(
            {
                "README": b"one\n",
                "with space/and\nnewline": b"odd\n",
                b"latin-\xe9\xff.txt": b"bytes\n",
                "crlf.txt": b"a\r\nb\r\n",
                ".hidden": b"",
            }
        )
        git(self.work, "tag", "light")
        self.second = self.commit({"README": b"two\n"})
        git(self.work, "tag", "-a", "v1.0", "-m", "first release")
        self.tag_object = git(self.work, "rev-parse", "v1.0")
        self.tip = self.commit({"README": b"three\n"})
        git(self.work, "checkout", "-q", "-b", "feature/x", self.second)
        self.feature = self.commit({"feature": b"x\n"})
        git(self.work, "checkout", "-q", "--detach", self.second)
        self.pull = self.commit({"pull": b"1\n"})
        git(self.work, "checkout", "-q", "main")
        self.push("main", "feature/x", "light", "v1.0", f"{self.pull}:refs/pull/1/head")


class HttpServer:
    """``git http-backend`` and an LFS server behind Python's own HTTP server.

    Attributes:
        root: what is served.
        users: name -> password; when there are any, every request must carry one of them.
        on_request: called with the method and path of every request, before it is answered.
        before_pack: called once before the next pack is sent.
        refuse: status codes for the next requests, then all is well again.
        cut_after: bytes of the next large answer after which the connection is cut; None: never.
        stall: hold the next pack back until this event is set.
        requests: method and path of every request so far.
        sent_bytes: of all answers.
        lfs_objects: content by oid.
        lfs_redirect: what is in the paths of LFS that are redirected, status, and the other base.
    """

    def __init__(self, root: Path, *, certificate: Path | None = None) -> None:
        self.root = root
        self.users: dict[str, str] = {}
        self.on_request: Callable[[str], None] | None = None
        self.before_pack: Callable[[], None] | None = None
        self.refuse: list[int] = []
        self.redirect_to = ""
        self.cut_after: int | None = None
        self.stall: threading.Event | None = None
        self.stalled = threading.Event()
        self.requests: list[str] = []
        self.sent_bytes = 0
        self.lfs_objects: dict[str, bytes] = {}
        self.lfs_redirect: tuple[str, int, str] | None = None
        owner = self

        class Handler(_GitHandler):
            server_of = owner

        self._server = _QuietServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        scheme = "http"
        if certificate is not None:
            scheme = "https"
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate)
            self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        self.port = self._server.server_address[1]
        self.base = self.lfs_base = f"{scheme}://127.0.0.1:{self.port}"
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def url(self, name: str = "team/shop.git") -> str:
        return f"{self.base}/{name}"

    def close(self) -> None:
        if self.stall is not None:
            self.stall.set()
        self._server.shutdown()
        self._server.server_close()


class _QuietServer(ThreadingHTTPServer):
    def handle_error(self, *_: object) -> None:
        """A client that is killed hangs up: that is what some tests are about."""


class _GitHandler(BaseHTTPRequestHandler):
    server_of: HttpServer
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        """Say nothing."""

    def do_GET(self) -> None:
        self._answer(b"")

    def do_POST(self) -> None:
        self._answer(self._body())

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", "0")))
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def _answer(self, body: bytes) -> None:
        server = self.server_of
        server.requests.append(f"{self.command} {self.path}")
        if server.on_request is not None:
            server.on_request(server.requests[-1])
        if server.redirect_to:
            self._send(302, [("Location", server.redirect_to + self.path)], b"")
        elif server.refuse:
            self._send(server.refuse.pop(0), [], b"not now\n")
        elif not self._allowed():
            self._send(401, [("WWW-Authenticate", 'Basic realm="git"')], b"who are you?\n")
        elif "/info/lfs/" in self.path:
            self._lfs(body)
        else:
            self._git(body)

    def _allowed(self) -> bool:
        users = self.server_of.users
        kind, _, value = self.headers.get("Authorization", "").partition(" ")
        if not users:
            return True
        if kind != "Basic":
            return False
        name, _, password = base64.b64decode(value).decode().partition(":")
        return users.get(name) == password

    def _send(self, status: int, headers: list[tuple[str, str]], body: bytes) -> None:
        self.send_response(status)
        for name, value in headers:
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.server_of.sent_bytes += len(body)
        cut = self.server_of.cut_after
        if cut is not None and len(body) > cut:
            self.server_of.cut_after = None
            self.wfile.write(body[:cut])
            self.wfile.flush()
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)
            return
        self.wfile.write(body)

    def _git(self, body: bytes) -> None:
        server = self.server_of
        path, _, query = self.path.partition("?")
        if path.endswith("git-upload-pack") and self.command == "POST" and b"fetch" in body[:100]:
            hook, server.before_pack = server.before_pack, None
            if hook is not None:
                hook()
            if server.stall is not None:
                server.stalled.set()
                server.stall.wait(30)
        environment = {
            **os.environ,
            "GIT_PROJECT_ROOT": str(server.root),
            "GIT_HTTP_EXPORT_ALL": "1",
            "PATH_INFO": path,
            "QUERY_STRING": query,
            "REQUEST_METHOD": self.command,
            "CONTENT_TYPE": self.headers.get("Content-Type", ""),
            "CONTENT_LENGTH": str(len(body)),
            "HTTP_CONTENT_ENCODING": self.headers.get("Content-Encoding", ""),
            "GIT_PROTOCOL": self.headers.get("Git-Protocol", ""),
        }
        done = subprocess.run(
            ["git", "-c", "safe.directory=*", "http-backend"],
            input=body,
            env=environment,
            capture_output=True,
            check=False,
        )
        head, _, answer = done.stdout.partition(b"\r\n\r\n")
        if not head:  # an empty 200 would be an empty repository of the oldest kind
            self._send(500, [], b"git http-backend: %d %s" % (done.returncode, done.stderr))
            return
        status = 200
        headers = []
        for line in head.decode().split("\r\n"):
            name, _, value = line.partition(": ")
            if name == "Status":
                status = int(value.split()[0])
            elif name:
                headers.append((name, value))
        self._send(status, headers, answer)

    def _lfs(self, body: bytes) -> None:
        objects = self.server_of.lfs_objects
        oid = self.path.rpartition("/")[2]
        redirect = self.server_of.lfs_redirect
        # The path of a batch has objects/, too.
        if redirect and redirect[0] in self.path.replace("objects/batch", "batch"):
            self._send(redirect[1], [("Location", redirect[2] + self.path)], b"")
            return
        if self.command == "GET":
            self._send(200 if oid in objects else 404, [], objects.get(oid, b""))
            return
        if self.headers.get("Content-Encoding") == "gzip":
            body = gzip.decompress(body)
        base = self.path.rpartition("/objects/")[0]
        answer = {
            "transfer": "basic",
            "objects": [
                {
                    "oid": wanted["oid"],
                    "size": wanted["size"],
                    "authenticated": True,
                    "actions": {
                        "download": {
                            "href": f"{self.server_of.lfs_base}{base}/objects/{wanted['oid']}",
                            "header": {"Authorization": self.headers.get("Authorization", "none")},
                        }
                    },
                }
                if wanted["oid"] in objects
                else {
                    "oid": wanted["oid"],
                    "size": wanted["size"],
                    "error": {"code": 404, "message": "Object does not exist"},
                }
                for wanted in json.loads(body)["objects"]
            ],
        }
        kind = [("Content-Type", "application/vnd.git-lfs+json")]
        self._send(200, kind, json.dumps(answer).encode())


class SshServer:
    """Debian's sshd, for this user, with keys of its own.

    Attributes:
        host_key: public host key, as in a known_hosts file after the host.
        key: private key that may log in.
        stranger: private key that may not.
        known_hosts: file that knows the server.
    """

    def __init__(self, root: Path, folder: Path) -> None:
        self.root = root
        self.port = free_port()
        folder.mkdir(parents=True, exist_ok=True)
        for name in ("host", "client", "stranger"):
            subprocess.run(
                ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)],
                check=True,
            )
        self.key = folder / "client"
        self.stranger = folder / "stranger"
        self.host_key = " ".join((folder / "host.pub").read_text().split()[:2])
        self.known_hosts = folder / "known_hosts"
        self.known_hosts.write_text(f"[127.0.0.1]:{self.port} {self.host_key}\n")
        (folder / "authorized").write_text((folder / "client.pub").read_text())
        config = folder / "sshd_config"
        config.write_text(
            f"Port {self.port}\nListenAddress 127.0.0.1\nHostKey {folder}/host\n"
            f"AuthorizedKeysFile {folder}/authorized\nPidFile none\nUsePAM no\nStrictModes no\n"
            "PasswordAuthentication no\nKbdInteractiveAuthentication no\nPermitRootLogin yes\n"
            "AcceptEnv GIT_PROTOCOL\nPrintMotd no\nLogLevel INFO\n"
        )
        if os.geteuid() == 0:
            Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
        self._process = _start(
            [program("sshd", "openssh-server"), "-D", "-e", "-f", str(config)],
            b"Server listening",
        )

    @property
    def fingerprint(self) -> str:
        listed = subprocess.run(
            ["ssh-keygen", "-lf", str(self.known_hosts)], check=True, capture_output=True
        )
        return listed.stdout.decode().split()[1]

    def url(self, name: str = "team/shop.git") -> str:
        user = subprocess.run(["id", "-un"], check=True, capture_output=True).stdout.decode()
        return f"ssh://{user.strip()}@127.0.0.1:{self.port}{self.root}/{name}"

    def close(self) -> None:
        _stop(self._process)


class DaemonServer:
    """``git daemon``: git:// without any authentication."""

    def __init__(self, root: Path) -> None:
        self.port = free_port()
        self._process = _start(
            [
                "git",
                "-c",
                "safe.directory=*",
                "daemon",
                "--listen=127.0.0.1",
                f"--port={self.port}",
                f"--base-path={root}",
                "--export-all",
                "--reuseaddr",
                "--verbose",
            ],
            b"Ready to rumble",
        )

    def url(self, name: str = "team/shop.git") -> str:
        return f"git://127.0.0.1:{self.port}/{name}"

    def close(self) -> None:
        _stop(self._process)


class DulwichServer:
    """Git by another hand, without a line of git's own code: the first protocol over HTTP.

    It gives out only what refs name. Its filters leave out more than they should.
    """

    def __init__(self, root: Path, *names: str) -> None:
        from dulwich.repo import Repo
        from dulwich.server import DictBackend
        from dulwich.web import WSGIRequestHandlerLogger, make_wsgi_chain

        class Quiet(WSGIRequestHandlerLogger):
            def log_message(self, *_: object) -> None:
                """Say nothing."""

        self._repositories = {f"/{name}": Repo(str(root / name)) for name in names}
        application = make_wsgi_chain(DictBackend(self._repositories))
        self._server = make_server("127.0.0.1", 0, application, handler_class=Quiet)
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def url(self, name: str = "team/shop.git") -> str:
        return f"http://127.0.0.1:{self._server.server_port}/{name}"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        for repository in self._repositories.values():
            repository.close()


class PlainServer:
    """A web server that knows nothing of Git: a repository is some files to it ("dumb" HTTP)."""

    def __init__(self, root: Path, *names: str) -> None:
        for name in names:
            git(root / name, "update-server-info")

        class Files(SimpleHTTPRequestHandler):
            def __init__(self, *arguments: Any) -> None:
                super().__init__(*arguments, directory=str(root))

            def log_message(self, *_: object) -> None:
                """Say nothing."""

        self._server = _QuietServer(("127.0.0.1", 0), Files)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def url(self, name: str = "team/shop.git") -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}/{name}"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@contextlib.contextmanager
def closing(server: Any) -> Iterator[Any]:
    """Close a server whatever happens."""
    try:
        yield server
    finally:
        server.close()


def free_port() -> int:
    """A port of 127.0.0.1 that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _start(command: list[str], ready: bytes) -> subprocess.Popen[bytes]:
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True
    )
    started_when(process, ready)
    return process


def _stop(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
    process.wait(60)
