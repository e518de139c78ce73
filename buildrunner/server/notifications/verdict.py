"""Whether a notifier tells of a build, and why. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from buildrunner.server.notifications.facts import BAD, BROKEN, FIXED, GOOD
from buildrunner.triggers.build_filter import build_rule
from buildrunner.triggers.events import Rule, Verdict

if TYPE_CHECKING:
    from buildrunner.server.notifications.facts import Facts
    from buildrunner.server.notifications.model import Notifier


def verdict_of(notifier: Notifier, facts: Facts) -> Verdict:
    """The verdict, rule by rule."""
    rules = [change_rule(notifier, facts)]
    if rules[0].passed is not False:
        others = {
            "previous": facts.previous,
            "change": facts.change,
            "trigger": facts.trigger,
        }
        rules.append(build_rule(notifier.spec.notification.filter, facts.build, others))
    return Verdict(fires=all(rule.passed is not False for rule in rules), rules=tuple(rules))


def change_rule(notifier: Notifier, facts: Facts) -> Rule:
    """Whether a notifier tells of such a change; its filter is not asked."""
    on = notifier.spec.notification.on
    if on == "status":
        return Rule(name="on", passed=None, text="it tells of each new status")
    wanted = (FIXED,) if on == "recovery" else (BROKEN, FIXED)
    passed = facts.change in wanted
    return Rule(name="on", passed=passed, text=f"it tells of {' and '.join(wanted)}: {_why(facts)}")


def _why(facts: Facts) -> str:
    if facts.overtaken:
        return "a newer build of the same trigger and branch has ended before this one"
    if not facts.build.get("buildTriggerId"):
        return "the build has no trigger whose other builds it could be compared with"
    if facts.status not in {GOOD, *BAD}:
        return f"{facts.status} says nothing of that"
    if facts.previous is None:
        return f"{facts.status}, and there was no build before it: {facts.change}"
    return f"{facts.previous['status']} before, {facts.status} now: {facts.change}"
