"""The build that a trigger makes: its template or config, with which values. Pure.

Source: Cloud Build's "Create and manage triggers", and the API's text of ``RunBuildTrigger``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec
from msgspec.structs import replace

from buildrunner.spec.bindings import bind
from buildrunner.spec.encode import encode_message
from buildrunner.spec.expression import BadExpression
from buildrunner.spec.model import Build
from buildrunner.spec.model_source import RepoSource
from buildrunner.spec.substitutions import Cycle, expand
from buildrunner.spec.variables import is_user_variable, merged
from buildrunner.triggers.forge_host import ForgeHost, public_forge
from buildrunner.triggers.labels import (
    AUTODETECT,
    BUILT_REF,
    CONFIG_LABEL,
    NOTHING_TO_BUILD,
    TRIGGER_NAME,
)
from buildrunner.triggers.trigger_repository import TriggerRepository, trigger_repository
from buildrunner.triggers.trigger_source import Revision, revision_of, source_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from buildrunner.spec.model_source import Source
    from buildrunner.spec.trigger import BuildTrigger


class TriggeredBuild(msgspec.Struct, frozen=True, kw_only=True):
    """What a trigger makes of an event.

    Attributes:
        request: the Build to ask for, as JSON; without steps when they are in the source.
        labels: `CONFIG_LABEL` when they are; `TRIGGER_NAME`, `BUILT_REF`; `forge_labels` for a
            build that no event made. Only the server sets them, never the caller who asks for a
            build.
        warnings: sentences about what was not found.
        hold: it must be approved, whatever the trigger says: its source is a fork's.
        untrusted: it may have neither secrets nor the engine's socket, also once it was approved.
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
    """The build of a manual run.

    Neither ``disabled`` nor the event's filters count for it.

    Args:
        trigger: what is run.
        source: revision and values that the caller asked for; None for none.
        repository: the one that the trigger listens to; None: what its fields alone say.

    Raises:
        UsageError: nobody says which revision to build.
        ConfigError: a revision is a pattern, or the folder is absolute.
    """
    wanted = source or RepoSource()
    revision = revision_of(wanted)
    return _build(
        trigger, revision, wanted.substitutions, {}, repository or trigger_repository(trigger)
    )


def webhook_run(trigger: BuildTrigger, body: Any) -> TriggeredBuild:
    """The build that a webhook's payload makes.

    Args:
        trigger: whose webhook was called.
        body: the payload as parsed JSON.

    Raises:
        UsageError: nobody says which revision to build.
    """
    return _build(trigger, Revision(), {}, {"body": body})


def unsourced_run(trigger: BuildTrigger, facts: Mapping[str, str], body: Any) -> TriggeredBuild:
    """What is known of a build of which nobody says what to build: it can only fail.

    Args:
        trigger: which fires.
        facts: built-in variables that are known.
        body: parsed JSON by root name (`spec.bindings.ROOTS`).
    """
    made = assembled(trigger, None, facts, {}, body)
    return replace(made, labels={**made.labels, NOTHING_TO_BUILD: "yes"})


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
    repository: TriggerRepository | None = None,
) -> TriggeredBuild:
    source, revision = source_of(trigger, revision, repository)
    made = assembled(trigger, source, known_facts(trigger, revision), given, event)
    made = replace(made, labels={**made.labels, **_forge_labels(repository, source)})
    return of_ref(made, revision.ref if source is not None else "")


def of_ref(made: TriggeredBuild, ref: str) -> TriggeredBuild:
    """The build with a label that says which ref of the trigger's repository it is of.

    Args:
        made: the build.
        ref: a branch's or tag's full name; anything else says nothing.
    """
    if not ref.startswith(("refs/heads/", "refs/tags/")):
        return made
    return replace(made, labels={**made.labels, BUILT_REF: ref})


def _forge_labels(repository: TriggerRepository | None, source: Source | None) -> dict[str, str]:
    """Where the status of a build belongs that no event made."""
    if repository is not None:
        host, name = repository.host, repository.name
    else:
        url = source.git_source.url if source is not None and source.git_source else ""
        host = public_forge(url)
        name = host.full_name(url) if host else ""
    return forge_labels(host, name) if host and name else {}


def forge_labels(host: ForgeHost, full_name: str) -> dict[str, str]:
    """The labels that say which repository of which forge a build is of."""
    return {"forge": host.kind, "forge_url": host.url, "repository": full_name}


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
    own, bound = bind(template.substitutions, event), bind(trigger.substitutions, event)
    values = merged(facts, own.values, bound.values, dict(given))
    tags = tuple(dict.fromkeys((*template.tags, *trigger.tags, f"trigger-{trigger.id}")))
    build = replace(
        template,
        source=source if source is not None else template.source,
        substitutions=values,
        tags=tags,
        service_account=template.service_account or trigger.service_account,
    )
    missing = dict.fromkeys((*own.missing, *bound.missing))
    warnings = tuple(f"{binding} is not in the event: empty" for binding in missing)
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
    """``$TRIGGER_BUILD_CONFIG_PATH``: empty for an inline build."""
    label = _config_label(trigger).get(CONFIG_LABEL, "")
    return "" if label == AUTODETECT else label


def known_facts(trigger: BuildTrigger, revision: Revision) -> dict[str, str]:
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
