"""Ports of this machine's loopback address, made reachable at the same address in a container.

A container with a separate network has its own loopback address: a registry that listens on
``localhost:5000`` of the machine can't be reached there. A socket belongs to the network namespace
in which it was made. So this process makes a listening socket in the container's namespace, and
accepts its connections here. Linux, root only.
"""

from __future__ import annotations

import ctypes
import os
import re
import socket
import threading
from collections.abc import Callable
from contextlib import suppress

from buildrunner.addresses import address_of, kind_of, look_up
from buildrunner.containers.image_name import DOCKER_HUB
from buildrunner.errors import EngineError
from buildrunner.registries.registry_transport import host_of, is_loopback

_CLONE_NEWNET = 0x40000000
_PIECE = 1 << 16
_CONNECT_S = 10.0
_PLACE = re.compile(r"(?<![\w.-])(?:localhost|127\.\d{1,3}\.\d{1,3}\.\d{1,3}):(\d{1,5})/")
_REGISTRY_HEADER = b"docker-distribution-api-version:"
_REGISTRY_ERROR = re.compile(
    rb'\s*\{\s*"errors"\s*:\s*\[\s*\{\s*"code"\s*:\s*'
    rb'"(?:UNAUTHORIZED|DENIED|NAME_UNKNOWN|NAME_INVALID|MANIFEST_UNKNOWN|TOOMANYREQUESTS)"'
)


def loopback_ports(text: str) -> set[int]:
    """Return the loopback ports in image names in ``text`` (``localhost:5000/app``)."""
    return {int(port) for port in _PLACE.findall(text) if 0 < int(port) < 1 << 16}


def is_of_this_machine(registry: str) -> bool:
    """Return whether a registry's ``host:port`` may mean another registry on another machine.

    This holds for loopback and link-local addresses in any form, for names of such addresses, and
    for names that this machine can't look up.
    """
    if is_loopback(registry):
        return True
    if registry in DOCKER_HUB:  # no step chose the address
        return False
    host = host_of(registry).strip("[]")
    try:
        found = [address_of(one) for one in look_up(host)]
    # the engine may resolve the name, and a step may have chosen it
    except (OSError, UnicodeError):
        return True
    return any(one is None or kind_of(one) not in ("public", "private") for one in found)


def is_registry(port: int) -> bool:
    """Return whether a container registry listens on that port of this machine.

    Most registries send a header for this; others are recognized by the form of their errors.

    Source: OCI distribution specification, "Error Codes".
    """
    if _REGISTRY_HEADER in _answer(port, "/v2/", whole=False).lower():
        return True
    body = _answer(port, "/v2/none/manifests/none", whole=True).partition(b"\r\n\r\n")[2]
    return _REGISTRY_ERROR.match(body) is not None


def token_ports(port: int) -> set[int]:
    """Return the loopback ports to which the registry sends clients for a token."""
    headers = _answer(port, "/v2/", whole=False).splitlines()
    requested = [line for line in headers if line.lower().startswith(b"www-authenticate: bearer ")]
    return loopback_ports(b" ".join(requested).decode("latin-1")) - {port}


def _answer(port: int, path: str, *, whole: bool) -> bytes:
    """Return the answer to a GET, or only its headers; empty without an answer."""
    answer = b""
    with (
        suppress(OSError),
        socket.create_connection(("127.0.0.1", port), timeout=_CONNECT_S) as connection,
    ):
        connection.sendall(f"GET {path} HTTP/1.0\r\nHost: localhost:{port}\r\n\r\n".encode())
        while len(answer) < _PIECE and (whole or b"\r\n\r\n" not in answer):
            piece = connection.recv(_PIECE)
            if not piece:
                break
            answer += piece
    return answer if whole else answer.partition(b"\r\n\r\n")[0]


class LoopbackPorts:
    """The machine's ports that are reachable in one container.

    Args:
        process: returns the id of a process in the container.
    """

    def __init__(self, process: Callable[[], int]) -> None:
        self._process = process
        self._lock = threading.Lock()
        self._listeners: dict[int, socket.socket] = {}
        self._closed = False

    def open(self, port: int) -> None:
        """Make ``port`` reachable in the container, at 127.0.0.1. Idempotent.

        Raises:
            EngineError: this process lacks the rights, or the port is in use in the container.
        """
        with self._lock:
            if port in self._listeners or self._closed:
                return
            try:
                listener = _listen_beside(self._process(), port)
            except OSError as error:
                raise EngineError(
                    f"127.0.0.1:{port} of this machine can't be reached from a sandbox: {error}",
                    hint="Only root can lead there: give the registry an address that is not "
                    "the machine's own loopback.",
                ) from error
            self._listeners[port] = listener
        threading.Thread(target=_serve, args=(listener, port), daemon=True).start()

    def close(self) -> None:
        """Accept no new connections. Idempotent."""
        with self._lock:
            self._closed = True
            for listener in self._listeners.values():
                with suppress(OSError):
                    listener.shutdown(socket.SHUT_RDWR)
                listener.close()
            self._listeners.clear()


def _listen_beside(process: int, port: int) -> socket.socket:
    """Return a listening socket in the network namespace of another process."""
    made: list[socket.socket | OSError] = []

    def enter() -> None:  # only this thread enters the namespace, and the thread ends here
        try:
            _enter_network_of(process)
            listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(("127.0.0.1", port))
            listener.listen(64)
            made.append(listener)
        except OSError as error:
            made.append(error)

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    if isinstance(made[0], OSError):
        raise made[0]
    return made[0]


def _enter_network_of(process: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    namespace = os.open(f"/proc/{process}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        if libc.setns(namespace, _CLONE_NEWNET) != 0:
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code))
    finally:
        os.close(namespace)


def _serve(listener: socket.socket, port: int) -> None:
    while True:
        try:
            near, _ = listener.accept()
        except OSError:  # closed
            return
        threading.Thread(target=_join, args=(near, port), daemon=True).start()


def _join(near: socket.socket, port: int) -> None:
    with near:
        try:
            far = socket.create_connection(("127.0.0.1", port), timeout=_CONNECT_S)
        except OSError:
            return
        with far:
            far.settimeout(None)
            back = threading.Thread(target=_pass, args=(far, near), daemon=True)
            back.start()
            _pass(near, far)
            back.join()


def _pass(source: socket.socket, target: socket.socket) -> None:
    with suppress(OSError):
        while piece := source.recv(_PIECE):
            target.sendall(piece)
    with suppress(OSError):
        target.shutdown(socket.SHUT_WR)
