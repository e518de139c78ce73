"""What a verdict hangs on that the payload does not tell. Pure.

Whoever can ask Git or a forge does so, puts the answer into the event, and asks `match` again.
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING

from buildrunner.triggers.events import MessageEvent, PullRequestEvent, PushEvent, Rule
from buildrunner.triggers.matching import COMMENT, match

if TYPE_CHECKING:
    from buildrunner.spec.trigger import BuildTrigger
    from buildrunner.triggers.events import Event, Verdict
    from buildrunner.triggers.trigger_repository import TriggerRepository


class Question(enum.Enum):
    """What may be asked."""

    COMMENTER_MAY_WRITE = "whether the commenter may write"
    AUTHOR_MAY_WRITE = "whether the author may write"
    MESSAGE = "the message of the head commit"
    FILES = "which files changed"


def open_question(trigger: BuildTrigger, event: Event, verdict: Verdict) -> Question | None:
    """The next thing that could change a verdict; None when it stands.

    Args:
        trigger: which was asked.
        event: as far as it is known.
        verdict: about it.
    """
    if isinstance(event, MessageEvent):
        return None
    if not verdict.fires:
        return _that_would_let_it_fire(event, verdict)
    if not event.message:
        return Question.MESSAGE
    has_filters = bool(trigger.included_files or trigger.ignored_files)
    is_tag = isinstance(event, PushEvent) and bool(event.tag)
    return Question.FILES if has_filters and not _files_are_sure(event) and not is_tag else None


def may_care(trigger: BuildTrigger, event: Event, repository: TriggerRepository | None) -> bool:
    """Whether a trigger could fire if more were known of the event than its payload tells.

    Args:
        trigger: a valid one.
        event: as the delivery tells it.
        repository: the one that the trigger listens to; None: what its fields alone say.
    """
    if isinstance(event, MessageEvent):
        return False
    verdict = match(trigger, event, repository=repository, filter_rule=_unasked)
    if isinstance(event, PushEvent):  # where its refs are is remembered, whoever listens to which
        return any(rule.name == "repository" and rule.passed for rule in verdict.rules)
    decided = verdict.rules[-1].name
    return decided not in ("enabled", "repository", "ref") and (
        decided != "branch" or not event.base_branch
    )


def _unasked(*_: object) -> Rule:
    """Its filter decides nothing here, and may take long."""
    return Rule(name="filter", passed=None, text="the filter is not asked")


def _that_would_let_it_fire(
    event: PushEvent | PullRequestEvent, verdict: Verdict
) -> Question | None:
    decided = verdict.rules[-1].name if verdict.rules else ""
    if decided == "files" and not _files_are_sure(event):
        return Question.FILES
    if decided == "comment" and isinstance(event, PullRequestEvent):
        return _right_to_comment(event)
    return None


def _files_are_sure(event: PushEvent | PullRequestEvent) -> bool:
    is_doubtful = isinstance(event, PushEvent) and event.doubtful_files
    return event.files is not None and not is_doubtful


def _right_to_comment(event: PullRequestEvent) -> Question | None:
    if event.action != "commented":
        return Question.AUTHOR_MAY_WRITE if event.author_may_write is None else None
    is_asked = COMMENT in event.comment and event.commenter_may_write is None
    return Question.COMMENTER_MAY_WRITE if is_asked else None
