"""Which repository a trigger listens to, whatever name it goes by. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from buildrunner.triggers.events import Rule

if TYPE_CHECKING:
    from collections.abc import Mapping

    from buildrunner.spec.trigger import (
        BitbucketServerTriggerConfig,
        BuildTrigger,
        GitHubEventsConfig,
        GitLabEventsConfig,
        RepositoryEventConfig,
    )
    from buildrunner.triggers.events import Repository


_PUBLIC = frozenset({"github.com", "gitlab.com", "bitbucket.org"})


def listens_to(
    trigger: BuildTrigger, repository: Repository, repositories: Mapping[str, str]
) -> Rule:
    """Whether the trigger listens to events of that repository.

    Args:
        trigger: which names its repository in one of Cloud Build's ways.
        repository: where the event happened.
        repositories: what names of connected repositories stand for: name -> URL.
    """
    wanted, forge = wanted_repository(trigger)
    if not wanted:
        text = "the trigger does not listen to a repository"
        return Rule(name="repository", passed=False, text=text)
    found = f"{repository.full_name} ({repository.forge})"
    if forge and repository.forge not in (forge, "git"):
        text = f"the trigger is for {wanted} on {forge}, the event is of {found}"
        return Rule(name="repository", passed=False, text=text)
    if _normalized(_meaning(wanted, repositories)) & names_of(repository):
        return Rule(name="repository", passed=True, text=f"the trigger is for {wanted}")
    text = f"the trigger is for {wanted}, the event is of {found}"
    return Rule(name="repository", passed=False, text=text)


def wanted_repository(trigger: BuildTrigger) -> tuple[str, str]:
    """Name of the trigger's repository, and the forge it must be on (empty: any)."""
    if trigger.github is not None:
        # GitHub's own kind of trigger is what people point at any forge: Gitea speaks the same.
        return f"{trigger.github.owner}/{trigger.github.name}", ""
    if trigger.repository_event_config is not None:
        return trigger.repository_event_config.repository, ""
    if trigger.gitlab_enterprise_events_config is not None:
        return trigger.gitlab_enterprise_events_config.project_namespace, "gitlab"
    if trigger.bitbucket_server_trigger_config is not None:
        config = trigger.bitbucket_server_trigger_config
        return f"{config.project_key}/{config.repo_slug}", ""
    if trigger.trigger_template is not None:
        return trigger.trigger_template.repo_name, ""
    return "", ""


def event_config(
    trigger: BuildTrigger,
) -> (
    GitHubEventsConfig
    | RepositoryEventConfig
    | GitLabEventsConfig
    | BitbucketServerTriggerConfig
    | None
):
    """What a trigger says of the events that fire it; None for other kinds of triggers."""
    return (
        trigger.github
        or trigger.repository_event_config
        or trigger.gitlab_enterprise_events_config
        or trigger.bitbucket_server_trigger_config
    )


def names_of(repository: Repository) -> set[str]:
    """Every name and address of a repository, in the form that `listens_to` compares."""
    names: set[str] = set()
    for address in (repository.full_name, repository.clone_url, *repository.urls):
        names |= _normalized(address)
    # A mirrored repository of Cloud Source Repositories: github_acme_app.
    names.add(f"{repository.forge}_{repository.full_name.replace('/', '_')}".casefold())
    return names


def repository_key(address: str) -> str:
    """One name for a repository whatever the transport of its address; empty for no address."""
    return next(iter(_normalized(address)), "")


def address_of_trigger(trigger: BuildTrigger, repositories: Mapping[str, str]) -> str:
    """Where Git finds the repository that a trigger listens to; empty where nobody says.

    Args:
        trigger: which names its repository in one of Cloud Build's ways.
        repositories: what names of connected repositories stand for: name -> URL.
    """
    wanted, _ = wanted_repository(trigger)
    if not wanted:
        return ""
    meaning = _meaning(wanted, repositories)
    if "://" in meaning or meaning.startswith("/") or ("@" in meaning and ":" in meaning):
        return meaning
    return f"https://github.com/{wanted}.git" if trigger.github is not None else ""


def forge_address(repository: Repository) -> str:
    """Where a self-hosted forge is, by its repositories' addresses; empty for the public ones."""
    end = f"/{repository.full_name}".casefold()
    for address in (repository.clone_url, *repository.urls):
        url = address.rstrip("/").removesuffix(".git")
        if not url.startswith(("https://", "http://")) or not url.casefold().endswith(end):
            continue
        base = url[: -len(end)].removesuffix("/scm")  # Bitbucket Server clones below /scm
        host = base.partition("://")[2].rpartition("@")[2]
        return "" if host in _PUBLIC else base.replace(base.partition("://")[2], host, 1)
    return ""


def _meaning(name: str, repositories: Mapping[str, str]) -> str:
    """What a name stands for: as it is, or its last part for a full resource name."""
    return repositories.get(name) or repositories.get(name.rpartition("/repositories/")[2]) or name


def _normalized(address: str) -> set[str]:
    """Comparable forms: without scheme, login, port, ``.git`` and case."""
    text = address.strip().casefold().rstrip("/").removesuffix(".git")
    if not text:
        return set()
    if "://" in text:
        _, _, text = text.partition("://")
        text = text.rpartition("@")[2] if "@" in text.partition("/")[0] else text
        host, slash, path = text.partition("/")
        return {f"{host.partition(':')[0]}{slash}{path}"}
    if "@" in text.partition(":")[0] and ":" in text:  # git@host:owner/name
        host, _, path = text.partition(":")
        return {f"{host.rpartition('@')[2]}/{path}"}
    return {text.rpartition("/repositories/")[2]}
