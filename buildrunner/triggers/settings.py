"""Settings of triggers for which Cloud Build's resource has no fields. Pure.

They are stored beside the trigger, in camelCase::

    {"jitter": "300s", "missed": "once", "overlap": "skip",
     "concurrency": {"group": "deploy", "limit": 1, "policy": "cancel_queued"},
     "approval": {"approvers": ["alice"], "notAuthor": true, "expires": "86400s"},
     "identity": {"audiences": ["sts.amazonaws.com"], "forks": false},
     "onLost": "rerun", "publicBadge": true,
     "forge": {"kind": "gitea", "host": "https://git.example.com"}}
"""

from __future__ import annotations

import enum
import re
from collections.abc import Mapping
from datetime import timedelta
from typing import Any, Literal

import msgspec

from buildrunner.errors import ConfigError, UsageError
from buildrunner.problem import Problem
from buildrunner.triggers.forge_host import named_forge
from buildrunner.triggers.schedule import Missed, Overlap, Schedule

_DURATION = re.compile(r"(\d{1,9})s")
_NAME = r"^[A-Za-z0-9]([A-Za-z0-9_.-]{0,62})?$"
MOST_BYTES = 64 << 10
_MAX_JITTER_S = 3600
_LONGEST_AUDIENCE = 512


class Concurrency(
    msgspec.Struct, frozen=True, kw_only=True, rename="camel", forbid_unknown_fields=True
):
    """The builds of a trigger that may run at the same time.

    Attributes:
        group: builds of all triggers of a project that name the same group share its limit; empty
            for a group of the trigger's own.
        limit: how many of the group run at the same time; 0 for no limit.
        policy: what a new build does to earlier ones of the group: ``queue`` waits for them,
            ``cancel_queued`` cancels those that wait, ``cancel_all`` also those that run.
    """

    group: str = ""
    limit: int = 0
    policy: Literal["queue", "cancel_queued", "cancel_all"] = "queue"


class ApprovalPolicy(
    msgspec.Struct, frozen=True, kw_only=True, rename="camel", forbid_unknown_fields=True
):
    """The callers who may approve a build that waits for an approval.

    Attributes:
        approvers: names of tokens; if empty, all whose scopes include ``approve``.
        not_author: nobody known to be behind the build may approve it. If the server does not know
            all of them, only ``approvers`` may, or an admin if there are none.
        expires: time after which an unapproved build is cancelled: ``86400s``; empty: never.
    """

    approvers: tuple[str, ...] = ()
    not_author: bool = False
    expires: str = ""


class IdentityPolicy(
    msgspec.Struct, frozen=True, kw_only=True, rename="camel", forbid_unknown_fields=True
):
    """The identity tokens that the builds of a trigger may have.

    Attributes:
        audiences: allowed audiences of tokens; if empty, builds get no tokens.
        forks: builds of forks get tokens, too. These tokens say that the build is of a fork.
    """

    audiences: tuple[str, ...] = ()
    forks: bool = False


class ForgeSetting(
    msgspec.Struct, frozen=True, kw_only=True, rename="camel", forbid_unknown_fields=True
):
    """The forge of the trigger's repository. Events of other forges do not fire the trigger.

    Attributes:
        kind: see `forge_host.KINDS`.
        host: host or URL of the forge; empty for the public one of its kind.
        unconfirmed: an upgrade guessed it from an old trigger without a forge. The trigger does not
            fire until its admin sets it.
    """

    kind: str
    host: str = ""
    unconfirmed: bool = False


class OnLost(enum.Enum):
    """The treatment of a build whose worker, Pod or node is lost after a step began.

    The hosted service fails such a build.
    """

    FAIL = "fail"
    RERUN = "rerun"


class TriggerSettings(
    msgspec.Struct, frozen=True, kw_only=True, rename="camel", forbid_unknown_fields=True
):
    """Settings of a trigger that only buildrunner has.

    Attributes:
        jitter: maximum delay of scheduled builds: ``300s``.
        missed, overlap: see `Schedule`.
        concurrency: which builds run at the same time.
        approval: who may approve. The trigger's ``approvalConfig`` says whether approval is needed.
        identity: which identity tokens builds can have.
        on_lost: see `OnLost`.
        public_badge: show the badge to clients without a token.
        forge: forge of the trigger's repository; None for the public forge that Cloud Build's
            field means.
    """

    jitter: str = ""
    missed: Missed = Missed.SKIP
    overlap: Overlap = Overlap.ALLOW
    concurrency: Concurrency = Concurrency()
    approval: ApprovalPolicy = ApprovalPolicy()
    identity: IdentityPolicy = IdentityPolicy()
    on_lost: OnLost = OnLost.FAIL
    public_badge: bool = False
    forge: ForgeSetting | None = None

    @property
    def jitter_s(self) -> int:
        """Return the jitter in seconds."""
        return int(_seconds(self.jitter))

    @property
    def approval_expires(self) -> timedelta | None:
        """Return the longest time that a build waits for its approval; None without a limit."""
        return timedelta(seconds=_seconds(self.approval.expires)) if self.approval.expires else None

    def schedule(self, cron: Mapping[str, Any]) -> Schedule:
        """Return the schedule of a trigger with these settings and this ``cron``."""
        return Schedule(
            cron=str(cron.get("schedule", "")),
            time_zone=str(cron.get("timeZone", "")),
            jitter_s=self.jitter_s,
            missed=self.missed,
            overlap=self.overlap,
        )


def read_settings(document: Any) -> TriggerSettings:
    """Return the settings in a document; all have defaults.

    Raises:
        ConfigError: the document is invalid.
    """
    try:
        settings = msgspec.convert(document, TriggerSettings)
    except msgspec.ValidationError as error:
        text, _, place = str(error).partition(" - at ")
        path = place.strip("`").removeprefix("$").removeprefix(".")
        raise ConfigError([Problem(_lowered(text), path=path, rule="trigger-settings")]) from error
    problems = [
        Problem(message, path=path, hint=hint, rule="trigger-settings")
        for path, message, hint in _problems(settings)
        if message
    ]
    if problems:
        raise ConfigError(problems)
    return settings


def _problems(settings: TriggerSettings) -> list[tuple[str, str, str]]:
    concurrency = settings.concurrency
    named = not concurrency.group or re.match(_NAME, concurrency.group)
    is_large = len(msgspec.json.encode(settings)) > MOST_BYTES
    return [
        ("", f"the settings are larger than {MOST_BYTES >> 10} KiB" if is_large else "", ""),
        ("jitter", _bad_duration(settings.jitter, _MAX_JITTER_S), "seconds, as in 300s"),
        ("approval.expires", _bad_duration(settings.approval.expires), "seconds, as in 86400s"),
        (
            "approval.approvers",
            "" if all(settings.approval.approvers) else "a name is empty, so that nobody has it",
            "names of tokens",
        ),
        (
            "concurrency.group",
            "" if named else f"{concurrency.group!r} is no name for a group",
            "1 to 63 letters, digits and -_.",
        ),
        (
            "concurrency.limit",
            "" if 0 <= concurrency.limit <= 1000 else "must be from 0 to 1000",
            "0 is for no limit",
        ),
        (
            "identity.audiences",
            next(map(_bad_audience, filter(_bad_audience, settings.identity.audiences)), ""),
            "such as https://iam.example.com or sts.amazonaws.com",
        ),
        ("forge", *_bad_forge(settings.forge)),
    ]


def _bad_forge(forge: ForgeSetting | None) -> tuple[str, str]:
    if forge is None or forge.unconfirmed:
        return "", ""
    try:
        named_forge(forge.kind, forge.host)
    except UsageError as error:
        return str(error), error.hint
    return "", ""


def _bad_audience(text: str) -> str:
    if 0 < len(text) <= _LONGEST_AUDIENCE and text.isprintable() and " " not in text:
        return ""
    return f"{text[:_LONGEST_AUDIENCE]!r} is no audience"


def _bad_duration(text: str, most_s: int = 10**9) -> str:
    if not text:
        return ""
    if not _DURATION.fullmatch(text):
        return f"{text!r} is no duration in seconds"
    return "" if int(text[:-1]) <= most_s else f"{text} is longer than {most_s}s"


def _seconds(text: str) -> int:
    return int(text.removesuffix("s") or 0)


def _lowered(text: str) -> str:
    return text[:1].lower() + text[1:]
