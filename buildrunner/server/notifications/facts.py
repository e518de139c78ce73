"""The facts of a build that notifications report, and the variables of their templates. Pure.

In a template, an unset field has the zero value of its type, and an unknown name is an error.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from typing import Any, Final

import msgspec

from buildrunner.spec.model.build import Build
from buildrunner.spec.model.message import LIST, MAP, SCALARS, Field, Message, fields_of, type_named
from buildrunner.triggers.built_revision import built_revision
from buildrunner.triggers.labels import TRIGGER_NAME

_ZEROS: dict[str, Any] = {"bool": False, "int": 0, "Int64": 0}


class MessageView(dict[str, Any]):
    """A message's JSON, in which an unset field has the zero value of its type.

    Accepts both spellings of a field.

    Args:
        message: type of the message.
        document: its JSON, in camelCase.
    """

    def __init__(self, message: type[Message], document: Mapping[str, Any]) -> None:
        self._message = message
        fields = {field.json: field for field in fields_of(message)}
        super().__init__(
            {name: _view(fields.get(name), message, value) for name, value in document.items()}
        )

    @property
    def kind_name(self) -> str:
        """Return the name of the message's type."""
        return self._message.__name__.rstrip("_")

    def __missing__(self, key: str) -> Any:
        for field in fields_of(self._message):
            if key in (field.json, field.name):
                return self[field.json] if field.json in self else _zero(field, self._message)
        raise KeyError(key)


def _view(field: Field | None, message: type[Message], value: Any) -> Any:
    if field is None or field.type_name in SCALARS:
        return value
    kind = type_named(field.type_name, message)
    if issubclass(kind, enum.Enum):
        return value
    if field.form == LIST:
        return [MessageView(kind, one) for one in value]
    if field.form == MAP:
        return {name: MessageView(kind, one) for name, one in value.items()}
    return MessageView(kind, value)


def _zero(field: Field, message: type[Message]) -> Any:
    if field.form == LIST:
        return []
    if field.form == MAP:
        return {}
    if field.type_name in SCALARS:
        return _ZEROS.get(field.type_name, "")
    kind = type_named(field.type_name, message)
    return next(iter(kind)).name if issubclass(kind, enum.Enum) else MessageView(kind, {})


GOOD: Final = "SUCCESS"
# Results that mean a broken commit. A cancelled build means nothing about its commit.
BAD: Final = frozenset({"FAILURE", "TIMEOUT", "INTERNAL_ERROR"})

TEMPLATE_NAMES: Final = frozenset(
    {"build", "previous", "change", "trigger", "ref", "commit", "detail", "title", "params"}
)
"""Names of the values that Jinja2 templates can use; `template_values` sets them."""

BROKEN: Final = "broken"
FIXED: Final = "fixed"
STILL_FAILING: Final = "still failing"
STILL_PASSING: Final = "still passing"


class Facts(msgspec.Struct, frozen=True, kw_only=True):
    """A build as of one of its statuses.

    Attributes:
        build: the Build, as JSON.
        labels: its labels, which only the server sets.
        previous: the last build of its trigger and branch before it that succeeded or failed; None
            for none.
        overtaken: a newer build of its trigger and branch has ended already.
    """

    build: dict[str, Any]
    labels: dict[str, str] = {}
    previous: dict[str, Any] | None = None
    overtaken: bool = False

    @property
    def status(self) -> str:
        """Return the status of the build."""
        return str(self.build.get("status", ""))

    @property
    def change(self) -> str:
        """Return `BROKEN`, `FIXED`, ...; empty if unknown."""
        if self.overtaken or not self.build.get("buildTriggerId"):
            return ""
        before = str((self.previous or {}).get("status", ""))
        if self.status in BAD:
            return STILL_FAILING if before in BAD else BROKEN
        if self.status == GOOD:
            return FIXED if before in BAD else STILL_PASSING
        return ""

    @property
    def trigger(self) -> str:
        """Return the name of its trigger; empty for none."""
        return self.labels.get(TRIGGER_NAME, "")

    @property
    def substitutions(self) -> dict[str, str]:
        """Return the substitutions of the build."""
        values: dict[str, str] = self.build.get("substitutions", {})
        return values

    @property
    def ref(self) -> str:
        """Return the branch or tag; empty if unknown."""
        return built_revision(self.build, self.labels).ref

    @property
    def commit(self) -> str:
        """Return the full commit; empty if unknown."""
        return built_revision(self.build, self.labels).commit

    @property
    def detail(self) -> str:
        """Return why it failed, in one line; empty if unknown."""
        failure = self.build.get("failureInfo", {}).get("detail", "")
        return " ".join(str(failure or self.build.get("statusDetail", "")).split())

    @property
    def title(self) -> str:
        """Describe the build in one line: ``FAILURE: on-push, main 0123abcd (broken)``."""
        what = self.trigger or f"build {str(self.build.get('id', ''))[:8]}"
        where = " ".join(part for part in (self.ref, self.commit[:8]) if part)
        change = f" ({self.change})" if self.change in (BROKEN, FIXED, STILL_FAILING) else ""
        return f"{self.status}: {what}{f', {where}' if where else ''}{change}"


def template_values(facts: Facts, params: dict[str, str]) -> dict[str, Any]:
    """Return the values for templates."""
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
