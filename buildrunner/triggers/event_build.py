"""The build that an event makes: of its very commit, with what the event says. Pure.

Source: semantics 9.5; Cloud Build's "Substituting variable values", the columns of pushes and pull
requests.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from msgspec.structs import replace

from buildrunner.errors import UsageError
from buildrunner.spec.model_source import ConnectedRepository, GitSource, RepoSource, Source
from buildrunner.triggers.events import MessageEvent, PullRequestEvent, PushEvent
from buildrunner.triggers.trigger_build import (
    assembled,
    config_path,
    filter_values,
    known_facts,
    of_ref,
    unsourced_run,
    webhook_run,
)
from buildrunner.triggers.trigger_source import Revision

if TYPE_CHECKING:
    from collections.abc import Mapping

    from buildrunner.spec.trigger import BuildTrigger
    from buildrunner.triggers.events import Event, Repository
    from buildrunner.triggers.trigger_build import TriggeredBuild
    from buildrunner.triggers.trigger_repository import TriggerRepository

_SHORT = 7
_WHOLE = 40


def event_run(
    trigger: BuildTrigger, event: Event, repository: TriggerRepository | None = None
) -> TriggeredBuild:
    """The build that an event makes, whatever its kind.

    Args:
        trigger: which fires.
        event: what happened; its repository is bound to a forge.
        repository: the one that the trigger listens to. One whose address the server's settings
            say is fetched from there.

    Raises:
        UsageError: nobody says which commit or repository to build.
    """
    match event:
        case PushEvent():
            return push_run(trigger, event, repository)
        case PullRequestEvent():
            return pull_request_run(trigger, event, repository)
        case MessageEvent():
            return webhook_run(trigger, event.body)


def event_values(trigger: BuildTrigger, event: Event) -> dict[str, str]:
    """What the trigger's ``filter`` sees: its substitutions, the event's bindings filled in."""
    return filter_values(trigger, payload_roots(event))


def payload_roots(event: Event) -> dict[str, Any]:
    """The event's payload under the names that bindings begin with.

    Source: semantics 4.9. ``body`` is ours for events of repositories: the filter has it, too.
    """
    match event:
        case PushEvent():
            return {"body": event.body, "push": event.body}
        case PullRequestEvent():
            return {"body": event.body, "pull_request": event.body}
        case MessageEvent():
            return {"body": event.body}


def push_run(
    trigger: BuildTrigger, event: PushEvent, repository: TriggerRepository | None
) -> TriggeredBuild:
    """The build of a push: the commit that the ref points to since.

    Args:
        trigger: which fires.
        event: not a deletion.
        repository: see `event_run`.

    Raises:
        UsageError: the event has no commit, or nobody says where the repository is.
    """
    if event.is_deletion:
        raise UsageError(f"{event.ref} was deleted: there is nothing to build")
    source = _source(trigger, event.repository, event.after, repository)
    made = assembled(trigger, source, _push_facts(trigger, event), {}, payload_roots(event))
    return of_ref(made, event.ref)


def pull_request_run(
    trigger: BuildTrigger, event: PullRequestEvent, repository: TriggerRepository | None
) -> TriggeredBuild:
    """The build of a pull request: its head commit, from the repository that has it.

    A fork's is held for an approval, and gets neither secrets nor the socket.

    Args:
        trigger: which fires.
        event: with its head commit.
        repository: see `event_run`.

    Raises:
        UsageError: the event has no commit, or nobody says where the repository is.
    """
    if not event.head_commit:
        raise UsageError(
            f"nobody says which commit pull request #{event.number} is at",
            hint="give the server a token for the forge's API",
        )
    if event.is_fork and event.head_clone_url:
        folder = trigger.trigger_template.dir if trigger.trigger_template else ""
        source = _git(event.head_clone_url, event.head_commit, folder)
    else:
        source = _source(trigger, event.repository, event.head_commit, repository)
    made = assembled(trigger, source, _pull_facts(trigger, event), {}, payload_roots(event))
    if not event.is_fork:
        return of_ref(made, f"refs/heads/{event.head_branch}")
    return replace(made, hold=True, untrusted=True)


def failed_run(trigger: BuildTrigger, event: Event) -> TriggeredBuild:
    """What is known of a build that `event_run` can't make: see `trigger_build.unsourced_run`."""
    roots = payload_roots(event)
    match event:
        case PushEvent():
            return unsourced_run(trigger, _push_facts(trigger, event), roots)
        case PullRequestEvent():
            made = unsourced_run(trigger, _pull_facts(trigger, event), roots)
            return replace(made, hold=event.is_fork, untrusted=event.is_fork)
        case MessageEvent():
            return unsourced_run(trigger, known_facts(trigger, Revision()), roots)


def _push_facts(trigger: BuildTrigger, event: PushEvent) -> dict[str, str]:
    return _known(
        {
            **_repository_facts(trigger, event.repository),
            "BRANCH_NAME": event.branch,
            "TAG_NAME": event.tag,
            "REF_NAME": event.branch or event.tag,
            **({} if event.may_be_unpeeled else _commit_facts(event.after)),
        }
    )


def _pull_facts(trigger: BuildTrigger, event: PullRequestEvent) -> dict[str, str]:
    return _known(
        {
            **_repository_facts(trigger, event.repository),
            "BRANCH_NAME": event.head_branch,
            "REF_NAME": event.head_branch,
            **_commit_facts(event.head_commit),
            "_HEAD_BRANCH": event.head_branch,
            "_BASE_BRANCH": event.base_branch,
            "_HEAD_REPO_URL": _page(event.head_clone_url or event.repository.clone_url),
            "_PR_NUMBER": str(event.number),
        }
    )


def _known(facts: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in facts.items() if value}


def _commit_facts(commit: str) -> dict[str, str]:
    """What is said of a whole commit; what is none the fetch tells."""
    if len(commit) < _WHOLE:
        return {}
    return {"COMMIT_SHA": commit, "REVISION_ID": commit, "SHORT_SHA": commit[:_SHORT]}


def _repository_facts(trigger: BuildTrigger, repository: Repository) -> dict[str, str]:
    return {
        "TRIGGER_NAME": trigger.name,
        "TRIGGER_BUILD_CONFIG_PATH": config_path(trigger),
        "REPO_FULL_NAME": repository.full_name,
        "REPO_NAME": repository.full_name.rpartition("/")[2],
    }


def _source(
    trigger: BuildTrigger, told: Repository, commit: str, wanted: TriggerRepository | None
) -> Source:
    """The commit, from where the server's settings say, or else from the event's repository.

    Raises:
        UsageError: nothing says where that is.
    """
    connected, template = trigger.repository_event_config, trigger.trigger_template
    folder = template.dir if template is not None else ""
    if wanted is not None and wanted.connected and connected is not None:
        name = connected.repository
        return Source(connected_repository=ConnectedRepository(repository=name, revision=commit))
    if wanted is not None and wanted.connected and template is not None:
        return Source(
            repo_source=RepoSource(
                project_id=template.project_id,
                repo_name=template.repo_name,
                commit_sha=commit,
                dir=folder,
            )
        )
    if not told.clone_url:
        raise UsageError(
            f"nobody says where {told.full_name} is",
            hint="map its name to its Git URL: [git] repositories of the settings",
        )
    return _git(told.clone_url, commit, folder)


def _git(url: str, commit: str, folder: str) -> Source:
    return Source(git_source=GitSource(url=url, revision=commit, dir=folder))


def _page(clone_url: str) -> str:
    """The repository's address as people know it.

    Source: ``_HEAD_REPO_URL`` is https://github.com/OWNER/NAME, without ``.git``.
    """
    return clone_url.removesuffix(".git")
