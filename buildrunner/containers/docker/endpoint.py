"""The address of the container engine, and connections to it.

The rules are those of the ``docker`` command: ``DOCKER_HOST``, else ``DOCKER_CONTEXT``, else the
``currentContext`` of the Docker config, else the local socket. If that does not exist, the
socket of a rootless Docker or of Podman is used. ``unix://``, ``tcp://`` (with TLS by
``DOCKER_TLS_VERIFY`` and ``DOCKER_CERT_PATH``, or by the context) and ``ssh://`` are supported.
"""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Mapping, Sequence

import msgspec

from buildrunner.errors import EngineUnavailable, UsageError

DEFAULT_ADDRESS = "unix:///var/run/docker.sock"
CONNECT_TIMEOUT_S = 20.0

_SOCKET_PATH_LIMIT = 107


class Endpoint(msgspec.Struct, frozen=True, kw_only=True):
    """An engine's address.

    Attributes:
        address: ``unix:///path``, ``tcp://host:port`` or ``ssh://[user@]host[:port]``.
        tls_dir: folder with ca.pem, cert.pem and key.pem for TLS on tcp; empty for no TLS.
        tls_verify: whether the engine's certificate is checked (with TLS).
        origin: the deciding setting, for messages: ``DOCKER_HOST``, ``docker context NAME`` or
            empty.
        trusted: False for the engine of a build, which its steps can replace. The path of its
            socket must not be a symbolic link, which could lead to the engine of the machine, and
            its answers have stricter limits.
    """

    address: str = DEFAULT_ADDRESS
    tls_dir: str = ""
    tls_verify: bool = True
    origin: str = ""
    trusted: bool = True

    @property
    def socket_path(self) -> str:
        """Path of the unix socket; empty for other kinds."""
        return self.address[len("unix://") :] if self.address.startswith("unix://") else ""


def find_endpoint(environ: Mapping[str, str]) -> Endpoint:
    """Return the engine that the ``docker`` command would use with this environment.

    Raises:
        UsageError: the requested context does not exist, or can't be read.
    """
    config_dir = docker_config_dir(environ)
    if host := environ.get("DOCKER_HOST", ""):
        tls = bool(environ.get("DOCKER_TLS_VERIFY") or environ.get("DOCKER_TLS"))
        return Endpoint(
            address=_with_scheme(host),
            tls_dir=(environ.get("DOCKER_CERT_PATH") or config_dir) if tls else "",
            tls_verify=bool(environ.get("DOCKER_TLS_VERIFY")),
            origin="DOCKER_HOST",
        )
    context = environ.get("DOCKER_CONTEXT") or _current_context(config_dir)
    if not context:
        return Endpoint(address=f"unix://{first_socket(_sockets(environ))}")
    if context == "default":
        return Endpoint()
    return _context_endpoint(config_dir, context)


def _sockets(environ: Mapping[str, str]) -> tuple[str, ...]:
    """Return the sockets of Docker, rootless Docker, rootless Podman and Podman on this machine."""
    own = environ.get("XDG_RUNTIME_DIR") or f"/run/user/{os.getuid()}"
    return (
        Endpoint().socket_path,
        f"{own}/docker.sock",
        f"{own}/podman/podman.sock",
        "/run/podman/podman.sock",
    )


def first_socket(paths: Sequence[str]) -> str:
    """Return the first of ``paths`` that exists; the first one if none does."""
    return next(filter(os.path.exists, paths), paths[0])


def docker_config_dir(environ: Mapping[str, str]) -> str:
    """Folder of the Docker config: ``DOCKER_CONFIG``, else ``~/.docker``."""
    home = environ.get("HOME") or os.path.expanduser("~")
    return environ.get("DOCKER_CONFIG") or os.path.join(home, ".docker")


def _with_scheme(host: str) -> str:
    if "://" in host:
        return host
    return f"unix://{host}" if host.startswith("/") else f"tcp://{host}"


class _DockerConfig(msgspec.Struct):
    current_context: str = msgspec.field(name="currentContext", default="")


class _DockerEndpointMeta(msgspec.Struct):
    host: str = msgspec.field(name="Host", default="")
    skip_verify: bool = msgspec.field(name="SkipTLSVerify", default=False)


class _ContextEndpoints(msgspec.Struct):
    docker: _DockerEndpointMeta = msgspec.field(default_factory=_DockerEndpointMeta)


class _ContextMeta(msgspec.Struct):
    endpoints: _ContextEndpoints = msgspec.field(name="Endpoints")


def _current_context(config_dir: str) -> str:
    path = os.path.join(config_dir, "config.json")
    try:
        with open(path, "rb") as file:
            return msgspec.json.decode(file.read(), type=_DockerConfig).current_context
    except OSError:
        return ""
    except msgspec.DecodeError as error:
        raise UsageError(
            f"{path} can't be read as a Docker config: {error}", hint="Correct or remove it."
        ) from error


def _context_endpoint(config_dir: str, context: str) -> Endpoint:
    import hashlib

    key = hashlib.sha256(context.encode()).hexdigest()
    path = os.path.join(config_dir, "contexts", "meta", key, "meta.json")
    try:
        with open(path, "rb") as file:
            meta = msgspec.json.decode(file.read(), type=_ContextMeta).endpoints.docker
    except (OSError, msgspec.DecodeError) as error:
        is_missing = isinstance(error, FileNotFoundError)
        raise UsageError(
            f"there is no docker context {context!r}"
            if is_missing
            else f"the docker context {context!r} can't be read: {error}",
            hint="See `docker context ls`; `docker context use default` goes back to the default.",
        ) from error
    tls_dir = os.path.join(config_dir, "contexts", "tls", key, "docker")
    return Endpoint(
        address=meta.host or DEFAULT_ADDRESS,
        tls_dir=tls_dir if os.path.isdir(tls_dir) else "",
        tls_verify=not meta.skip_verify,
        origin=f"docker context {context}",
    )


def open_socket(endpoint: Endpoint) -> socket.socket:
    """Connect to the engine.

    Raises:
        EngineUnavailable: the engine does not answer; the hint says what to do.
    """
    kind, _, place = endpoint.address.partition("://")
    try:
        if kind == "unix":
            return _open_unix(place, follow_links=endpoint.trusted)
        if kind == "ssh":
            return _open_ssh(place)
        if kind in ("tcp", "http", "https"):
            return _open_tcp(place, endpoint, tls=kind == "https" or bool(endpoint.tls_dir))
    except OSError as error:
        raise _unavailable(endpoint, error) from error
    raise EngineUnavailable(
        f"the engine's address {endpoint.address} is of a kind that buildrunner can't use",
        hint="Use unix:///path, tcp://host:port or ssh://user@host in DOCKER_HOST.",
    )


def _open_unix(path: str, *, follow_links: bool) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    place = -1
    try:
        sock.settimeout(CONNECT_TIMEOUT_S)
        if not follow_links:
            # Opened first, the path cannot be replaced before the connection; a link is refused.
            place = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
            path = f"/proc/self/fd/{place}"
        elif len(os.fsencode(path)) > _SOCKET_PATH_LIMIT:  # Linux offers a shorter path then
            place = os.open(os.path.dirname(path), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            path = f"/proc/self/fd/{place}/{os.path.basename(path)}"
        sock.connect(path)
    except BaseException:
        sock.close()
        raise
    finally:
        if place >= 0:
            os.close(place)
    return sock


def _open_tcp(place: str, endpoint: Endpoint, *, tls: bool) -> socket.socket:
    host, _, port = place.rstrip("/").rpartition(":")
    if not host:
        host, port = port, ""
    number = int(port) if port.isdigit() else (2376 if tls else 2375)
    host = host.strip("[]")
    sock = socket.create_connection((host, number), timeout=CONNECT_TIMEOUT_S)
    try:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        # a step may be silent for hours: keep-alives detect that the engine's machine is gone
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        return _with_tls(sock, host, endpoint) if tls else sock
    except BaseException:
        sock.close()
        raise


def _with_tls(sock: socket.socket, host: str, endpoint: Endpoint) -> socket.socket:
    import ssl

    def file(name: str) -> str | None:
        path = os.path.join(endpoint.tls_dir, name)
        return path if endpoint.tls_dir and os.path.exists(path) else None

    context = ssl.create_default_context(cafile=file("ca.pem"))
    if not endpoint.tls_verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    if certificate := file("cert.pem"):
        context.load_cert_chain(certificate, file("key.pem"))
    return context.wrap_socket(sock, server_hostname=host)


_ssh_processes: set[int] = set()
_ssh_processes_lock = threading.Lock()  # two threads must not wait for the same process


def _open_ssh(place: str) -> socket.socket:
    """A socket whose other end is ``docker system dial-stdio`` on the far machine."""
    argv = _ssh_command(place)
    _reap_ssh_processes()
    ours, theirs = socket.socketpair()
    try:
        actions: list[tuple[int, *tuple[int | str, ...]]] = [
            *((os.POSIX_SPAWN_DUP2, theirs.fileno(), number) for number in (0, 1)),
            (os.POSIX_SPAWN_OPEN, 2, os.devnull, os.O_WRONLY, 0),  # see `ssh_failure`
        ]
        # a session of its own: Ctrl-C must not cut the connection that the clean-up needs
        pid = os.posix_spawnp("ssh", argv, os.environ, file_actions=actions, setsid=True)
    except BaseException:
        ours.close()
        raise
    finally:
        theirs.close()
    with _ssh_processes_lock:
        _ssh_processes.add(pid)
    return ours


def _ssh_command(place: str) -> list[str]:
    host, _, port = place.split("/", 1)[0].partition(":")
    if host.startswith("-"):
        raise OSError(f"{host!r} is not a host name")
    argv = ["ssh", "-o", f"ConnectTimeout={CONNECT_TIMEOUT_S:.0f}", "-T"]
    argv += ["-p", port] if port else []
    return [*argv, "--", host, "docker", "system", "dial-stdio"]


def ssh_failure(endpoint: Endpoint) -> EngineUnavailable | None:
    """Try once more to reach an engine behind ``ssh://``. Returns the error; None on success.

    A connection through ssh opens before ssh has reached the host, so opening it never fails.
    """
    import subprocess

    kind, _, place = endpoint.address.partition("://")
    if kind != "ssh":
        return None
    try:
        done = subprocess.run(
            _ssh_command(place),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=2 * CONNECT_TIMEOUT_S,
            check=False,
            start_new_session=True,
        )
    except subprocess.TimeoutExpired:
        return _unavailable(endpoint, OSError("ssh did not answer in time"))
    if done.returncode == 0:
        return None
    lines = done.stderr.decode("utf-8", "replace").strip().splitlines()
    code = f"ssh ended with exit code {done.returncode}"
    return _unavailable(endpoint, OSError(lines[-1].strip() if lines else code))


def _reap_ssh_processes() -> None:
    """Collect the exit status of each ssh that has ended, so that no zombies remain."""
    with _ssh_processes_lock:
        for pid in tuple(_ssh_processes):
            try:
                ended, _ = os.waitpid(pid, os.WNOHANG)
            except ChildProcessError:  # the program ignores SIGCHLD: the kernel has collected it
                ended = pid
            if ended:
                _ssh_processes.discard(pid)


def _unavailable(endpoint: Endpoint, error: OSError) -> EngineUnavailable:
    where = endpoint.socket_path or endpoint.address
    by = f" (from {endpoint.origin})" if endpoint.origin else ""
    if isinstance(error, FileNotFoundError) and endpoint.socket_path:
        reason = "there is no such socket"
        hint = (
            "Install Docker (Debian: sudo apt-get install docker.io) and start it "
            "(sudo systemctl start docker), or start Podman's socket (systemctl --user enable "
            "--now podman.socket), or point DOCKER_HOST at an engine."
        )
    elif isinstance(error, PermissionError):
        reason = "this user may not use it"
        hint = (
            "Join the docker group (sudo usermod -aG docker $USER, then log in again), "
            "or run as root."
        )
    elif isinstance(error, ConnectionRefusedError):
        reason = "the connection was refused"
        hint = "Start the engine (sudo systemctl start docker), or correct DOCKER_HOST."
    elif endpoint.address.startswith("ssh://"):
        reason = error.strerror or str(error)
        place = endpoint.address.removeprefix("ssh://").split("/", 1)[0]
        host, _, port = place.partition(":")
        command = f"ssh {f'-p {port} ' if port else ''}{host} docker version"
        hint = f"`{command}` must work without a question: check the address, its key and user."
    else:
        reason = error.strerror or str(error)
        hint = "Check DOCKER_HOST, the network, and with TLS the files in DOCKER_CERT_PATH."
    return EngineUnavailable(f"no container engine answers at {where}{by}: {reason}", hint=hint)
