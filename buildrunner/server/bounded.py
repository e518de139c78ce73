"""Evaluation of templates and filters of projects, with limits of time, memory and output.

Each evaluation has its own process (`bounded_process`), which the kernel ends at its limits. A
project has few evaluations at a time, and calls that exceed their limits repeatedly are
refused for a while. So no template or filter delays those of other projects.
"""

from __future__ import annotations

import hashlib
import logging
import os
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from typing import Any, Final

import msgspec

from buildrunner.errors import BuildrunnerError
from buildrunner.triggers.events import Rule
from buildrunner.triggers.matching import payload_rule

CPU_S: Final = 2.0
"""Processor time of one evaluation; a usual template takes a thousandth of it."""
TOO_LONG: Final = "it takes longer than"
"""Part of the message after a time limit; `cel_deadline` uses the same words."""
# A reader's trials leave one place to the project's own deliveries, and one project leaves half of
# all places to others.
_MOST_OF_A_KIND: Final = 2
_MOST_OF_AN_OWNER: Final = 3
_MOST_AT_ONCE: Final = max(2 * _MOST_OF_AN_OWNER, os.cpu_count() or 1)
_WAIT_S: Final = 15.0
_START_S: Final = 60.0
_EXTRA_WALL_S: Final = 10.0
_STRIKES: Final = 3
_LEFT_OUT_S: Final = 600.0
_MOST_KNOWN: Final = 1000
_MOST_ANSWER: Final = 4 << 20
_PIECE: Final = 1 << 16
# Environment variables that the process needs; none of them is a secret.
_NAMES: Final = ("LANG", "LC_ALL", "LD_LIBRARY_PATH", "PATH", "PYTHONPATH", "TZ")

_log = logging.getLogger("buildrunner.server")


class TooMuch(BuildrunnerError):
    """The evaluation exceeded its limit of time, memory or output."""


class Busy(BuildrunnerError):
    """The owner, or all owners together, have too many running evaluations. A retry may succeed."""

    http_status = 429


class Bug(BuildrunnerError):
    """The evaluation met a bug of buildrunner."""


class BoundedCalls:
    """Calls operations by name. Thread-safe; the process is started at the first call.

    Args:
        now: returns monotonic seconds.
    """

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._changed = threading.Condition()
        self._owners: Counter[str] = Counter()
        self._kinds: Counter[tuple[str, bool]] = Counter()  # by owner and `of_event`
        self._under_way = 0
        # By owner and key. Each owner has its own limit, so that none displaces another's.
        self._strikes: dict[str, dict[str, tuple[int, float, str]]] = {}
        self._starting = threading.Lock()
        self._process: _Process | None = None

    def call(
        self,
        operation: str,
        argument: Any,
        *,
        owner: str,
        of_event: bool = False,
        key: str = "",
        cpu_s: float | None = None,
        memory_mib: int = 256,
        wait_limit_s: float = 0.0,
    ) -> Any:
        """Return an operation's result. Blocks while it waits for its turn and evaluates.

        Args:
            operation: one of `bounded_process.OPERATIONS`.
            argument: JSON.
            owner: the project that wrote the evaluated text.
            of_event: an event is handled; otherwise a request or a notification.
            key: identifies the evaluated text. If the text exceeds its limits three times, it is
                refused for ten minutes. Empty: never refused.
            cpu_s: limit of processor time; None for `CPU_S`.
            memory_mib: limit of memory, in MiB.
            wait_limit_s: seconds to wait for the owner's own evaluations, and again for those of
                others. 0: do not wait for the owner's, and wait `_WAIT_S` for those of others.

        Raises:
            TooMuch: the evaluation exceeds its limits, or is refused because it did before.
            Busy: its owner, or all owners together, have too many running evaluations.
            Bug: the evaluation met a bug. The log has the traceback.
            BuildrunnerError: no process can be started.
        """
        self._check(owner, key)
        with self._turn(owner, of_event, wait_limit_s):
            answer = self._answer(operation, argument, cpu_s or CPU_S, memory_mib)
        if answer.get("bug"):
            _log.error("%s of project %s:\n%s", operation, owner, answer["trace"])
            raise Bug(f"internal error, see the server's log: {answer['bug']}")
        if not answer.get("exceeds"):
            self._forget_strikes(owner, key)
            return answer.get("value")
        self._note_strike(owner, key, answer["exceeds"])
        raise TooMuch(answer["exceeds"])

    def close(self) -> None:
        """End the process. Idempotent; the next call starts another."""
        with self._starting:
            if self._process is not None:
                self._process.close()
                self._process = None

    def _answer(
        self, operation: str, argument: Any, cpu_s: float, memory_mib: int
    ) -> dict[str, Any]:
        wall_s = cpu_s + _EXTRA_WALL_S
        limits = {"cpu_s": cpu_s, "wall_s": wall_s, "memory_bytes": memory_mib << 20}
        raw = self._started().ask(limits, msgspec.json.encode([operation, argument]), wall_s)
        if len(raw) > _MOST_ANSWER:
            return {"exceeds": f"it makes more than {_MOST_ANSWER >> 20} MiB"}
        if not raw:  # the kernel ended it
            return {"exceeds": f"{TOO_LONG} {cpu_s:g} s"}
        answer: dict[str, Any] = msgspec.json.decode(raw)
        if answer.get("too_large"):
            return {"exceeds": f"it needs more than {memory_mib} MiB of memory"}
        return answer

    def _started(self) -> _Process:
        with self._starting:
            if self._process is None or not self._process.is_alive():
                if self._process is not None:
                    self._process.close()
                self._process = _Process()
            return self._process

    @contextmanager
    def _turn(self, owner: str, of_event: bool, wait_limit_s: float) -> Iterator[None]:
        """Wait for a place among the running evaluations, and hold it until the block ends.

        Raises:
            Busy: the owner has no further place, or none becomes free.
        """
        with self._changed:
            if not self._changed.wait_for(
                lambda: (
                    self._owners[owner] < _MOST_OF_AN_OWNER
                    and self._kinds[owner, of_event] < _MOST_OF_A_KIND
                ),
                wait_limit_s,
            ):
                raise Busy(f"project {owner} has others under way: try again in a moment")
            # A waiting call counts, too, so that one owner's calls don't pile up.
            self._owners[owner] += 1
            self._kinds[owner, of_event] += 1
        try:
            with self._changed:
                longest_s = wait_limit_s or _WAIT_S
                if not self._changed.wait_for(lambda: self._under_way < _MOST_AT_ONCE, longest_s):
                    raise Busy("too many others are under way: try again in a moment")
                self._under_way += 1
            try:
                yield
            finally:
                with self._changed:
                    self._under_way -= 1
                    self._changed.notify_all()
        finally:
            with self._changed:
                self._owners[owner] -= 1
                self._kinds[owner, of_event] -= 1
                self._changed.notify_all()

    def _check(self, owner: str, key: str) -> None:
        with self._changed:
            count, until, text = self._strikes.get(owner, {}).get(key, (0, 0.0, ""))
        if key and count >= _STRIKES and self._now() < until:
            raise TooMuch(f"{text}, {count} times: it is left out for some minutes")

    def _note_strike(self, owner: str, key: str, text: str) -> None:
        if not key:
            return
        with self._changed:
            strikes = self._strikes.setdefault(owner, {})
            count = strikes.pop(key, (0, 0.0, ""))[0] + 1
            strikes[key] = (count, self._now() + _LEFT_OUT_S, text)
            if len(strikes) > _MOST_KNOWN:
                del strikes[next(iter(strikes))]

    def _forget_strikes(self, owner: str, key: str) -> None:
        with self._changed:
            strikes = self._strikes.get(owner, {})
            if strikes.pop(key, None) and not strikes:
                del self._strikes[owner]


class _Process:
    """One process, which forks for each request."""

    def __init__(self) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            argv = [sys.executable, "-P", "-m", "buildrunner.server.bounded_process"]
            self._process = subprocess.Popen(
                [*argv, str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                cwd="/",
                env={name: os.environ[name] for name in _NAMES if name in os.environ},
                start_new_session=True,
            )
        self._control = ours
        ours.settimeout(_START_S)
        try:
            ready = ours.recv(1)
        except OSError:
            ready = b""
        if not ready:
            self.close()
            raise BuildrunnerError("the process that evaluates templates can't be started")

    def is_alive(self) -> bool:
        """Return whether the process accepts requests."""
        return self._process.poll() is None

    def ask(self, limits: dict[str, float], request: bytes, wall_s: float) -> bytes:
        """Return the answer to a request; empty after its time limit.

        An answer over `_MOST_ANSWER` bytes is cut, but not below this size.
        """
        ours, theirs = socket.socketpair()
        with ours:
            with theirs:
                socket.send_fds(self._control, [msgspec.json.encode(limits)], [theirs.fileno()])
            ours.settimeout(wall_s + _EXTRA_WALL_S)  # the kernel ends it sooner
            try:
                ours.sendall(request)
                ours.shutdown(socket.SHUT_WR)
                return _read(ours)
            except OSError:
                return b""

    def close(self) -> None:
        """Kill the process. Running evaluations end at their limits."""
        self._control.close()
        self._process.kill()
        self._process.wait()


def _read(connection: socket.socket) -> bytes:
    answer = bytearray()
    while len(answer) <= _MOST_ANSWER and (piece := connection.recv(_PIECE)):
        answer += piece
    return bytes(answer)


@cache
def shared_calls() -> BoundedCalls:
    """Return the `BoundedCalls` of this process."""
    import atexit

    calls = BoundedCalls()
    atexit.register(calls.close)
    return calls


_COMPILE_S: Final = 1.0
_MEMORY_MIB: Final = 1024  # a payload of 25 MB takes twenty times as much as CEL's values


def text_key(project: str, text: str) -> str:
    """Return the `BoundedCalls.call` key of a project's text."""
    return hashlib.sha256(f"{project} {text}".encode("utf-8", "surrogatepass")).hexdigest()


class BoundedFilters:
    """Evaluates the filters of one project's triggers. Thread-safe.

    Args:
        calls: evaluates the filters, within limits.
        project: the project.
        waits: wait for other filters of the project. False in the threads that answer requests.
    """

    def __init__(self, calls: BoundedCalls, project: str, *, waits: bool = True) -> None:
        self._calls = calls
        self._project = project
        self._waits = waits

    def rule(
        self,
        text: str,
        substitutions: Mapping[str, str],
        payload: Mapping[str, Any],
        longest_s: float,
    ) -> Rule:
        """See `payload_rule`.

        A filter has no key: otherwise, whoever sends payloads that make it slow could keep its
        trigger from firing.

        Raises:
            Busy: the project has too many other running filters for too long.
        """
        if not text:
            return payload_rule(text, substitutions, payload)
        is_read = "body" in text or any("$(" in value for value in substitutions.values())
        body = payload["body"] if is_read else None  # it can be large
        requested = [text, dict(substitutions), list(payload), body, longest_s]
        try:
            found = self._calls.call(
                "trigger_filter",
                requested,
                owner=self._project,
                of_event=self._waits,
                cpu_s=longest_s + _COMPILE_S,
                memory_mib=_MEMORY_MIB,
                wait_limit_s=longest_s if self._waits else 0.0,
            )
        except (TooMuch, Bug) as error:
            why = f"the filter can't be evaluated for this event: {error}"
            return Rule(name="filter", passed=False, text=why)
        return msgspec.convert(found, Rule)

    def problem(self, text: str, values: Mapping[str, str]) -> str:
        """See `cel.filter_problem`.

        Raises:
            Busy: the project has too many other running evaluations.
        """
        requested = [text, dict(values)]
        try:
            found: str = self._calls.call(
                "check_trigger_filter",
                requested,
                owner=self._project,
                key=text_key(self._project, text),
            )
        except TooMuch as error:
            return f"the filter can't be evaluated: {error}"
        return found
