"""The build that a trigger makes: what to build, of which revision, with which values. Pure.

Source: Cloud Build's "Create and manage triggers", and the API's text of ``RunBuildTrigger``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import msgspec
from msgspec.structs import replace

from buildrunner.errors import ConfigError, UsageError
from buildrunner.spec.bindings import bind
from buildrunner.spec.encode import encode_message
from buildrunner.spec.expression import BadExpression
from buildrunner.spec.model import Build
from buildrunner.spec.model_source import ConnectedRepository, GitSource, RepoSource, Source
from buildrunner.spec.problem import Problem
from buildrunner.spec.substitutions import Cycle, expand
from buildrunner.spec.trigger import RepoType
from buildrunner.spec.variables import is_user_variable, merged

if TYPE_CHECKING:
    from collections.abc import Mapping

    from buildrunner.spec.trigger import BuildTrigger, GitRepoSource

# The config is in the fetched source: the path, or AUTODETECT for the usual names.
CONFIG_LABEL: Final = "config_file"
AUTODETECT: Final = "?"
_HEADS, _TAGS = "refs/heads/", "refs/tags/"
_HOSTS: Final = {RepoType.GITHUB: "github.com", RepoType.GITLAB: "gitlab.com"}


class Revision(msgspec.Struct, frozen=True, kw_only=True):
    """What of a repository to build; nothing of it is a pattern.

    Attributes:
        branch, tag, commit: at most one is set.
        dir: folder of the source that the work starts in.
    """

    branch: str = ""
    tag: str = ""
    commit: str = ""
    dir: str = ""

    @property
    def ref(self) -> str:
        """What git fetches."""
        if self.branch:
            return f"{_HEADS}{self.branch}"
        return f"{_TAGS}{self.tag}" if self.tag else self.commit


class TriggeredBuild(msgspec.Struct, frozen=True, kw_only=True):
    """What a trigger makes of an event.

    Attributes:
        request: the Build to ask for, as JSON; without steps when they are in the source.
        labels: `CONFIG_LABEL` when they are.
        warnings: sentences about what was not found.
        hold: it must be approved, whatever the trigger says: its source is a fork's.
        untrusted: it may have neither secrets nor the engine's socket, also once it was approved.
    """

    request: dict[str, Any]
    labels: dict[str, str]
    warnings: tuple[str, ...] = ()
    hold: bool = False
    untrusted: bool = False


def manual_run(trigger: BuildTrigger, source: RepoSource | None) -> TriggeredBuild:
    """The build of a manual run.

    Neither ``disabled`` nor the event's filters count for it.

    Args:
        trigger: what is run.
        source: revision and values that the caller asked for; None for none.

    Raises:
        UsageError: nobody says which revision to build.
        ConfigError: a revision is a pattern, or the folder is absolute.
    """
    wanted = source or RepoSource()
    revision = _revision_of(wanted)
    return _build(trigger, revision, wanted.substitutions, {})


def webhook_run(trigger: BuildTrigger, body: Any) -> TriggeredBuild:
    """The build that a webhook's payload makes.

    Args:
        trigger: whose webhook was called.
        body: the payload as parsed JSON.

    Raises:
        UsageError: nobody says which revision to build.
    """
    return _build(trigger, Revision(), {}, {"body": body})


def filter_values(trigger: BuildTrigger, event: Mapping[str, Any]) -> dict[str, str]:
    """The trigger's substitutions as its ``filter`` sees them: bindings filled in, plain text.

    Args:
        trigger: whose.
        event: parsed JSON by root name (`spec.bindings.ROOTS`).
    """
    bound = bind(trigger.substitutions, event).values
    try:
        return expand(bound, {}, is_template=is_user_variable)
    except (Cycle, BadExpression):
        return dict(trigger.substitutions)


def _build(
    trigger: BuildTrigger,
    revision: Revision,
    given: Mapping[str, str],
    event: Mapping[str, Any],
) -> TriggeredBuild:
    source, revision = _source(trigger, revision)
    return assembled(trigger, source, _facts(trigger, revision), given, event)


def assembled(
    trigger: BuildTrigger,
    source: Source | None,
    facts: Mapping[str, str],
    given: Mapping[str, str],
    event: Mapping[str, Any],
) -> TriggeredBuild:
    """The trigger's build on a source.

    Args:
        trigger: which has the template.
        source: what is built; None: what the template says.
        facts: built-in variables that are known; the template's and the trigger's values win.
        given: values of this run; they win over all others.
        event: parsed JSON by root name (`spec.bindings.ROOTS`), for bindings.
    """
    template = trigger.build or Build()
    bound = bind(trigger.substitutions, event)
    values = merged(facts, template.substitutions, bound.values, dict(given))
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
        request=encode_message(build), labels=_config_label(trigger), warnings=warnings
    )


def _config_label(trigger: BuildTrigger) -> dict[str, str]:
    if trigger.build is not None:
        return {}
    path = trigger.filename or ""
    if trigger.git_file_source is not None:
        path = trigger.git_file_source.path
    return {CONFIG_LABEL: path or AUTODETECT}


def config_path(trigger: BuildTrigger) -> str:
    """``$TRIGGER_BUILD_CONFIG_PATH``: empty for an inline build."""
    label = _config_label(trigger).get(CONFIG_LABEL, "")
    return "" if label == AUTODETECT else label


def _facts(trigger: BuildTrigger, revision: Revision) -> dict[str, str]:
    """Built-ins that the trigger knows. Those of the commit are known once it was fetched."""
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


def _revision_of(source: RepoSource) -> Revision:
    for field, value in (("branchName", source.branch_name), ("tagName", source.tag_name)):
        if value and any(char in value for char in "*?[]()|\\^$+ "):
            message = f"{value!r} must be a name here, not a regular expression"
            raise ConfigError([Problem(message, path=f"source.{field}", rule="revision")])
    if source.dir.startswith("/"):
        raise ConfigError([Problem("must be relative", path="source.dir", rule="source-dir")])
    return Revision(
        branch=source.branch_name or "",
        tag=source.tag_name or "",
        commit=source.commit_sha or "",
        dir=source.dir,
    )


def _source(trigger: BuildTrigger, revision: Revision) -> tuple[Source | None, Revision]:
    """Where the files come from, and the revision that counts.

    Raises:
        UsageError: there is a repository, and nobody says which revision of it.
    """
    repository = _event_repository(trigger)
    if repository is None and trigger.source_to_build is None:
        if trigger.build is None:
            raise UsageError(
                f"trigger {trigger.name} names no repository to take its config from",
                hint="give it sourceToBuild, or an inline build",
            )
        return None, revision
    if repository is None:
        assert trigger.source_to_build is not None  # noqa: S101  (tested above)
        if not revision.ref:
            revision = replace(_revision_of_ref(trigger.source_to_build.ref), dir=revision.dir)
        return _configured_source(trigger.source_to_build, revision), revision
    if not revision.ref:
        revision = replace(_literal_branch(trigger), dir=revision.dir)
    return repository(revision), revision


def _event_repository(trigger: BuildTrigger) -> Any:
    """How to make a source of the repository that the trigger listens to; None without one."""
    if trigger.github is not None:
        url = f"https://github.com/{trigger.github.owner}/{trigger.github.name}.git"
        return lambda revision: _git(url, revision)
    if trigger.repository_event_config is not None:
        name = trigger.repository_event_config.repository
        return lambda revision: _connected(name, revision)
    template = trigger.trigger_template
    if template is not None:
        return lambda revision: Source(
            repo_source=RepoSource(
                project_id=template.project_id,
                repo_name=template.repo_name,
                branch_name=revision.branch or None,
                tag_name=revision.tag or None,
                commit_sha=revision.commit or None,
                dir=revision.dir or template.dir,
            )
        )
    return None


def _configured_source(configured: GitRepoSource, revision: Revision) -> Source:
    if configured.repository:
        return _connected(configured.repository, revision)
    uri = configured.uri
    if "://" not in uri and configured.repo_type in _HOSTS:
        uri = f"https://{_HOSTS[configured.repo_type]}/{uri}"
    return _git(uri, revision)


def _git(url: str, revision: Revision) -> Source:
    return Source(git_source=GitSource(url=url, revision=revision.ref, dir=revision.dir))


def _connected(name: str, revision: Revision) -> Source:
    connected = ConnectedRepository(repository=name, revision=revision.ref, dir=revision.dir)
    return Source(connected_repository=connected)


def _revision_of_ref(ref: str) -> Revision:
    if ref.startswith(_HEADS):
        return Revision(branch=ref.removeprefix(_HEADS))
    if ref.startswith(_TAGS):
        return Revision(tag=ref.removeprefix(_TAGS))
    return Revision(commit=ref)


def _literal_branch(trigger: BuildTrigger) -> Revision:
    """The revision that the trigger's own filter names, when it is no real pattern.

    Raises:
        UsageError: it is one.
    """
    branch, tag = _filters(trigger)
    for pattern, kind in ((branch, "branch"), (tag, "tag")):
        name = (pattern or "").removeprefix("^").removesuffix("$")
        if name and not any(char in name for char in "*?[]()|\\^$+."):
            return Revision(branch=name) if kind == "branch" else Revision(tag=name)
    raise UsageError(
        f"trigger {trigger.name} matches more than one revision: say which one to build",
        hint="source.branchName, source.tagName or source.commitSha of the request",
    )


def _filters(trigger: BuildTrigger) -> tuple[str | None, str | None]:
    template = trigger.trigger_template
    if template is not None:
        return template.branch_name, template.tag_name
    config = trigger.github or trigger.repository_event_config
    if config is not None and config.push is not None and not config.push.invert_regex:
        return config.push.branch, config.push.tag
    return None, None
