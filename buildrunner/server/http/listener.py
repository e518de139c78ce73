"""The listening socket and the web server behind it (uvicorn), with limits on slow clients.

The connections have a limited number of places. If all are taken, a new connection takes the place
of an idle one: of the network that holds most, the one that has been idle for the longest time. So
a client that keeps many connections open displaces its own, not those of others. A trusted proxy
counts as one network, and opens a new connection for the one that it loses.

A client decides for how long its requests are under way: it can send the next one before it has the
answer. So if nothing is idle, a network with more than its share of the places loses the request
that began last.

An answer that its client does not read stays in memory. So a connection that takes nothing of its
answer for a minute is closed, and all answers together have limited bytes: beyond them, the network
that holds most loses those that have not moved for the longest time.

A TLS handshake takes a place like a connection, and counts as idle. asyncio reports a connection
only after its handshake, so the listener makes the TLS layer itself.

uvicorn parses all that one read has brought before anything else runs, and each chunk of a body and
each header field takes time, however small it is. So both are limited in number.
"""

from __future__ import annotations

import asyncio
import errno
import fcntl
import resource
import socket
import ssl
import sys
import termios
import threading
import time
from asyncio.sslproto import SSLProtocol
from collections import Counter
from contextlib import suppress
from types import FrameType
from typing import TYPE_CHECKING, Any, Final, cast

import h11
import uvicorn
from h11._receivebuffer import ReceiveBuffer
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.h11_impl import H11Protocol, RequestResponseCycle
from uvicorn.protocols.utils import get_remote_addr

from buildrunner.addresses import network_of
from buildrunner.errors import UsageError

if TYPE_CHECKING:
    from fastapi import FastAPI

HEADER_S: Final = 15.0
HANDSHAKE_S: Final = 15
# A refused client continues to send its body for a while. To close at once would drop the
# answer, too (the kernel resets the connection), so the rest is read for a limited time.
DISCARDED_BYTES: Final = 32 << 20
# Idle connections must not use up the open files that database, logs and builds need.
MOST_CONNECTIONS: Final = 2000
_OPEN_FILES: Final = 8192
_HEADER_BYTES: Final = 64 * 1024
HEADER_FIELDS: Final = 100
"""The most header fields, or trailer fields, of a request."""
QUERY_PARAMETERS: Final = 500
"""The most parameters of the query of a request."""
FREE_CHUNKS: Final = 256
"""The most chunks of a body, however small they are."""
CHUNK_BYTES: Final = 512
"""A body may have a further chunk for each so many bytes of it."""
READ_BYTES: Final = 64 * 1024
"""The most bytes of one read. A connection that is paused holds one read in memory."""
KEEP_ALIVE_S: Final = 75
CROWDED_KEEP_ALIVE_S: Final = 10
"""How long a connection waits for its next request while over half of the places are taken."""
STALLED_S: Final = 2.0
"""A client that takes nothing of its answer for longer counts as idle: it may never go on."""
UNREAD_S: Final = 60.0
"""A connection whose client takes nothing of its answer for longer is closed."""
MOST_UNREAD: Final = 128 << 20
"""The most bytes of answers, of all connections, that wait in memory for their clients."""
JUST_NOW_S: Final = 2.0
"""A connection that has been idle for less keeps its place, if its network has only its share."""
_GRACE_S: Final = 10
_TICK_S: Final = 0.1
_TICKS_A_SECOND: Final = round(1 / _TICK_S)
_CLOSING_TICK_S: Final = 0.01
_BACKLOG: Final = 1024


class Listener:
    """Serves an application until it is stopped.

    Args:
        app: from `create_app`.
        listening: from `listen_on`; closed at the end.
        tls_cert: file with the certificate and its chain; empty for plain HTTP.
        tls_key: file with its key.
        on_signal: called once at the first SIGTERM or SIGINT, in a thread: it finishes the work
            and returns; then the server stops. A second signal stops it at once.

    Raises:
        UsageError: certificate or key can't be used.
    """

    def __init__(
        self,
        app: FastAPI,
        listening: socket.socket,
        *,
        tls_cert: str = "",
        tls_key: str = "",
        on_signal: Any = None,
    ) -> None:
        context = _tls_context(tls_cert, tls_key) if tls_cert else None

        def protocol(**of_server: Any) -> asyncio.BaseProtocol:
            plain = _TimedProtocol(**of_server)
            return plain if context is None else _Handshake(plain, context)

        config = uvicorn.Config(
            app,
            loop="asyncio",  # whose TLS layer `_Handshake` is
            http=cast("type[asyncio.Protocol]", protocol),
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            proxy_headers=False,
            server_header=False,
            backlog=_BACKLOG,
            timeout_keep_alive=KEEP_ALIVE_S,
            timeout_graceful_shutdown=_GRACE_S,
        )
        self._listening = listening
        self._server = _Server(config, app, on_signal)

    def run(self) -> None:
        """Serve until the server is stopped, by `stop` or a signal."""
        _raise_open_files()
        try:
            self._server.run(sockets=[self._listening])
        finally:
            self._listening.close()

    def stop(self) -> None:
        """Stop the server soon. Thread-safe."""
        self._server.stop()

    def wait_until_ready(self) -> None:
        """Wait until connections are answered. For another thread than `run`."""
        self._server.ready.wait()


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, app: FastAPI, on_signal: Any) -> None:
        super().__init__(config)
        self.ready = threading.Event()
        self._app = app
        self._on_signal = on_signal
        self._loop: asyncio.AbstractEventLoop | None = None
        self._signals = 0
        self._stopping = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        self._loop = asyncio.get_running_loop()
        await super().startup(sockets)
        self.ready.set()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002
        """Handle a signal: finish in a thread, so that viewers see the end of running builds."""
        self._signals += 1
        if self._signals > 2:
            self.force_exit = True
        if self._signals > 1 or self._on_signal is None:
            self.stop()
            return
        threading.Thread(target=self._finish, name="drain", daemon=True).start()

    def _finish(self) -> None:
        try:
            self._on_signal()
        finally:
            self.stop()

    def stop(self) -> None:
        if self._loop is None:
            self.should_exit = True
            return
        with suppress(RuntimeError):  # the loop is closed: the server has stopped already
            self._loop.call_soon_threadsafe(self._end)

    def _end(self) -> None:
        self.should_exit = True
        self._app.state.build_watches.close()  # streams of logs never end by themselves
        self._app.state.passed_on.close()
        self._app.state.changes.close()
        self._stopping.set()

    async def main_loop(self) -> None:
        """Tick like uvicorn, but end at once when `stop` is called, not at the next tick."""
        ticks = 0
        while not await self.on_tick(ticks):
            ticks += 1
            with suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), _TICK_S)

    async def on_tick(self, counter: int) -> bool:
        """Close stalled connections, once a second, and do what uvicorn does."""
        if counter % _TICKS_A_SECOND == 0:
            now = time.monotonic()
            for each in list(self.server_state.connections):
                cast("_TimedProtocol | _Handshake", each).abort_if_unread(now)
        return await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:  # noqa: ARG002
        """Let requests end, for a while; uvicorn's own method pauses for 0.1 s first."""
        for server in self.servers:
            server.close()
        for connection in list(self.server_state.connections):
            connection.shutdown()
        state, end = self.server_state, time.monotonic() + _GRACE_S
        while (state.connections or state.tasks) and not self.force_exit:
            if time.monotonic() > end:
                for task in list(state.tasks):
                    task.cancel()
                return
            await asyncio.sleep(_CLOSING_TICK_S)


class _TooMuchToParse(h11.RemoteProtocolError):
    """A request has too many parts."""


class _LineBuffer(ReceiveBuffer):
    """Received bytes, which refuses heads and trailers with too many lines or bytes.

    h11 limits only those that are incomplete.
    """

    def maybe_extract_lines(self) -> list[bytearray] | None:
        lines = super().maybe_extract_lines()
        if lines and (len(lines) > HEADER_FIELDS + 1 or sum(map(len, lines)) > _HEADER_BYTES):
            raise _TooMuchToParse("the request has too many header fields, or too large ones")
        return lines


class _Connection(h11.Connection):
    """The HTTP/1.1 of one connection, which refuses requests that take long to parse."""

    _chunks = 0
    _chunk_bytes = 0

    def __init__(self) -> None:
        super().__init__(h11.SERVER, _HEADER_BYTES)
        self._receive_buffer = _LineBuffer()

    def next_event(self) -> h11.Event | type[h11.NEED_DATA] | type[h11.PAUSED]:
        event = super().next_event()
        if isinstance(event, h11.Request):
            self._chunks = self._chunk_bytes = 0
            if event.target.count(b"&") >= QUERY_PARAMETERS:
                raise _TooMuchToParse("the query of the request has too many parameters")
        elif isinstance(event, h11.Data):
            self._chunks += event.chunk_end
            self._chunk_bytes += len(event.data)
            if self._chunks > FREE_CHUNKS + self._chunk_bytes // CHUNK_BYTES:
                raise _TooMuchToParse("the chunks of the body are too small: send larger ones")
        return event


class _Flow(FlowControl):
    """Reads no more of the next request while an answer is under way, even if the route listens."""

    def __init__(self, transport: asyncio.Transport, connection: h11.Connection) -> None:
        super().__init__(transport)
        self._connection = connection

    def resume_reading(self) -> None:
        ours, theirs = self._connection.our_state, self._connection.their_state
        if theirs is h11.DONE and ours is not h11.DONE and self._connection.trailing_data[0]:
            return
        super().resume_reading()


class _TimedProtocol(H11Protocol):
    """HTTP with a time limit for the head of a request, and a limited number of connections.

    Attributes:
        network: network of the client.
        displaced: the connection was closed in favor of another one.
        began_at: time at which it was accepted, of the loop's clock.
        handshake: the handshake that is under way.
    """

    network = ""
    displaced = False
    began_at = 0.0
    handshake: _Handshake | None = None
    _header_timer: asyncio.TimerHandle | None = None
    _discarded = 0
    _idle_since = 0.0
    _stalled_since: float | None = None
    _moved_at = 0.0
    _left = 0
    _unread_cycle: RequestResponseCycle | None = None

    def __init__(self, **of_server: Any) -> None:
        super().__init__(**of_server)
        self.conn = _Connection()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transports = [cast("asyncio.Transport", transport)]
        cast("Any", transport).max_size = READ_BYTES  # asyncio's name for it
        if self.handshake is not None:
            self._transports.append(self.handshake.raw)
            self.handshake.has_ended()
            self.handshake = None
        super().connection_made(transport)  # type: ignore[arg-type] # uvicorn narrows it, too
        self.flow = _Flow(self._transports[0], self.conn)
        self.network = network_of(self.client[0]) if self.client else ""
        self.began_at = self._idle_since = self.loop.time()
        _make_room(self, self.places_taken, self.began_at)
        self._arm()

    @property
    def places_taken(self) -> set[_TimedProtocol | _Handshake]:
        """All connections and handshakes of the server."""
        return cast("set[_TimedProtocol | _Handshake]", self.connections)

    def abort(self) -> None:
        """Disconnect. To close would wait for a client that reads nothing."""
        self.transport.abort()

    def idle_s(self, now: float) -> float | None:
        """Return for how long nothing has been under way; None if a request is.

        Parts of a head, or of a body that was refused, may still arrive.
        """
        cycle: RequestResponseCycle | None = self.cycle
        if cycle is None or cycle.response_complete:
            return now - self._idle_since
        stalled_s = 0.0 if self._stalled_since is None else now - self._stalled_since
        return stalled_s if stalled_s > STALLED_S else None

    @property
    def unread(self) -> int:
        """The bytes of answers that wait in memory for the client."""
        return sum(transport.get_write_buffer_size() for transport in self._transports)

    def unread_s(self, now: float) -> float:
        """Return for how long the client has taken nothing of its answer."""
        return now - self._moved_at

    def abort_if_unread(self, now: float) -> None:
        """Disconnect a client that has taken nothing of its answer for too long.

        A slow reader is not one: its bytes may come from the kernel alone for minutes, so those
        that wait there count.
        """
        if not self.unread:
            return
        fd = self.transport.get_extra_info("socket").fileno()
        in_kernel = int.from_bytes(fcntl.ioctl(fd, termios.TIOCOUTQ, bytes(4)), sys.byteorder)
        left = self.unread + in_kernel
        if left != self._left:
            self._left, self._moved_at = left, now
        elif self.unread_s(now) > UNREAD_S:
            self.abort()

    def on_response_complete(self) -> None:
        self._idle_since = self.loop.time()
        if self.flow.write_paused:  # the next request's answer would wait in memory, too
            self._unread_cycle = self.cycle
        else:
            self._begin_next()

    def _begin_next(self) -> None:
        is_crowded = len(self.connections) > places() // 2
        self.timeout_keep_alive = CROWDED_KEEP_ALIVE_S if is_crowded else KEEP_ALIVE_S
        super().on_response_complete()

    def pause_writing(self) -> None:
        self._stalled_since = self._moved_at = self.loop.time()
        super().pause_writing()
        _bound_unread(self.places_taken, self._moved_at)

    def resume_writing(self) -> None:
        self._stalled_since = None
        super().resume_writing()
        unread, self._unread_cycle = self._unread_cycle, None
        if unread is not None and unread is self.cycle:
            self._begin_next()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.conn.our_state is h11.DONE and self.conn.their_state is h11.SEND_BODY:
            self._discarded += len(data)
            if self._discarded > DISCARDED_BYTES:
                self.transport.close()
        elif self.conn.their_state is h11.IDLE:
            self._arm()
        else:
            self._disarm()

    def send_400_response(self, msg: str) -> None:
        """Refuse a request that is invalid, or disconnect if its answer has begun."""
        cycle: RequestResponseCycle | None = self.cycle
        if cycle is not None:  # the application may still be about to answer
            cycle.disconnected = True
            cycle.message_event.set()
        if self.conn.our_state in {h11.IDLE, h11.SEND_RESPONSE}:
            error = sys.exception()
            super().send_400_response(str(error) if isinstance(error, _TooMuchToParse) else msg)
        else:
            self.transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self._disarm()
        super().connection_lost(exc)

    def _arm(self) -> None:
        if self._header_timer is None:
            self._header_timer = self.loop.call_later(HEADER_S, self._hang_up)

    def _disarm(self) -> None:
        if self._header_timer is not None:
            self._header_timer.cancel()
            self._header_timer = None

    def _hang_up(self) -> None:
        self._header_timer = None
        if self.conn.their_state is h11.IDLE and not self.transport.is_closing():
            self.transport.close()


class _Handshake(SSLProtocol):
    """The TLS layer of a connection, which takes a place until its handshake has ended.

    Attributes:
        network: see `_TimedProtocol`.
        displaced: see `_TimedProtocol`.
        began_at: see `_TimedProtocol`.
        raw: the connection below TLS.
        unread: see `_TimedProtocol`.
    """

    network = ""
    displaced = False
    unread = 0
    max_size = READ_BYTES  # asyncio's name for it
    raw: asyncio.Transport
    _is_paused = False

    def __init__(self, connection: _TimedProtocol, context: ssl.SSLContext) -> None:
        super().__init__(
            connection.loop,
            connection,
            context,
            waiter=None,  # type: ignore[arg-type] # needs none, as its own code says
            server_side=True,
            ssl_handshake_timeout=HANDSHAKE_S,
        )
        self._connection = connection
        self._places_taken = connection.places_taken
        self._clock = connection.loop.time
        self.began_at = self._clock()
        connection.handshake = self

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.raw = cast("asyncio.Transport", transport)
        client = get_remote_addr(self.raw)
        self.network = network_of(client[0]) if client else ""
        self._places_taken.add(self)
        super().connection_made(transport)
        _make_room(self, self._places_taken, self.began_at)

    def connection_lost(self, exc: BaseException | None) -> None:
        self.has_ended()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        """Pause the connection, too: else its answers gather in the TLS layer, or below it."""
        self._is_paused = True
        super().pause_writing()
        self._connection.pause_writing()

    def resume_writing(self) -> None:
        """Resume the connection, unless bytes of the TLS layer have filled the buffer again."""
        self._is_paused = False
        super().resume_writing()
        if not self._is_paused:
            self._connection.resume_writing()

    def has_ended(self) -> None:
        """Release the place."""
        self._places_taken.discard(self)

    def idle_s(self, now: float) -> float:
        """Return for how long the handshake has been under way."""
        return now - self.began_at

    unread_s = idle_s

    def abort_if_unread(self, now: float) -> None:
        """Do nothing: a handshake has no answer, and a deadline of its own."""

    def abort(self) -> None:
        """Disconnect."""
        self.raw.abort()

    shutdown = abort  # called when the server stops


def _bound_unread(taken: set[_TimedProtocol | _Handshake], now: float) -> None:
    """Close connections whose answers nobody reads, while all answers take too much memory."""
    sizes = {each: each.unread for each in taken}
    excess = sum(sizes.values()) - MOST_UNREAD
    if excess <= 0:
        return
    of_network: Counter[str] = Counter()
    for each, size in sizes.items():
        of_network[each.network] += size
    unread = [each for each, size in sizes.items() if size]
    unread.sort(key=lambda each: (of_network[each.network], each.unread_s(now)), reverse=True)
    for each in unread:
        each.abort()
        excess -= sizes[each]
        if excess <= 0:
            return


def _make_room(
    new: _TimedProtocol | _Handshake, taken: set[_TimedProtocol | _Handshake], now: float
) -> None:
    """Close a connection if there are too many: an idle one, or one of a network with too many.

    The new one, which is idle, is closed only if no other is, and its network has its share.
    """
    held = [each for each in taken if not each.displaced]
    if len(held) <= places():
        return
    of_network = Counter(each.network for each in held)
    share = places() // len(of_network)
    ranked = [
        (of_network[each.network], idle_s, each)
        for each in held
        if (idle_s := each.idle_s(now)) is not None
        and (idle_s > JUST_NOW_S or of_network[each.network] > share)
    ]
    ranked.sort(key=lambda one: one[:2], reverse=True)
    # Several at once at a high limit, since this looks at all of them.
    at_once = max(1, places() // 100)
    leaving = [
        each
        for number, (_, _, each) in enumerate(ranked[:at_once])
        if number == 0 or each is not new
    ]
    if not leaving:
        # No network is idle, and the one with the most has more than its share.
        network, count = of_network.most_common(1)[0]
        of_most = sorted((each for each in held if each.network == network), key=_began_at)
        leaving = of_most[-min(at_once, count - share) :]
    for each in leaving:
        each.displaced = True
        each.abort()


def _began_at(connection: _TimedProtocol | _Handshake) -> float:
    return connection.began_at


def places() -> int:
    """Return the most connections."""
    return min(MOST_CONNECTIONS, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2)


def _raise_open_files() -> None:
    """Raise the limit of open files to the number that connections may need, if possible."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _OPEN_FILES if hard == resource.RLIM_INFINITY else min(_OPEN_FILES, hard)
    if soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def listen_on(host: str, port: int) -> socket.socket:
    """Return a listening socket; port 0 takes a free port.

    Raises:
        UsageError: the port is in use, or the address is not this machine's.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except OSError as error:
        raise UsageError(f"--host {host} is no address: {error.strerror}") from error
    # asyncio turns Nagle's algorithm off only if the protocol is named: otherwise each answer,
    # sent in two pieces, would wait 40 ms for the client's acknowledgement of the first.
    listening = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
        listening.listen(_BACKLOG)
    except OSError as error:
        listening.close()
        raise _cannot_listen(host, port, error) from error
    return listening


def _cannot_listen(host: str, port: int, error: OSError) -> UsageError:
    if error.errno == errno.EADDRINUSE:
        return UsageError(
            f"port {port} of {host} is taken by another program",
            hint="take another one with --port; 0 lets the system choose",
        )
    if error.errno == errno.EACCES:
        return UsageError(f"only root may listen on port {port}", hint="take one from 1024 on")
    return UsageError(f"can't listen on {host} port {port}: {error.strerror}")


def _tls_context(cert: str, key: str) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    try:
        context.load_cert_chain(cert, key or None)
    except ssl.SSLError as error:
        raise UsageError(f"{cert} and {key} are no certificate with its key: {error}") from error
    except OSError as error:
        name = error.filename or cert
        raise UsageError(f"{name} can't be read: {error.strerror}") from error
    return context
