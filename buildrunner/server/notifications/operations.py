"""Operations evaluated within bounds: JSON in, JSON out. Pure. Only `bounded_process` runs them."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import datetime
from typing import Any, Final

import msgspec

from buildrunner.server.notifications.dispatch import verdict_of
from buildrunner.server.notifications.facts import Facts
from buildrunner.server.notifications.messages import made_message
from buildrunner.server.notifications.model import Notifier
from buildrunner.server.notifications.notifier import problems_of
from buildrunner.server.notifications.templates import TemplateProblem
from buildrunner.spec.model.message import import_all
from buildrunner.spec.reading.findings import suggestion
from buildrunner.triggers.cel import filter_problem, filter_rule


class NotifyArgument(msgspec.Struct, frozen=True, kw_only=True):
    """A notifier is asked about a build.

    Attributes:
        notifier: its config.
        facts: of the build.
        key: of the message.
        now: the time.
        in_any_case: make the message also where its rules say no.
    """

    notifier: Notifier
    facts: Facts
    key: str
    now: datetime
    in_any_case: bool = False


def notify(argument: Any) -> dict[str, Any]:
    """Evaluate a notifier for a build: its rules, and the message or the problem."""
    asked = msgspec.convert(argument, NotifyArgument)
    verdict = verdict_of(asked.notifier, asked.facts)
    found: dict[str, Any] = {
        "fires": verdict.fires,
        "rules": [
            {"name": rule.name, "passed": rule.passed, "text": rule.text} for rule in verdict.rules
        ],
    }
    if not (verdict.fires or asked.in_any_case):
        return found
    try:
        made = made_message(asked.notifier, asked.facts, key=asked.key, now=asked.now)
    except TemplateProblem as error:
        return {**found, "problem": f"template: {error}"}
    return {**found, "kind": made.kind, "message": msgspec.to_builtins(made.call)}


def check_notifier(argument: Any) -> list[tuple[str, str, str]]:
    """Every problem of a notifier."""
    return problems_of(msgspec.convert(argument, Notifier))


def trigger_filter(argument: Any) -> dict[str, Any]:
    """Evaluate a trigger's filter for an event (`cel.filter_rule`)."""
    text, values, body, longest_s = argument
    # Processor time: the server's load must not decide what a filter says.
    rule = filter_rule(text, values, body, longest_s, time.process_time)
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
    """Use everything once: what is imported late can't be once files are closed to the process."""
    import_all()
    suggestion("stat", ("status",))
    trigger_filter(["body.a.exists(x, x == 'b') && _A.matches('c')", {"_A": "c"}, {"a": ["b"]}, 5])
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
