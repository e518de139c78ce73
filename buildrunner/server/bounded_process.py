"""The process that evaluates templates and filters of projects. Started by `BoundedCalls`.

``python -m buildrunner.server.bounded_process FD`` imports everything once, and forks for each
request. The fork lowers its own limits (time, memory, files, processes), reads the request, writes
the answer and exits. The kernel enforces the limits on any evaluated code.

`OPERATIONS` are the possible requests: pure functions from JSON to JSON.
"""

from __future__ import annotations

import gc
import math
import os
import resource
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime
from typing import Any, Final

import msgspec

from buildrunner.server.notifications.dispatch import verdict_of
from buildrunner.server.notifications.facts import Facts
from buildrunner.server.notifications.messages import made_message
from buildrunner.server.notifications.notifier import Notifier, problems_of
from buildrunner.server.notifications.templates import TemplateProblem
from buildrunner.spec.model.message import import_all
from buildrunner.spec.reading.findings import suggestion
from buildrunner.triggers.cel import filter_problem
from buildrunner.triggers.matching import payload_rule

READY: Final = b"r"
_PIECE: Final = 1 << 20
_NICENESS: Final = 10  # long evaluations must not slow down the server
_NOBODY: Final = 65534


class NotifyArgument(msgspec.Struct, frozen=True, kw_only=True):
    """The argument of `notify`: a notifier and a build.

    Attributes:
        notifier: its config.
        facts: facts about the build.
        key: key of the message.
        now: the time.
        in_any_case: make the message even if the rules don't match.
    """

    notifier: Notifier
    facts: Facts
    key: str
    now: datetime
    in_any_case: bool = False


def notify(argument: Any) -> dict[str, Any]:
    """Evaluate a notifier for a build: its rules, and the message or the problem."""
    requested = msgspec.convert(argument, NotifyArgument)
    verdict = verdict_of(requested.notifier, requested.facts)
    found: dict[str, Any] = {
        "fires": verdict.fires,
        "rules": [
            {"name": rule.name, "passed": rule.passed, "text": rule.text} for rule in verdict.rules
        ],
    }
    if not (verdict.fires or requested.in_any_case):
        return found
    try:
        made = made_message(
            requested.notifier, requested.facts, key=requested.key, now=requested.now
        )
    except TemplateProblem as error:
        return {**found, "problem": f"template: {error}"}
    return {**found, "kind": made.kind, "message": msgspec.to_builtins(made.call)}


def check_notifier(argument: Any) -> list[tuple[str, str, str]]:
    """Return every problem of a notifier."""
    return problems_of(msgspec.convert(argument, Notifier))


def trigger_filter(argument: Any) -> dict[str, Any]:
    """Evaluate a trigger's filter for an event (`payload_rule`)."""
    text, substitutions, roots, body, longest_s = argument
    payload = dict.fromkeys(roots, body)
    # Processor time, so that the server's load does not change a filter's result.
    rule = payload_rule(text, substitutions, payload, longest_s, time.process_time)
    return msgspec.structs.asdict(rule)


def check_trigger_filter(argument: Any) -> str:
    """Return the problem of a trigger's filter; empty if it is valid."""
    text, values = argument
    return filter_problem(text, values)


OPERATIONS: Final[dict[str, Callable[[Any], Any]]] = {
    "notify": notify,
    "check_notifier": check_notifier,
    "trigger_filter": trigger_filter,
    "check_trigger_filter": check_trigger_filter,
}


def warm_up() -> None:
    """Use everything once, since late imports fail when the process can't open files any more."""
    import_all()
    suggestion("stat", ("status",))
    text = "body.a.exists(x, x == 'b') && _A.matches('c')"
    trigger_filter([text, {"_A": "${_B:-$(body.a)}"}, ["body"], {"a": ["b"]}, 5])
    for kind, content in (("golang", "{{ .Build.Status }}"), ("jinja2", "{{ build.nothing }}")):
        notification = {
            "filter": 'build.status == Build.Status.SUCCESS && "a" in build.tags',
            "params": {"a": "$(build.tags[0])"},
            "template": {"type": kind, "content": content},
            "delivery": {"url": "https://example.com/"},
        }
        notifier = {
            "apiVersion": "buildrunner/v1",
            "kind": "HTTPNotifier",
            "metadata": {"name": "warm-up"},
            "spec": {"notification": notification},
        }
        check_notifier(notifier)
        facts = {"build": {"status": "SUCCESS", "tags": ["a"]}}
        now = "2026-01-01T00:00:00Z"
        notify({"notifier": notifier, "facts": facts, "key": "k", "now": now, "in_any_case": True})


class Limits(msgspec.Struct, frozen=True):
    """The limits of one request.

    Attributes:
        cpu_s: processor time, in seconds.
        wall_s: elapsed time, in seconds.
        memory_bytes: memory beyond that of the process at the fork.
    """

    cpu_s: float
    wall_s: float
    memory_bytes: int


class Answer(msgspec.Struct, frozen=True, omit_defaults=True):
    """The result of a request.

    Attributes:
        value: the operation's result.
        too_large: the operation exceeded its memory limit.
        bug: the type of an unexpected error; empty for none.
        trace: traceback of that error.
    """

    value: Any = None
    too_large: bool = False
    bug: str = ""
    trace: str = ""


def main(descriptor: int) -> None:
    """Serve requests until the server closes its end."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel removes ended forks
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the server
    warm_up()
    gc.collect()
    gc.freeze()
    with socket.socket(fileno=descriptor) as control:
        control.send(READY)
        while True:
            limits, descriptors, _, _ = socket.recv_fds(control, 4096, 1)
            if not limits:
                return
            if os.fork() == 0:
                control.close()
                _fork(descriptors[0], limits)
            os.close(descriptors[0])


def _fork(descriptor: int, limits: bytes) -> None:
    """Serve one request, and exit."""
    try:
        with socket.socket(fileno=descriptor) as connection:
            lower_limits(msgspec.json.decode(limits, type=Limits))
            answer = _answer(connection)
            with suppress(OSError):
                connection.sendall(answer)
    finally:
        os._exit(0)


def lower_limits(limits: Limits) -> None:
    """Limit this process permanently: evaluated code can't raise its limits again."""
    for timer, seconds in ((signal.ITIMER_REAL, limits.wall_s), (signal.ITIMER_PROF, limits.cpu_s)):
        signal.setitimer(timer, seconds)  # their signals end the process by default
    os.nice(_NICENESS)
    with open("/proc/self/statm", "rb") as statm:
        pages = int(statm.read().split()[0])
    memory = pages * resource.getpagesize() + limits.memory_bytes
    seconds = math.ceil(limits.cpu_s) + 1
    for kind, most in (
        (resource.RLIMIT_AS, memory),
        (resource.RLIMIT_CPU, seconds),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_NPROC, 0),
        (resource.RLIMIT_NOFILE, 0),
    ):
        resource.setrlimit(kind, (most, most))
    if os.geteuid() == 0:  # code that escapes the sandbox of templates must not reach the server
        os.setgroups([])
        os.setresgid(_NOBODY, _NOBODY, _NOBODY)
        os.setresuid(_NOBODY, _NOBODY, _NOBODY)


def _request(connection: socket.socket) -> bytes:
    request = bytearray()
    while piece := connection.recv(_PIECE):
        request += piece
    return bytes(request)


def _answer(connection: socket.socket) -> bytes:
    try:
        name, argument = msgspec.json.decode(_request(connection), type=tuple[str, Any])
        return msgspec.json.encode(Answer(value=OPERATIONS[name](argument)))
    except MemoryError:
        return msgspec.json.encode(Answer(too_large=True))
    except Exception as error:  # noqa: BLE001  (it must be reported, and the process ends anyway)
        trace = traceback.format_exc()
        return msgspec.json.encode(Answer(bug=type(error).__name__, trace=trace))


if __name__ == "__main__":
    main(int(sys.argv[1]))
