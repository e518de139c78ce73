"""The build that a trigger makes: its template or config, and its values. Pure.

Source: Cloud Build's "Create and manage triggers", and the API's text of ``RunBuildTrigger``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
from msgspec.structs import replace

from buildrunner.errors import ConfigError, UsageError
from buildrunner.problem import Problem
from buildrunner.spec.model.build import Build
from buildrunner.spec.model.source import ConnectedRepository, GitSource, RepoSource, Source
from buildrunner.spec.model.trigger import BuildTrigger
from buildrunner.spec.substitutions.expressions import BadExpression, Budget
from buildrunner.spec.substitutions.payload import bind, quoted
from buildrunner.spec.substitutions.templates import expand
from buildrunner.spec.substitutions.variables import is_user_variable, merged
from buildrunner.spec.writing import encode_message
from buildrunner.triggers.config_source import check_config_source
from buildrunner.triggers.events import Event, MessageEvent, PullRequestEvent, PushEvent, Repository
from buildrunner.triggers.forge_host import ForgeHost, public_forge, request_name
from buildrunner.triggers.labels import (
    AUTODETECT,
    BUILT_REF,
    CONFIG_LABEL,
    GIVEN_FOLDER,
    GIVEN_VALUES,
    NAMED_COMMIT,
    NOTHING_TO_BUILD,
    TRIGGER_NAME,
)
from buildrunner.triggers.repository import (
    Revision,
    TriggerRepository,
    revision_of,
    source_of,
    trigger_repository,
)


class TriggeredBuild(msgspec.Struct, frozen=True, kw_only=True):
    """The build that a trigger makes of an event.

    Attributes:
        request: the requested Build, as JSON; without steps if they are in the source.
        labels: `CONFIG_LABEL` if the steps are in the source; `TRIGGER_NAME`, `BUILT_REF`;
            `forge_labels` for a build without an event. Only the server sets them, never the caller
            who requests a build.
        warnings: sentences about missing values.
        hold: it must be approved, even if the trigger does not require it: its source is a fork's.
        untrusted: it may have neither secrets nor the engine's socket, even after an approval.
    """

    request: dict[str, Any]
    labels: dict[str, str]
    warnings: tuple[str, ...] = ()
    hold: bool = False
    untrusted: bool = False


def manual_run(
    trigger: BuildTrigger,
    source: RepoSource | None,
    repository: TriggerRepository | None = None,
) -> TriggeredBuild:
    """Return the build of a manual run.

    A manual run ignores ``disabled`` and the event's filters. Its labels say which values and
    folder its caller gave.

    Args:
        trigger: the trigger.
        source: the caller's revision and values; None for none.
        repository: the trigger's repository; None: the one in its fields.

    Raises:
        UsageError: no revision is given.
        ConfigError: a revision is a pattern, or the folder is absolute.
    """
    wanted = source or RepoSource()
    revision = revision_of(wanted)
    made = _build(
        trigger, revision, wanted.substitutions, {}, repository or trigger_repository(trigger)
    )
    labels = {
        NAMED_COMMIT: "yes" if revision.commit else "",
        GIVEN_VALUES: " ".join(sorted(wanted.substitutions)),
        GIVEN_FOLDER: wanted.dir,
    }
    known = {name: text for name, text in labels.items() if text}
    return replace(made, labels={**made.labels, **known})


def webhook_run(
    trigger: BuildTrigger, body: Any, repository: TriggerRepository | None = None
) -> TriggeredBuild:
    """Return the build of a webhook's payload.

    Args:
        trigger: the trigger whose webhook was called.
        body: the payload as parsed JSON.
        repository: the trigger's repository, with a problem; None: the trigger listens to none.

    Raises:
        UsageError: no revision is given, or the repository has a problem.
    """
    return _build(trigger, Revision(), {}, {"body": body}, repository)


def unsourced_run(trigger: BuildTrigger, facts: Mapping[str, str], body: Any) -> TriggeredBuild:
    """Return a build without a source, which can only fail.

    Args:
        trigger: the firing trigger.
        facts: values of the built-in substitutions that are known.
        body: parsed JSON by root name (`spec.bindings.ROOTS`).
    """
    try:
        made = assembled(trigger, None, facts, {}, body)
    except ConfigError:  # its bindings stay unchanged
        made = assembled(trigger, None, facts, {}, {})
    return replace(made, labels={**made.labels, NOTHING_TO_BUILD: "yes"})


def filter_values(substitutions: Mapping[str, str], payload: Mapping[str, Any]) -> dict[str, str]:
    """Return a trigger's substitutions for its ``filter``: bindings filled in, plain text.

    Args:
        substitutions: those of the trigger.
        payload: parsed JSON by root name (`spec.bindings.ROOTS`).

    Raises:
        Cycle: variables refer to each other in a cycle.
        BadExpression: a value is too long or can't be evaluated, or all take too much work.
    """
    budget = Budget()
    bound = bind(substitutions, payload, budget).values
    return expand(bound, {}, is_template=is_user_variable, budget=budget)


def _build(
    trigger: BuildTrigger,
    revision: Revision,
    given: Mapping[str, str],
    event: Mapping[str, Any],
    repository: TriggerRepository | None = None,
) -> TriggeredBuild:
    source, revision = source_of(trigger, revision, repository)
    check_config_source(trigger, repository, revision.ref)
    made = assembled(trigger, source, known_facts(trigger, revision), given, event)
    made = replace(made, labels={**made.labels, **_forge_labels(repository, source)})
    return of_ref(made, revision.ref if source is not None else "")


def of_ref(made: TriggeredBuild, ref: str) -> TriggeredBuild:
    """Return the build with a label for its ref of the trigger's repository.

    Args:
        made: the build.
        ref: a branch's or tag's full name; another ref adds no label.
    """
    if not ref.startswith(("refs/heads/", "refs/tags/")):
        return made
    return replace(made, labels={**made.labels, BUILT_REF: ref})


def _forge_labels(repository: TriggerRepository | None, source: Source | None) -> dict[str, str]:
    """Return the labels for the commit status of a build without an event."""
    if repository is not None:
        host, name = repository.host, repository.name
    else:
        url = source.git_source.url if source is not None and source.git_source else ""
        host = public_forge(url)
        name = host.full_name(url) if host else ""
    return forge_labels(host, name) if host and name else {}


def forge_labels(host: ForgeHost, full_name: str) -> dict[str, str]:
    """Return the labels for the forge and the repository of a build."""
    return {"forge": host.kind, "forge_url": host.url, "repository": full_name}


def assembled(
    trigger: BuildTrigger,
    source: Source | None,
    facts: Mapping[str, str],
    given: Mapping[str, str],
    event: Mapping[str, Any],
) -> TriggeredBuild:
    """Return the trigger's build of a source.

    Args:
        trigger: the trigger with the template.
        source: the source; None: the template's.
        facts: known built-in variables; values of the template and the trigger override them.
        given: values of this run, which override all others.
        event: parsed JSON by root name (`spec.bindings.ROOTS`), for bindings.

    Raises:
        ConfigError: the bindings take too much work, or make a value too long.
    """
    template = trigger.build or Build()
    try:
        bound = bind(merged(template.substitutions, trigger.substitutions), event)
    except BadExpression as error:
        raise ConfigError([Problem(str(error), rule="expression")]) from error
    values = merged(facts, bound.values, dict(given))
    tags = tuple(dict.fromkeys((*template.tags, *trigger.tags, f"trigger-{trigger.id}")))
    build = replace(
        template,
        source=source if source is not None else template.source,
        substitutions=values,
        tags=tags,
        service_account=template.service_account or trigger.service_account,
    )
    warnings = tuple(f"{binding} is not in the event: empty" for binding in bound.missing)
    return TriggeredBuild(
        request=encode_message(build),
        labels={TRIGGER_NAME: trigger.name, **_config_label(trigger)},
        warnings=warnings,
    )


def _config_label(trigger: BuildTrigger) -> dict[str, str]:
    if trigger.build is not None:
        return {}
    path = trigger.filename or ""
    if trigger.git_file_source is not None:
        path = trigger.git_file_source.path
    return {CONFIG_LABEL: path or AUTODETECT}


def config_path(trigger: BuildTrigger) -> str:
    """Return ``$TRIGGER_BUILD_CONFIG_PATH``: empty for an inline build."""
    label = _config_label(trigger).get(CONFIG_LABEL, "")
    return "" if label == AUTODETECT else label


def known_facts(trigger: BuildTrigger, revision: Revision) -> dict[str, str]:
    """Return the known built-in substitutions. The fetch adds those of the commit."""
    facts = {
        "TRIGGER_NAME": trigger.name,
        "TRIGGER_BUILD_CONFIG_PATH": config_path(trigger),
        "BRANCH_NAME": revision.branch,
        "TAG_NAME": revision.tag,
        "REF_NAME": revision.branch or revision.tag,
    }
    if trigger.github is not None:
        facts["REPO_NAME"] = trigger.github.name
        facts["REPO_FULL_NAME"] = f"{trigger.github.owner}/{trigger.github.name}"
    elif trigger.trigger_template is not None:
        facts["REPO_NAME"] = trigger.trigger_template.repo_name
    return {name: value for name, value in facts.items() if value}


_SHORT = 7
_WHOLE = 40


def event_run(
    trigger: BuildTrigger, event: Event, repository: TriggerRepository | None = None
) -> TriggeredBuild:
    """Return the build of an event of any kind.

    Args:
        trigger: the firing trigger.
        event: the event, with a repository bound to a forge.
        repository: the trigger's repository. If the server's settings have its URL, it is fetched
            from there.

    Raises:
        UsageError: the commit or the repository is unknown.
    """
    match event:
        case PushEvent():
            return push_run(trigger, event, repository)
        case PullRequestEvent():
            return pull_request_run(trigger, event, repository)
        case MessageEvent():
            return webhook_run(trigger, event.body, repository)


def payload_roots(event: Event) -> dict[str, Any]:
    """Return the event's payload by the root names of bindings.

    Source: semantics 4.9. ``body`` of repository events is an extension: the filter has it, too.
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
    """Return the build of a push: the new commit of the ref.

    Args:
        trigger: the firing trigger.
        event: a push, not a deletion.
        repository: see `event_run`.

    Raises:
        UsageError: the event has no commit, the repository's URL is unknown, or the config is not
            of the pushed commit.
    """
    if event.is_deletion:
        raise UsageError(f"{event.ref} was deleted: there is nothing to build")
    check_config_source(trigger, repository or trigger_repository(trigger), event.ref)
    source = _source(trigger, event.repository, event.after, repository)
    made = assembled(trigger, source, _push_facts(trigger, event), {}, payload_roots(event))
    return of_ref(made, event.ref)


def pull_request_run(
    trigger: BuildTrigger, event: PullRequestEvent, repository: TriggerRepository | None
) -> TriggeredBuild:
    """Return the build of a pull request: its head commit, from its head repository.

    A fork's build is held for an approval, and gets neither secrets nor the socket.

    Args:
        trigger: the firing trigger.
        event: the event, with its head commit.
        repository: see `event_run`.

    Raises:
        UsageError: the event has no commit, the address of the repository is unknown, or the
            config is not of the head commit.
    """
    if not event.head_commit:
        raise UsageError(
            f"the head commit of {request_name(event.repository.forge, event.number)} is unknown",
            hint="give the server a token for the forge's API",
        )
    check_config_source(trigger, repository or trigger_repository(trigger), "")
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
    """Return the failing build of an event for which `event_run` raises; see `unsourced_run`."""
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
            # Values with the form of user variables are templates, and a fork names its branches.
            "_HEAD_BRANCH": quoted(event.head_branch),
            "_BASE_BRANCH": quoted(event.base_branch),
            "_HEAD_REPO_URL": quoted(_page(event.head_clone_url or event.repository.clone_url)),
            "_PR_NUMBER": str(event.number),
        }
    )


def _known(facts: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in facts.items() if value}


def _commit_facts(commit: str) -> dict[str, str]:
    """Return facts of a full commit; the fetch resolves other revisions."""
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
    trigger: BuildTrigger, repository: Repository, commit: str, wanted: TriggerRepository | None
) -> Source:
    """Return the source of the commit, by the server's settings or else by the event's URL.

    Raises:
        UsageError: the URL is unknown.
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
    if not repository.clone_url:
        raise UsageError(
            f"the address of {repository.full_name} is unknown",
            hint="map its name to its Git URL: [git] repositories of the settings",
        )
    return _git(repository.clone_url, commit, folder)


def _git(url: str, commit: str, folder: str) -> Source:
    return Source(git_source=GitSource(url=url, revision=commit, dir=folder))


def _page(clone_url: str) -> str:
    """Return the address of the repository's web page.

    Source: ``_HEAD_REPO_URL`` is https://github.com/OWNER/NAME, without ``.git``.
    """
    return clone_url.removesuffix(".git")
