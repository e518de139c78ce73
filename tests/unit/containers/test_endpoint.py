"""Finding the engine as the docker command does, and reaching it by every kind of address."""

from __future__ import annotations

import hashlib
import json
import os
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from buildrunner.containers.docker.endpoint import (
    Endpoint,
    find_endpoint,
    first_socket,
    open_socket,
)
from buildrunner.containers.docker.engine import DockerEngine
from buildrunner.errors import EngineUnavailable, UsageError


class TestFinding:
    def test_the_local_socket_is_the_default(self, tmp_path: Path) -> None:
        assert find_endpoint({"HOME": str(tmp_path)}) == Endpoint(
            address="unix:///var/run/docker.sock"
        )

    def test_without_docker_the_first_socket_of_another_engine_is_used(
        self, tmp_path: Path
    ) -> None:
        paths = [str(tmp_path / name) for name in ("docker", "rootless", "podman")]
        assert first_socket(paths) == paths[0]
        for path in reversed(paths):
            Path(path).touch()
            assert first_socket(paths) == path

    @pytest.mark.parametrize(
        ("host", "address"),
        [
            ("unix:///x.sock", "unix:///x.sock"),
            ("/x.sock", "unix:///x.sock"),
            ("tcp://h:1", "tcp://h:1"),
            ("h:1", "tcp://h:1"),
            ("ssh://me@h", "ssh://me@h"),
        ],
    )
    def test_docker_host_wins(self, host: str, address: str, tmp_path: Path) -> None:
        environ = {"DOCKER_HOST": host, "DOCKER_CONTEXT": "other", "HOME": str(tmp_path)}
        assert find_endpoint(environ) == Endpoint(
            address=address, origin="DOCKER_HOST", tls_verify=False
        )

    def test_tls_is_asked_for_by_the_environment(self, tmp_path: Path) -> None:
        environ = {"DOCKER_HOST": "tcp://h:1", "DOCKER_TLS_VERIFY": "1", "HOME": str(tmp_path)}
        found = find_endpoint(environ)
        assert (found.tls_dir, found.tls_verify) == (str(tmp_path / ".docker"), True)
        assert find_endpoint({**environ, "DOCKER_CERT_PATH": "/certs"}).tls_dir == "/certs"

    def test_a_context_is_read(self, tmp_path: Path) -> None:
        (tmp_path / "config.json").write_text(json.dumps({"currentContext": "far"}))
        key = hashlib.sha256(b"far").hexdigest()
        meta = tmp_path / "contexts" / "meta" / key
        meta.mkdir(parents=True)
        docker = {"Host": "ssh://me@far", "SkipTLSVerify": True}
        (meta / "meta.json").write_text(
            json.dumps({"Name": "far", "Endpoints": {"docker": docker}})
        )
        environ = {"DOCKER_CONFIG": str(tmp_path)}
        expected = Endpoint(address="ssh://me@far", tls_verify=False, origin="docker context far")
        assert find_endpoint(environ) == expected
        tls = tmp_path / "contexts" / "tls" / key / "docker"
        tls.mkdir(parents=True)
        assert find_endpoint(environ).tls_dir == str(tls)
        assert find_endpoint({**environ, "DOCKER_CONTEXT": "default"}) == Endpoint()

    def test_a_context_that_is_not_there_is_named(self, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match=r"^there is no docker context 'nosuch'$"):
            find_endpoint({"DOCKER_CONFIG": str(tmp_path), "DOCKER_CONTEXT": "nosuch"})

    def test_a_broken_docker_config_is_named(self, tmp_path: Path) -> None:
        (tmp_path / "config.json").write_text("{")
        with pytest.raises(UsageError, match=r"config\.json"):
            find_endpoint({"DOCKER_CONFIG": str(tmp_path)})


class TestNobodyThere:
    def test_a_missing_socket_says_how_to_get_an_engine(self, tmp_path: Path) -> None:
        path = tmp_path / "no.sock"
        with pytest.raises(EngineUnavailable, match=f"{path}.*no such socket") as caught:
            DockerEngine(Endpoint(address=f"unix://{path}", origin="DOCKER_HOST")).info()
        assert "from DOCKER_HOST" in str(caught.value)
        assert "Install Docker" in caught.value.hint

    def test_a_socket_that_nobody_listens_on_says_start_it(self, tmp_path: Path) -> None:
        path = tmp_path / "dead.sock"
        with socket.socket(socket.AF_UNIX) as sock:
            sock.bind(str(path))
        with pytest.raises(EngineUnavailable, match="refused") as caught:
            DockerEngine(Endpoint(address=f"unix://{path}")).find_image("x")
        assert "systemctl start docker" in caught.value.hint

    def test_a_socket_of_others_says_join_the_group(self, tmp_path: Path) -> None:
        path = tmp_path / "closed.sock"
        with socket.socket(socket.AF_UNIX) as sock:
            sock.bind(str(path))
            path.chmod(0)
            code = (
                "import os, sys, docker, buildrunner.containers.docker.transport\n"
                "from buildrunner.containers.docker.engine import DockerEngine, Endpoint\n"
                "from buildrunner.errors import EngineUnavailable\n"
                "engine = DockerEngine(Endpoint(address='unix://closed.sock'))\n"
                "os.geteuid() or os.setuid(65534)\n"
                "try: engine.info()\n"
                "except EngineUnavailable as error: print(error, error.hint)\n"
            )
            said = subprocess.run(
                [sys.executable, "-c", code],
                capture_output=True,
                text=True,
                check=True,
                cwd=tmp_path,
            ).stdout
        assert "this user may not use it" in said
        assert "usermod -aG docker" in said

    def test_a_closed_port_is_refused(self) -> None:
        with pytest.raises(EngineUnavailable, match=r"127\.0\.0\.1:1: the connection was"):
            DockerEngine(Endpoint(address="tcp://127.0.0.1:1")).info()

    def test_an_unknown_kind_of_address_is_named(self) -> None:
        with pytest.raises(EngineUnavailable, match="npipe"):
            open_socket(Endpoint(address="npipe:////./pipe/docker"))

    def test_what_is_no_engine_is_told_from_one(self, tmp_path: Path) -> None:
        path = str(tmp_path / "web.sock")
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(path)
            server.listen()

            def answer() -> None:
                conn, _ = server.accept()
                with conn:
                    conn.recv(65536)
                    conn.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi")

            thread = threading.Thread(target=answer)
            thread.start()
            engine = DockerEngine(Endpoint(address=f"unix://{path}"))
            with pytest.raises(EngineUnavailable, match="not a Docker engine"):
                engine.info()
            engine.close()
            thread.join()


def pump(source: socket.socket, target: socket.socket) -> None:
    try:
        while data := source.recv(65536):
            target.sendall(data)
        target.shutdown(socket.SHUT_WR)
    except OSError:
        pass


Wrap = Callable[[socket.socket], socket.socket]


@pytest.fixture
def forward() -> Iterator[Callable[[Wrap], int]]:
    """Starts a port of 127.0.0.1 that leads to the engine's socket."""
    servers: list[socket.socket] = []

    def serve(server: socket.socket, wrap: Wrap) -> None:
        while True:
            try:
                conn, _ = server.accept()
            except OSError:
                return
            threading.Thread(target=connect, args=(conn, wrap)).start()

    def connect(conn: socket.socket, wrap: Wrap) -> None:
        with socket.socket(socket.AF_UNIX) as engine:
            try:
                near = wrap(conn)
            except OSError:
                conn.close()
                return
            with near:
                engine.connect(find_endpoint(os.environ).socket_path)
                back = threading.Thread(target=pump, args=(engine, near))
                back.start()
                pump(near, engine)
                back.join()

    def start(wrap: Wrap) -> int:
        server = socket.create_server(("127.0.0.1", 0))
        servers.append(server)
        threading.Thread(target=serve, args=(server, wrap)).start()
        return int(server.getsockname()[1])

    yield start
    for server in servers:
        server.shutdown(socket.SHUT_RDWR)
        server.close()


def certificate(folder: Path) -> None:
    """ca.pem, cert.pem, key.pem: one self-signed certificate in all three roles."""
    argv = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"]
    argv += ["-nodes", "-days", "2", "-subj", "/CN=127.0.0.1", "-keyout", "key.pem"]
    argv += ["-addext", "subjectAltName=IP:127.0.0.1", "-out", "cert.pem"]
    subprocess.run(argv, cwd=folder, check=True, capture_output=True)
    (folder / "ca.pem").write_bytes((folder / "cert.pem").read_bytes())


def check(engine: DockerEngine, busybox: str, labels: dict[str, str]) -> None:
    """A container's whole life over this connection."""
    from buildrunner.containers.protocol import ContainerSpec

    spec = ContainerSpec(
        image=busybox, cmd=("sh", "-c", "echo over; exit 3"), network="none", labels=labels
    )
    container = engine.create_container(spec)
    assert b"".join(engine.start_container(container, attach=True)) == b"over\n"
    assert engine.wait_container(container).code == 3
    engine.remove_container(container)
    assert not engine.info().local
    at_the_usual_place = find_endpoint(os.environ).socket_path == Endpoint().socket_path
    assert engine.info().socket_path == (Endpoint().socket_path if at_the_usual_place else "")
    engine.close()


@pytest.mark.docker
class TestReaching:
    def test_by_tcp(
        self,
        docker_engine: DockerEngine,
        busybox: str,
        build_labels: dict[str, str],
        forward: Callable[[Wrap], int],
    ) -> None:
        port = forward(lambda conn: conn)
        check(DockerEngine(Endpoint(address=f"tcp://127.0.0.1:{port}")), busybox, build_labels)

    def test_by_tls_with_certificates_on_both_sides(
        self,
        docker_engine: DockerEngine,
        busybox: str,
        build_labels: dict[str, str],
        forward: Callable[[Wrap], int],
        tmp_path: Path,
    ) -> None:
        certificate(tmp_path)
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=tmp_path / "ca.pem")
        context.load_cert_chain(tmp_path / "cert.pem", tmp_path / "key.pem")
        context.verify_mode = ssl.CERT_REQUIRED
        port = forward(lambda conn: context.wrap_socket(conn, server_side=True))
        endpoint = Endpoint(address=f"tcp://127.0.0.1:{port}", tls_dir=str(tmp_path))
        check(DockerEngine(endpoint), busybox, build_labels)

    def test_by_tls_only_with_a_certificate_we_trust(
        self, docker_engine: DockerEngine, forward: Callable[[Wrap], int], tmp_path: Path
    ) -> None:
        theirs, ours = tmp_path / "theirs", tmp_path / "ours"
        for folder in (theirs, ours):
            folder.mkdir()
            certificate(folder)
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(theirs / "cert.pem", theirs / "key.pem")
        port = forward(lambda conn: context.wrap_socket(conn, server_side=True))
        with pytest.raises(EngineUnavailable, match="certificate verify failed") as caught:
            DockerEngine(Endpoint(address=f"tcp://127.0.0.1:{port}", tls_dir=str(ours))).info()
        assert "DOCKER_CERT_PATH" in caught.value.hint

    def test_by_ssh(
        self,
        docker_engine: DockerEngine,
        busybox: str,
        build_labels: dict[str, str],
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        # In ssh's place a program that runs the same command here, and notes how it was called.
        ssh = tmp_path / "ssh"
        ssh.write_text(
            f'#!/bin/sh\necho "$@" >>{tmp_path}/calls\n'
            'while [ "$1" != -- ]; do shift; done; shift 2; exec "$@"\n'
        )
        ssh.chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
        check(DockerEngine(Endpoint(address="ssh://me@far:2222")), busybox, build_labels)
        calls = (tmp_path / "calls").read_text().splitlines()
        assert calls[0] == "-o ConnectTimeout=20 -T -p 2222 -- me@far docker system dial-stdio"

    @pytest.mark.parametrize(
        ("program", "reason"),
        [
            ("echo warning >&2; echo me@far: Permission denied. >&2; exit 255", "me@far: Perm"),
            ("exit 255", "ssh ended with exit code 255"),
        ],
    )
    def test_an_ssh_that_fails_says_why(
        self,
        program: str,
        reason: str,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        capfd: pytest.CaptureFixture[str],
    ) -> None:
        (tmp_path / "ssh").write_text(f"#!/bin/sh\n{program}\n")
        (tmp_path / "ssh").chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
        far = Endpoint(address="ssh://me@far:2222", origin="docker context far")
        said = rf"answers at ssh://me@far:2222 \(from docker context far\): {reason}"
        with pytest.raises(EngineUnavailable, match=said) as caught:
            DockerEngine(far).info()
        assert "`ssh -p 2222 me@far docker version`" in caught.value.hint
        assert capfd.readouterr().err == ""

    def test_a_host_that_looks_like_an_option_is_refused(self) -> None:
        with pytest.raises(EngineUnavailable, match="not a host name"):
            open_socket(Endpoint(address="ssh://-oProxyCommand=x"))


def test_ssh_is_reached_from_many_threads_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In ssh's place a program that echoes, ends, and has to be reaped by a later connect."""
    (tmp_path / "ssh").write_text("#!/bin/sh\nread -r line; echo $line\n")
    (tmp_path / "ssh").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    far = Endpoint(address="ssh://me@far")

    def connect(number: int) -> bytes:
        with open_socket(far) as sock:
            sock.sendall(b"%d\n" % number)
            return sock.makefile("rb").read()

    with ThreadPoolExecutor(24) as pool:
        assert list(pool.map(connect, range(240))) == [b"%d\n" % one for one in range(240)]
