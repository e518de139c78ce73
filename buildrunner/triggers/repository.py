"""The repository of a trigger: its forge, its URL, its revision. Pure.

Cloud Build's fields name a repository, and the hosted service knows its connections. Here the
trigger's own setting ``forge`` names the forge; without it a trigger is for the public one.

Source: Cloud Build's "Create and manage triggers", and the API's text of ``RunBuildTrigger``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

import msgspec
from msgspec.structs import replace

from buildrunner.errors import ConfigError, UsageError
from buildrunner.problem import Problem
from buildrunner.spec.model.git_address import HINT, MESSAGE, has_password
from buildrunner.spec.model.source import (
    ConnectedRepository,
    GitSource,
    RepoSource,
    Source,
    may_be_commit,
)
from buildrunner.spec.model.trigger import (
    BitbucketServerTriggerConfig,
    BuildTrigger,
    GitFileSource,
    GitHubEventsConfig,
    GitLabEventsConfig,
    GitRepoSource,
    RepositoryEventConfig,
    RepoType,
)
from buildrunner.triggers.events import Event, MessageEvent, Repository, Rule
from buildrunner.triggers.forge_host import (
    KINDS,
    ForgeHost,
    is_full_name,
    is_url,
    named_forge,
    public_forge,
    repository_key,
)
from buildrunner.triggers.hook_binding import BARE, HookBinding
from buildrunner.triggers.settings import ForgeSetting

_MIRRORS: Final = ("github", "bitbucket")


class RepositoryNames(msgspec.Struct, frozen=True, kw_only=True):
    """The URLs behind names of repositories. Each project has names of its own.

    Attributes:
        connected: connected repositories in the server's settings: project -> name -> URL. The
            entry of the empty name is for all other projects.
        hooks: bindings of hooks, by name.
    """

    connected: Mapping[str, Mapping[str, str]] = {}
    hooks: Mapping[str, HookBinding] = {}

    def connected_of(self, project: str) -> Mapping[str, str]:
        """Return the connected repositories of a project: name -> URL."""
        return self.connected.get(project) or self.connected.get("", {})

    def bare(self, project: str, name: str) -> str:
        """Return the URL of a bare repository; empty unless its hook may fire the project."""
        binding = self.hooks.get(f"{BARE}/{name}")
        return binding.repository if binding and binding.allows_project(project) else ""

    def at(self, key: str) -> set[str]:
        """Return the names that mean the repository with a `repository_key` in any project."""
        named = {pair for one in self.connected.values() for pair in one.items()}
        named |= {
            (hook.partition("/")[2], binding.repository)
            for hook, binding in self.hooks.items()
            if binding.repository
        }
        return {name for name, url in named if repository_key(url) == key}


_NO_NAMES: Final = RepositoryNames()


class TriggerRepository(msgspec.Struct, frozen=True, kw_only=True):
    """The repository of a trigger.

    Attributes:
        name: full name on its forge, or the name of a bare repository.
        host: its forge; None if unknown.
        url: its URL for Git; empty if unknown.
        bare: name of the bare repository whose hook fires the trigger, as in ``/hooks/git/NAME``;
            empty for none.
        connected: the server's settings have its URL.
        problem: why no event can fire the trigger and nothing can be fetched; empty for none.
        hint: advice on the problem.
    """

    name: str
    host: ForgeHost | None = None
    url: str = ""
    bare: str = ""
    connected: bool = False
    problem: str = ""
    hint: str = ""

    @property
    def key(self) -> str:
        """Return the repository's identity: see `repository_key`; empty if unknown."""
        return repository_key(self.host.clone_url(self.name) if self.host else self.url)

    @property
    def history(self) -> str:
        """Return the key of the history of the refs.

        The first delivery of a bare repository's hook sets its URL, so that its history is apart
        from the history of a forge's repository at that URL.
        """
        key = repository_key(self.url)
        return bare_history(self.bare, self.url) if self.reported else key

    @property
    def histories(self) -> tuple[str, ...]:
        """Return the keys of what the server knows of the repository: see `history`."""
        return (self.history, pull_history(self.key)) if self.url else ()

    @property
    def reported(self) -> bool:
        """Return whether the URL comes from the hook of a bare repository."""
        return bool(self.bare) and not self.connected

    @property
    def shown(self) -> str:
        """Return the repository as text for users: ``acme/app on https://github.com (github)``."""
        if self.host is not None:
            return f"{self.name} on {self.host.url} ({self.host.kind})"
        if self.connected:
            return f"the connected repository {self.name}"
        if self.bare:
            return f"the bare repository {self.bare}"
        return self.url or self.name


def bare_history(name: str, url: str) -> str:
    """Return the key of the history of a bare repository with a hook."""
    return f"{BARE}/{name} {repository_key(url)}"


def pull_history(key: str) -> str:
    """Return the key of the heads of a repository's pull requests, by the repository's key."""
    return f"{key} pull requests"


def trigger_repository(
    trigger: BuildTrigger,
    forge: ForgeSetting | None = None,
    *,
    project: str = "",
    names: RepositoryNames = _NO_NAMES,
) -> TriggerRepository | None:
    """Return the repository of a trigger; None for a trigger without one.

    A trigger without one that builds a repository of an unknown forge (``sourceToBuild``) has that
    repository, with its problem.

    Args:
        trigger: the trigger, as `located` returns it.
        forge: the trigger's setting; None for none.
        project: the trigger's project.
        names: the URLs behind names.
    """
    found = _named(trigger, _wanted_host(forge), names.connected_of(project))
    if found is None:
        found = _lost_source(trigger, forge)
    if found is None:
        return None
    if forge is not None and forge.unconfirmed:
        return msgspec.structs.replace(
            found,
            host=None,
            url="",
            bare="",
            problem=f"an earlier version fired it for {found.name} on {forge.host or forge.kind}"
            " without asking whose that is",
            hint="if that is right: " + _command(trigger, forge.kind, forge.host),
        )
    if found.bare and not found.url:
        return msgspec.structs.replace(found, url=names.bare(project, found.bare))
    return found


def located(trigger: BuildTrigger, forge: ForgeSetting | None) -> BuildTrigger:
    """Return the trigger with URLs for the names of repositories that its forge has.

    Args:
        trigger: the trigger, whose ``sourceToBuild`` and ``gitFileSource`` may have such names.
        forge: the trigger's setting; None for none.
    """
    host = _wanted_host(forge)
    source, file = trigger.source_to_build, trigger.git_file_source
    return replace(
        trigger,
        source_to_build=source and replace(source, uri=_url_on(host, source)),
        git_file_source=file and replace(file, uri=_url_on(host, file)),
    )


def _url_on(host: ForgeHost | None, place: GitRepoSource | GitFileSource) -> str:
    name = place.uri.removesuffix(".git")
    is_name = not is_url(name) and is_full_name(name)
    return host.clone_url(name) if host is not None and is_name else place.uri


def source_keys(project: str, trigger: Mapping[str, Any]) -> set[str]:
    """Return the keys of a trigger's sources; empty for a manual or scheduled trigger.

    An event that can fire the trigger has one of them among its `event_keys`. The keys depend on
    the trigger alone, neither on its settings nor on the server's, so that a database can index
    them.

    Args:
        project: the trigger's project.
        trigger: the BuildTrigger as JSON.
    """
    keys = set()
    if "webhookConfig" in trigger:
        keys.add(f"webhook/{project}/{trigger.get('name', '')}")
    if "pubsubConfig" in trigger:
        keys.add(_topic_key(trigger["pubsubConfig"].get("topic", "")))
    return keys | {repository_key(name) for name in _names(trigger)}


def _names(trigger: Mapping[str, Any]) -> Iterator[str]:
    """Return the names of a trigger's repository."""
    if github := trigger.get("github"):
        yield f"{github.get('owner', '')}/{github.get('name', '')}"
    if gitlab := trigger.get("gitlabEnterpriseEventsConfig"):
        yield gitlab.get("projectNamespace", "")
    if server := trigger.get("bitbucketServerTriggerConfig"):
        yield f"{server.get('projectKey', '')}/{server.get('repoSlug', '')}"
    if connected := trigger.get("repositoryEventConfig"):
        yield connected.get("repository", "").rpartition("/repositories/")[2]
    if template := trigger.get("triggerTemplate"):
        yield template.get("repoName", "")


def event_keys(event: Event, hook: str, names: RepositoryNames) -> set[str]:
    """Return the `source_keys` of the triggers that the source of an event can fire.

    Args:
        event: the event.
        hook: the hook of its delivery.
        names: the URLs behind names.
    """
    if isinstance(event, MessageEvent):
        return {hook if event.kind == "webhook" else _topic_key(event.topic)}
    repository = event.repository
    key = repository_key(repository.clone_url)
    mirrored = repository.full_name.replace("/", "_", 1)
    wanted = {repository.full_name, *(f"{kind}_{mirrored}" for kind in _MIRRORS)}
    wanted |= {name.rpartition("/repositories/")[2] for name in names.at(key)}
    return {key, *map(repository_key, wanted)}


def _topic_key(topic: str) -> str:
    return f"pubsub/{topic}"


def listens_to(wanted: TriggerRepository | None, repository: Repository) -> Rule:
    """Return whether a trigger accepts the events of a repository."""
    if wanted is None:
        text = "the trigger does not listen to a repository"
        return Rule(name="repository", passed=False, text=text)
    if wanted.problem:
        text = f"{wanted.problem}; {wanted.hint}" if wanted.hint else wanted.problem
        return Rule(name="repository", passed=False, text=text)
    if _is_same(wanted, repository):
        return Rule(name="repository", passed=True, text=f"the trigger is for {wanted.shown}")
    text = f"the trigger is for {wanted.shown}, the event is of {shown_repository(repository)}"
    return Rule(name="repository", passed=False, text=text)


def shown_repository(repository: Repository) -> str:
    """Return an event's repository as text for users."""
    if repository.bare:
        return f"the bare repository {repository.full_name}"
    where = f" on {repository.host.url}" if repository.host else ""
    return f"{repository.full_name}{where} ({repository.forge})"


def event_config(
    trigger: BuildTrigger,
) -> (
    GitHubEventsConfig
    | RepositoryEventConfig
    | GitLabEventsConfig
    | BitbucketServerTriggerConfig
    | None
):
    """Return a trigger's config of its events; None for triggers without events."""
    return (
        trigger.github
        or trigger.repository_event_config
        or trigger.gitlab_enterprise_events_config
        or trigger.bitbucket_server_trigger_config
    )


def _is_same(wanted: TriggerRepository, repository: Repository) -> bool:
    key = repository_key(repository.clone_url)
    if repository.bare:
        return wanted.bare == repository.full_name and repository_key(wanted.url) == key
    if not wanted.key or wanted.key != key:
        return False
    kinds = (wanted.host.kind if wanted.host else "git", repository.forge)
    return "git" in kinds or kinds[0] == kinds[1]


def _wanted_host(forge: ForgeSetting | None) -> ForgeHost | None:
    """Return the forge of the setting; None without one, and if this version can't read it."""
    if forge is None or forge.unconfirmed:
        return None
    try:
        return named_forge(forge.kind, forge.host)
    except UsageError:
        return None


def _named(
    trigger: BuildTrigger, host: ForgeHost | None, repositories: Mapping[str, str]
) -> TriggerRepository | None:
    if trigger.github is not None:
        return _of_github(trigger, trigger.github, host)
    if trigger.gitlab_enterprise_events_config is not None:
        return _of_gitlab(trigger, trigger.gitlab_enterprise_events_config, host)
    if trigger.bitbucket_server_trigger_config is not None:
        return _of_bitbucket_server(trigger, trigger.bitbucket_server_trigger_config, host)
    if trigger.repository_event_config is not None:
        named = trigger.repository_event_config.repository
        short = named.rpartition("/repositories/")[2]
        mapped = repositories.get(named) or repositories.get(short, "")
        return _connected(trigger, short, mapped, host)
    template = trigger.trigger_template
    if template is None:
        return None
    mapped = repositories.get(template.repo_name, "")
    kind, _, rest = template.repo_name.partition("_")
    if not mapped and kind in _MIRRORS and "_" in rest:  # Cloud Source Repositories' mirrors
        return _on_forge(rest.replace("_", "/", 1), named_forge(kind))
    return _connected(trigger, template.repo_name, mapped, host)


def _lost_source(trigger: BuildTrigger, forge: ForgeSetting | None) -> TriggerRepository | None:
    """Return the repository of ``sourceToBuild`` if its name is one of an unknown forge."""
    source = trigger.source_to_build
    name = source.uri if source is not None else ""
    if source is None or source.repository or is_url(name):
        return None
    config = source.github_enterprise_config or source.bitbucket_server_config
    if config:
        kind = "github" if source.github_enterprise_config else "bitbucket-server"
        return _lost(trigger, name, f"{config} exists only inside Google Cloud", kind)
    if forge is not None:
        problem = f"{name} is neither a URL nor the name of a repository of a forge that is known"
        return _lost(trigger, name, problem, forge.kind)
    return None


def _of_github(
    trigger: BuildTrigger, config: GitHubEventsConfig, host: ForgeHost | None
) -> TriggerRepository:
    name = f"{config.owner}/{config.name}"
    if host is None and config.enterprise_config_resource_name:
        problem = f"{config.enterprise_config_resource_name} exists only inside Google Cloud"
        return _lost(trigger, name, problem, "github")
    return _on_forge(name, host or named_forge("github"))


def _of_gitlab(
    trigger: BuildTrigger, config: GitLabEventsConfig, host: ForgeHost | None
) -> TriggerRepository:
    name = config.project_namespace
    if host is None and config.gitlab_config_resource:
        problem = f"{config.gitlab_config_resource} exists only inside Google Cloud"
        return _lost(trigger, name, problem, "gitlab")
    host = host or named_forge("gitlab")
    if host.kind != "gitlab":
        problem = f"gitlabEnterpriseEventsConfig is for GitLab, and {host.url} is a {host.kind}"
        return _lost(trigger, name, problem, "gitlab")
    return _on_forge(name, host)


def _of_bitbucket_server(
    trigger: BuildTrigger, config: BitbucketServerTriggerConfig, host: ForgeHost | None
) -> TriggerRepository:
    name = f"{config.project_key}/{config.repo_slug}"
    if host is None or host.kind != "bitbucket-server":
        problem = f"nothing says which Bitbucket Server has {name}"
        return _lost(trigger, name, problem, "bitbucket-server")
    return _on_forge(name, host)


def _connected(
    trigger: BuildTrigger, name: str, mapped: str, host: ForgeHost | None
) -> TriggerRepository:
    """Return a connected repository, by its name or its URL."""
    url = mapped or (name if is_url(name) else "")
    if has_password(url):  # stored by an earlier version, which accepted it
        return TriggerRepository(name="its repository", problem=MESSAGE, hint=HINT)
    host = host or (public_forge(url) if url else None)
    if url:
        full_name = host.full_name(url) if host else ""
        return TriggerRepository(
            name=full_name or name,
            host=host if full_name or ("/" in name and not is_url(name)) else None,
            url=url,
            bare="" if "/" in name else name,
            connected=bool(mapped),
        )
    if "/" not in name:
        return TriggerRepository(name=name, bare=name)
    if host is None:
        return _lost(trigger, name, f"nothing says which forge has {name}", "")
    return _on_forge(name, host)


def _on_forge(name: str, host: ForgeHost) -> TriggerRepository:
    return TriggerRepository(name=name, host=host, url=host.clone_url(name))


def _lost(trigger: BuildTrigger, name: str, problem: str, kind: str) -> TriggerRepository:
    hint = "name its forge: " + _command(trigger, kind or f"{{{','.join(KINDS)}}}", "")
    return TriggerRepository(name=name, problem=problem, hint=hint)


def _command(trigger: BuildTrigger, kind: str, host: str) -> str:
    return (
        f"`buildrunner triggers update {trigger.name} --forge {kind}"
        f" --forge-host {host or 'https://HOST'}`"
    )


_HEADS, _TAGS = "refs/heads/", "refs/tags/"
_KINDS: Final = {RepoType.GITHUB: "github", RepoType.GITLAB: "gitlab"}


class Revision(msgspec.Struct, frozen=True, kw_only=True):
    """The revision of a repository to build; no part of it is a pattern.

    Attributes:
        branch, tag, commit: at most one is set.
        dir: folder of the source in which the work starts.
    """

    branch: str = ""
    tag: str = ""
    commit: str = ""
    dir: str = ""

    @property
    def ref(self) -> str:
        """Return the full ref, or the commit, for Git to fetch."""
        if self.branch:
            return f"{_HEADS}{self.branch}"
        return f"{_TAGS}{self.tag}" if self.tag else self.commit


def revision_of(source: RepoSource) -> Revision:
    """Return the revision that a caller requests.

    Raises:
        ConfigError: the revision is a pattern, the commit is no id, or the folder is absolute.
    """
    for field, value in (("branchName", source.branch_name), ("tagName", source.tag_name)):
        if value and any(char in value for char in "*?[]()|\\^$+ "):
            message = f"{value!r} must be a name here, not a regular expression"
            raise ConfigError([Problem(message, path=f"source.{field}", rule="revision")])
    if source.commit_sha and not may_be_commit(source.commit_sha):
        message = "must be the id of a commit: 4 to 40 hexadecimal digits"
        raise ConfigError([Problem(message, path="source.commitSha", rule="revision")])
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
    """Return the source, and the effective revision.

    Args:
        trigger: the trigger.
        revision: the caller's revision.
        repository: the trigger's repository; None for a trigger without one.

    Raises:
        UsageError: the repository is unknown, no revision is given, or the trigger has neither a
            source nor an inline build.
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
        return _connected_source(connected.repository, revision)
    if not repository.url:
        raise UsageError(
            f"nothing says where {repository.shown} is",
            hint="`buildrunner triggers install-hook` reports it to the server",
        )
    folder = template.dir if template is not None else ""
    return _git(repository.url, replace(revision, dir=revision.dir or folder))


def _configured_source(configured: GitRepoSource, revision: Revision) -> Source:
    if configured.repository:
        return _connected_source(configured.repository, revision)
    uri = configured.uri
    if "://" not in uri and configured.repo_type in _KINDS:
        uri = f"{named_forge(_KINDS[configured.repo_type]).url}/{uri}"
    return _git(uri, revision)


def _git(url: str, revision: Revision) -> Source:
    return Source(git_source=GitSource(url=url, revision=revision.ref, dir=revision.dir))


def _connected_source(name: str, revision: Revision) -> Source:
    connected = ConnectedRepository(repository=name, revision=revision.ref, dir=revision.dir)
    return Source(connected_repository=connected)


def _revision_of_ref(ref: str) -> Revision:
    if ref.startswith(_HEADS):
        return Revision(branch=ref.removeprefix(_HEADS))
    if ref.startswith(_TAGS):
        return Revision(tag=ref.removeprefix(_TAGS))
    return Revision(commit=ref)


def _literal_branch(trigger: BuildTrigger) -> Revision:
    """Return the revision in the trigger's own filter, if it is no real pattern.

    Raises:
        UsageError: the filter is a pattern, or missing.
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
    """Return the only name that a filter of branches or tags matches; empty for a pattern."""
    name = pattern.removeprefix("^").removesuffix("$")
    return "" if any(char in name for char in "*?[]()|\\^$+.") else name


def _filters(trigger: BuildTrigger) -> tuple[str | None, str | None]:
    template = trigger.trigger_template
    if template is not None:
        return (None, None) if template.invert_regex else (template.branch_name, template.tag_name)
    config = event_config(trigger)
    if config is not None and config.push is not None and not config.push.invert_regex:
        return config.push.branch, config.push.tag
    return None, None
