"""The source that a trigger builds: repository and revision. Pure.

Source: Cloud Build's "Create and manage triggers", and the API's text of ``RunBuildTrigger``.
"""

from __future__ import annotations

from typing import Final

import msgspec
from msgspec.structs import replace

from buildrunner.errors import ConfigError, UsageError
from buildrunner.problem import Problem
from buildrunner.spec.model.source import ConnectedRepository, GitSource, RepoSource, Source
from buildrunner.spec.model.trigger import BuildTrigger, GitRepoSource, RepoType
from buildrunner.triggers.forge_host import named_forge
from buildrunner.triggers.repository import TriggerRepository, event_config

_HEADS, _TAGS = "refs/heads/", "refs/tags/"
_KINDS: Final = {RepoType.GITHUB: "github", RepoType.GITLAB: "gitlab"}


class Revision(msgspec.Struct, frozen=True, kw_only=True):
    """The revision of a repository to build; no part of it is a pattern.

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
        """The ref that git fetches."""
        if self.branch:
            return f"{_HEADS}{self.branch}"
        return f"{_TAGS}{self.tag}" if self.tag else self.commit


def revision_of(source: RepoSource) -> Revision:
    """The revision that a caller asked for.

    Raises:
        ConfigError: it is a pattern, or the folder is absolute.
    """
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


def source_of(
    trigger: BuildTrigger, revision: Revision, repository: TriggerRepository | None
) -> tuple[Source | None, Revision]:
    """Return the origin of the files, and the revision that counts.

    Args:
        trigger: which is run.
        revision: what the caller asks for.
        repository: the one that the trigger listens to; None for a trigger that listens to none.

    Raises:
        UsageError: the repository is not known, or there is one and nothing says which revision of
            it to build.
    """
    if repository is not None:
        if repository.problem:
            raise UsageError(repository.problem, hint=repository.hint)
        if not revision.ref:
            revision = replace(_literal_branch(trigger), dir=revision.dir)
        return _repository_source(trigger, repository, revision), revision
    if trigger.source_to_build is None:
        if trigger.build is None:
            raise UsageError(
                f"trigger {trigger.name} names no repository to take its config from",
                hint="give it sourceToBuild, or an inline build",
            )
        return None, revision
    if not revision.ref:
        revision = replace(_revision_of_ref(trigger.source_to_build.ref), dir=revision.dir)
    return _configured_source(trigger.source_to_build, revision), revision


def _repository_source(
    trigger: BuildTrigger, repository: TriggerRepository, revision: Revision
) -> Source:
    template, connected = trigger.trigger_template, trigger.repository_event_config
    if template is not None and (repository.connected or not repository.url):
        return Source(
            repo_source=RepoSource(
                project_id=template.project_id,
                repo_name=template.repo_name,
                branch_name=revision.branch or None,
                tag_name=revision.tag or None,
                commit_sha=revision.commit or None,
                dir=revision.dir or template.dir,
            )
        )
    if connected is not None and repository.connected:
        return _connected(connected.repository, revision)
    if not repository.url:
        raise UsageError(
            f"nothing says where {repository.shown} is",
            hint="`buildrunner triggers install-hook` reports it to the server",
        )
    folder = template.dir if template is not None else ""
    return _git(repository.url, replace(revision, dir=revision.dir or folder))


def _configured_source(configured: GitRepoSource, revision: Revision) -> Source:
    if configured.repository:
        return _connected(configured.repository, revision)
    uri = configured.uri
    if "://" not in uri and configured.repo_type in _KINDS:
        uri = f"{named_forge(_KINDS[configured.repo_type]).url}/{uri}"
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
        name = literal_name(pattern or "")
        if name:
            return Revision(branch=name) if kind == "branch" else Revision(tag=name)
    raise UsageError(
        f"trigger {trigger.name} matches more than one revision: say which one to build",
        hint="with --branch, --tag or --sha, in the request's source, or, for the clock, by a"
        " branch filter that is a name (^main$) or the trigger's sourceToBuild",
    )


def literal_name(pattern: str) -> str:
    """The one name that a filter of branches or tags means; empty for a real pattern."""
    name = pattern.removeprefix("^").removesuffix("$")
    return "" if any(char in name for char in "*?[]()|\\^$+.") else name


def _filters(trigger: BuildTrigger) -> tuple[str | None, str | None]:
    template = trigger.trigger_template
    if template is not None:
        return template.branch_name, template.tag_name
    config = event_config(trigger)
    if config is not None and config.push is not None and not config.push.invert_regex:
        return config.push.branch, config.push.tag
    return None, None
