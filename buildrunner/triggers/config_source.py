"""Checks that the config of a trigger is of the commit that it builds. Pure.

Cloud Build reads the file of ``gitFileSource`` from the repository and revision that it names. Here
the file is read from the build's source, so a trigger that names others is refused.
"""

from __future__ import annotations

from buildrunner.errors import UsageError
from buildrunner.spec.model.git_address import without_password
from buildrunner.spec.model.trigger import BuildTrigger, GitFileSource, GitRepoSource
from buildrunner.triggers.forge_host import is_url, repository_key
from buildrunner.triggers.repository import Revision, TriggerRepository, source_of


def check_config_source(
    trigger: BuildTrigger, repository: TriggerRepository | None, ref: str
) -> None:
    """Refuse a config of another repository or revision than the one that is built.

    Args:
        trigger: the trigger, as `repository.located` returns it.
        repository: the trigger's repository; None: that of ``sourceToBuild``.
        ref: the full ref or the commit that is built; empty for a pull request.

    Raises:
        UsageError: ``gitFileSource`` names another repository or revision.
    """
    file = trigger.git_file_source
    if file is None:
        return
    named = _name(file)
    if named and named not in _source_names(trigger, repository):
        raise UsageError(
            f"trigger {trigger.name} takes its config from another repository than its source:"
            f" {without_password(file.repository or file.uri)}",
            hint="remove uri and repository from gitFileSource, and keep the config in the source",
        )
    short = ref.removeprefix("refs/heads/").removeprefix("refs/tags/")
    if file.revision and file.revision not in (ref, short):
        raise UsageError(
            f"trigger {trigger.name} takes its config from {file.revision}, and builds"
            f" {ref or 'other revisions'}",
            hint="remove revision from gitFileSource: the config is that of the built commit",
        )


def check_usual_config_source(trigger: BuildTrigger, repository: TriggerRepository | None) -> None:
    """Refuse a trigger whose usual builds `check_config_source` refuses.

    A trigger whose repository has a problem builds nothing, and is not refused.

    Raises:
        UsageError: see `check_config_source`.
    """
    if repository is not None and repository.problem:
        return
    try:
        ref = source_of(trigger, Revision(), repository)[1].ref
    except UsageError:  # it matches more than one revision, or pull requests
        ref = ""
    check_config_source(trigger, repository, ref)


def _source_names(trigger: BuildTrigger, repository: TriggerRepository | None) -> set[str]:
    if repository is None:
        return {_name(trigger.source_to_build)} if trigger.source_to_build else set()
    connected = trigger.repository_event_config
    names = {repository.key, repository_key(repository.url)}
    return names | ({connected.repository} if connected else set())


def _name(place: GitFileSource | GitRepoSource) -> str:
    """Return a text that names the repository: its resource, its key, or its name on a forge."""
    named = place.repository or place.uri
    return repository_key(named) if is_url(named) else named
