"""Decide whether an event fires a trigger, with the reason of each rule. Pure.

The rules are checked in Cloud Build's order, and the first that fails decides. `Verdict.rules` has
the texts of the rules, which a delivery stores and ``buildrunner triggers test`` prints.

Source: semantics 9.2 to 9.7; Cloud Build's "Create and manage triggers".
"""

from __future__ import annotations

import enum
import re
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from buildrunner.spec.model.trigger import (
    BuildTrigger,
    CommentControl,
    PullRequestFilter,
    PushFilter,
)
from buildrunner.spec.substitutions.expressions import BadExpression
from buildrunner.spec.substitutions.templates import Cycle
from buildrunner.triggers.build import filter_values, payload_roots
from buildrunner.triggers.cel import LONGEST_S, filter_rule
from buildrunner.triggers.events import (
    Event,
    MessageEvent,
    PullRequestEvent,
    PushEvent,
    Rule,
    Verdict,
)
from buildrunner.triggers.file_filter import file_rule
from buildrunner.triggers.forge_host import request_name, request_word
from buildrunner.triggers.repository import (
    TriggerRepository,
    event_config,
    listens_to,
    trigger_repository,
)

FilterRule = Callable[[str, Mapping[str, str], Mapping[str, Any], float], Rule]


COMMENT = "/gcbrun"

_SKIP = re.compile(r"\[(?:skip ci|ci skip)\]", re.IGNORECASE)
_FIRING = frozenset({"opened", "reopened", "pushed", "updated", "commented"})
_PATTERN_SHOWN = 80


def payload_rule(
    text: str,
    substitutions: Mapping[str, str],
    payload: Mapping[str, Any],
    longest_s: float = LONGEST_S,
    now: Callable[[], float] = time.monotonic,
) -> Rule:
    """Return the rule of a trigger's filter. See `filter_values` and `cel.filter_rule`."""
    try:
        values = filter_values(substitutions, payload) if text else {}
    except (Cycle, BadExpression) as error:
        why = f"the filter can't be evaluated for this event: {error}"
        return Rule(name="filter", passed=False, text=why)
    return filter_rule(text, values, payload["body"], longest_s, now)


def match(
    trigger: BuildTrigger,
    event: Event,
    *,
    repository: TriggerRepository | None = None,
    longest_s: float = LONGEST_S,
    filter_rule: FilterRule = payload_rule,
) -> Verdict:
    """Decide whether an event fires a trigger.

    Args:
        trigger: a valid trigger.
        event: the event.
        repository: the repository of the trigger; None: the one that its fields alone name.
        longest_s: time limit of the filter.
        filter_rule: evaluates the filter; see `payload_rule`.
    """
    rules: list[Rule] = []
    wanted = repository or trigger_repository(trigger)

    def filtered() -> Rule:
        return filter_rule(trigger.filter, trigger.substitutions, payload_roots(event), longest_s)

    for rule in _asked(trigger, event, wanted, filtered):
        rules.append(rule)
        if rule.passed is False:
            waits = rule.name == "comment" and not _is_comment(event)
            return Verdict(fires=False, rules=tuple(rules), waits_for_comment=waits)
    hold = isinstance(event, PullRequestEvent) and event.is_fork
    return Verdict(fires=True, rules=tuple(rules), hold=hold)


def _asked(
    trigger: BuildTrigger,
    event: Event,
    wanted: TriggerRepository | None,
    filtered: Callable[[], Rule],
) -> Iterator[Rule]:
    match event:
        case PushEvent():
            yield from _push(trigger, event, wanted)
        case PullRequestEvent():
            yield from _pull_request(trigger, event, wanted)
        case MessageEvent():
            yield from _message(trigger, event)
    yield filtered()


def asks_for_build(event: PullRequestEvent) -> bool:
    """Return whether an event is a comment with ``/gcbrun``, by any author."""
    return event.action == "commented" and COMMENT in event.comment


def _is_comment(event: Event) -> bool:
    return isinstance(event, PullRequestEvent) and event.action == "commented"


def _push(
    trigger: BuildTrigger,
    event: PushEvent,
    wanted: TriggerRepository | None,
) -> Iterator[Rule]:
    yield from _concerns(trigger, event, wanted)
    if event.is_deletion:
        yield Rule(name="ref", passed=False, text=f"{event.ref} was deleted")
    push = _push_filter(trigger)
    if push is None:
        yield Rule(name="ref", passed=False, text="the trigger does not listen to pushes")
    else:
        yield from _ref(push, event)
    yield _skip(event.message, event.skip_option)
    if event.tag:
        yield Rule(name="files", passed=None, text="files don't count for tags")
    else:
        yield file_rule(event.files, included=trigger.included_files, ignored=trigger.ignored_files)


def _pull_request(
    trigger: BuildTrigger,
    event: PullRequestEvent,
    wanted: TriggerRepository | None,
) -> Iterator[Rule]:
    forge = event.repository.forge
    word, name = request_word(forge), request_name(forge, event.number)
    yield from _concerns(trigger, event, wanted)
    if event.action not in _FIRING:
        yield Rule(name="ref", passed=False, text=f'a {word} that was "{event.action}"')
    pull = _pull_request_filter(trigger)
    if pull is None:
        yield Rule(name="ref", passed=False, text=f"the trigger does not listen to {word}s")
    else:
        yield Rule(name="ref", passed=True, text=f"{name}: {event.action}")
        if _is_comment(event) and not asks_for_build(event):
            yield Rule(name="comment", passed=False, text=f"the comment does not hold {COMMENT}")
        if not event.base_branch:
            text = f"the base branch of {name} is unknown"
            yield Rule(name="branch", passed=False, text=text)
        yield _regex("base branch", pull.branch or "", event.base_branch, pull.invert_regex)
        yield _comment(pull.comment_control, event)
    yield _skip(event.message)
    yield file_rule(event.files, included=trigger.included_files, ignored=trigger.ignored_files)


def _message(trigger: BuildTrigger, event: MessageEvent) -> Iterator[Rule]:
    yield _enabled(trigger)
    if event.kind == "webhook":
        listens = trigger.webhook_config is not None
        text = "the trigger has a webhook" if listens else "the trigger has no webhook"
    else:
        config = trigger.pubsub_config
        listens = config is not None and event.topic in ("", config.topic)
        topic = f"topic {event.topic}" if event.topic else "messages"
        text = f"the trigger {'listens' if listens else 'does not listen'} to {topic}"
    yield Rule(name="ref", passed=listens, text=text)


def _concerns(
    trigger: BuildTrigger,
    event: PushEvent | PullRequestEvent,
    wanted: TriggerRepository | None,
) -> Iterator[Rule]:
    """Check that the trigger is enabled, and is for the event's repository.

    A disabled trigger for another repository has only the repository's rule: there may be hundreds
    of such triggers, and they are listed in short.
    """
    listens = listens_to(wanted, event.repository)
    if listens.passed or not trigger.disabled:
        yield _enabled(trigger)
    yield listens


def _enabled(trigger: BuildTrigger) -> Rule:
    text = "the trigger is disabled" if trigger.disabled else "the trigger is enabled"
    return Rule(name="enabled", passed=not trigger.disabled, text=text)


def _push_filter(trigger: BuildTrigger) -> PushFilter | None:
    template = trigger.trigger_template
    if template is not None:
        return PushFilter(
            branch=template.branch_name or None,
            tag=template.tag_name or None,
            invert_regex=template.invert_regex,
        )
    config = event_config(trigger)
    return config.push if config is not None else None


def _pull_request_filter(trigger: BuildTrigger) -> PullRequestFilter | None:
    config = event_config(trigger)
    return config.pull_request if config is not None else None


def _ref(push: PushFilter, event: PushEvent) -> Iterator[Rule]:
    kind, pattern, name = (
        ("tag", push.tag, event.tag) if event.tag else ("branch", push.branch, event.branch)
    )
    if not name:
        text = f"{event.ref} is neither a branch nor a tag"
        yield Rule(name="ref", passed=False, text=text)
    if pattern is None:
        other = "tags" if kind == "branch" else "branches"
        yield Rule(name="ref", passed=False, text=f"{kind} {name}: the trigger is for {other}")
        return
    yield Rule(name="ref", passed=True, text=f"the trigger listens to a {kind}")
    yield _regex(kind, pattern, name, push.invert_regex)


def _regex(what: str, pattern: str, name: str, inverted: bool) -> Rule:
    found = _searched(pattern, name)
    shown = pattern if len(pattern) <= _PATTERN_SHOWN else f"{pattern[:_PATTERN_SHOWN]}..."
    verb = "matches" if found else "does not match"
    turned = ", inverted" if inverted else ""
    return Rule(
        name="branch", passed=found is not inverted, text=f"{what} {name} {verb} {shown}{turned}"
    )


def _searched(pattern: str, name: str) -> bool:
    import re2

    return re2.search(pattern, name) is not None


def _skip(message: str, option: str = "") -> Rule:
    if option:
        return Rule(name="skip", passed=False, text=f"it was pushed with the option {option}")
    if not message:
        return Rule(name="skip", passed=None, text="the message of the head commit is unknown")
    found = _SKIP.search(message)
    if found is None:
        return Rule(name="skip", passed=True, text="the commit's message does not skip builds")
    return Rule(
        name="skip", passed=False, text=f"{found.group()} is in the message of the head commit"
    )


def _comment(control: CommentControl, event: PullRequestEvent) -> Rule:
    passed, text = _comment_verdict(control, event)
    return Rule(name="comment", passed=passed, text=text)


def _comment_verdict(control: CommentControl, event: PullRequestEvent) -> tuple[bool, str]:
    if event.action == "commented":
        who = event.commenter or "the commenter"
        if event.commenter_may_write is None:
            return False, f"{who} wrote {COMMENT}, but it is unknown whether {who} may write"
        if not event.commenter_may_write:
            return False, f"{who} wrote {COMMENT}, but may not write to the repository"
        return True, f"{who}, who may write to the repository, wrote {COMMENT}"
    if control is CommentControl.COMMENTS_DISABLED:
        return True, "no comment is needed"
    writer = bool(event.author_may_write)
    author = event.author or "the author"
    if control is CommentControl.COMMENTS_ENABLED_FOR_EXTERNAL_CONTRIBUTORS_ONLY and writer:
        return True, f"{author} may write to the repository: no comment is needed"
    if (
        control is CommentControl.COMMENTS_ENABLED
        and writer
        and event.action in ("opened", "reopened")
        and COMMENT in event.description
    ):
        return True, f"{author}, who may write to the repository, described it with {COMMENT}"
    return False, f"a user with write access to the repository must comment {COMMENT} first"


class Question(enum.Enum):
    """The facts that a match may request."""

    COMMENTER_MAY_WRITE = "whether the commenter may write"
    AUTHOR_MAY_WRITE = "whether the author may write"
    MESSAGE = "the message of the head commit"
    FILES = "which files changed"


def open_question(trigger: BuildTrigger, event: Event, verdict: Verdict) -> Question | None:
    """Return the next fact that could change a verdict; None if the verdict is final.

    Args:
        trigger: the trigger.
        event: the event, as far as it is known.
        verdict: the verdict about it.
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
    """Return whether facts that the payload lacks could make the event fire a trigger.

    Args:
        trigger: a valid trigger.
        event: the event of the delivery.
        repository: the repository of the trigger; None: the one that its fields alone name.
    """
    if isinstance(event, MessageEvent):
        return False
    verdict = match(trigger, event, repository=repository, filter_rule=_skip_filter)
    if isinstance(event, PushEvent):  # its refs are recorded for all triggers of the repository
        return any(rule.name == "repository" and rule.passed for rule in verdict.rules)
    decided = verdict.rules[-1].name
    return decided not in ("enabled", "repository", "ref") and (
        decided != "branch" or not event.base_branch
    )


def _skip_filter(*_: object) -> Rule:
    """Skip the filter, which does not matter here and may take long."""
    return Rule(name="filter", passed=None, text="the filter is not evaluated")


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
