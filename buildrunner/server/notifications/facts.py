"""What is known of a build when somebody is to be told of it. Pure."""

from __future__ import annotations

from typing import Any, Final

import msgspec

from buildrunner.server.notifications.views import MessageView
from buildrunner.spec.model.build import Build

GOOD: Final = "SUCCESS"
# What says that something is wrong; a cancelled build says nothing.
BAD: Final = frozenset({"FAILURE", "TIMEOUT", "INTERNAL_ERROR"})

TEMPLATE_NAMES: Final = frozenset(
    {"build", "previous", "change", "trigger", "ref", "commit", "detail", "title", "params"}
)
"""What templates of Jinja2 see; see `template_values`."""

BROKEN: Final = "broken"
FIXED: Final = "fixed"
STILL_FAILING: Final = "still failing"
STILL_PASSING: Final = "still passing"


class Facts(msgspec.Struct, frozen=True, kw_only=True):
    """A build as of one of its statuses.

    Attributes:
        build: the Build, as JSON.
        trigger: name of its trigger; empty for none.
        previous: the last build of its trigger and branch before it that says something; None
            for none.
        overtaken: a newer build of its trigger and branch has ended already.
    """

    build: dict[str, Any]
    trigger: str = ""
    previous: dict[str, Any] | None = None
    overtaken: bool = False

    @property
    def status(self) -> str:
        """What became of the build."""
        return str(self.build.get("status", ""))

    @property
    def change(self) -> str:
        """`BROKEN`, `FIXED`, ...; empty while nobody can say."""
        if self.overtaken or not self.build.get("buildTriggerId"):
            return ""
        before = str((self.previous or {}).get("status", ""))
        if self.status in BAD:
            return STILL_FAILING if before in BAD else BROKEN
        if self.status == GOOD:
            return FIXED if before in BAD else STILL_PASSING
        return ""

    @property
    def substitutions(self) -> dict[str, str]:
        """Values of the build."""
        values: dict[str, str] = self.build.get("substitutions", {})
        return values

    @property
    def ref(self) -> str:
        """Branch or tag; empty when unknown."""
        values = self.substitutions
        return values.get("BRANCH_NAME", "") or values.get("TAG_NAME", "")

    @property
    def commit(self) -> str:
        """In full; empty when unknown."""
        return self.substitutions.get("COMMIT_SHA", "")

    @property
    def detail(self) -> str:
        """Why it failed, in one line; empty unless somebody said."""
        failure = self.build.get("failureInfo", {}).get("detail", "")
        return " ".join(str(failure or self.build.get("statusDetail", "")).split())

    @property
    def title(self) -> str:
        """The build in one line: ``FAILURE: on-push, main 0123abcd (broken)``."""
        what = self.trigger or f"build {str(self.build.get('id', ''))[:8]}"
        where = " ".join(part for part in (self.ref, self.commit[:8]) if part)
        change = f" ({self.change})" if self.change in (BROKEN, FIXED, STILL_FAILING) else ""
        return f"{self.status}: {what}{f', {where}' if where else ''}{change}"


def template_values(facts: Facts, params: dict[str, str]) -> dict[str, Any]:
    """What templates see."""
    previous = facts.previous
    return {
        "build": MessageView(Build, facts.build),
        "previous": None if previous is None else MessageView(Build, previous),
        "change": facts.change,
        "trigger": facts.trigger,
        "ref": facts.ref,
        "commit": facts.commit,
        "detail": facts.detail,
        "title": facts.title,
        "params": params,
        "go_root": {"Build": MessageView(Build, facts.build), "Params": params},
    }
