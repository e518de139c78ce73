"""Checks triggers, with all problems at once, and reads the triggers of a file.

Source: https://cloud.google.com/build/docs/api/reference/rest/v1/projects.triggers
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Final

from buildrunner.errors import UsageError
from buildrunner.problem import Problem, Severity
from buildrunner.spec.model.trigger import (
    BitbucketServerTriggerConfig,
    BuildTrigger,
    GitFileSource,
    GitHubEventsConfig,
    GitLabEventsConfig,
    GitRepoSource,
    PullRequestFilter,
    PushFilter,
    RepositoryEventConfig,
)
from buildrunner.spec.reading.decode import Loaded
from buildrunner.spec.substitutions.variables import may_be_set
from buildrunner.spec.validation.build import DEFAULT_LIMITS
from buildrunner.spec.validation.check import check_build
from buildrunner.triggers.cel import filter_problem
from buildrunner.triggers.file_filter import check_pattern
from buildrunner.triggers.forge_host import is_full_name
from buildrunner.triggers.schedule import Schedule, check_schedule

EventConfig = (
    GitHubEventsConfig | RepositoryEventConfig | GitLabEventsConfig | BitbucketServerTriggerConfig
)

MAX_PATTERNS: Final = 200
"""Maximum number of globs of ``includedFiles``, and of ``ignoredFiles``."""

MAX_PATTERN: Final = 1000
"""Maximum length of a glob or regular expression, in characters."""
_MOST_SHOWN: Final = 200

NAME: Final = re.compile(r"[A-Za-z0-9]([A-Za-z0-9-]{0,62}[A-Za-z0-9])?")
_SECRET_VERSION: Final = re.compile(r"projects/[^/]+/secrets/[^/]+/versions/[^/]+")
_TOPIC: Final = re.compile(r"projects/[^/]+/topics/[^/]+")
_TEMPLATES: Final = "autodetect, build, filename, gitFileSource"


def check_trigger(
    trigger: BuildTrigger, filter_problem: Callable[[str, Mapping[str, str]], str] = filter_problem
) -> list[Problem]:
    """Return all problems of a trigger, errors and warnings. Never raises for an invalid one.

    Args:
        trigger: the decoded trigger.
        filter_problem: checks its filter; see `cel.filter_problem`.
    """
    sizes = [*_sizes(trigger)]
    if sizes:  # checking the rest would take long
        return sizes
    problems = [
        *_name(trigger),
        *_template(trigger),
        *_event(trigger),
        *_repository(trigger),
        *_cron(trigger),
        *_expressions(trigger),
        *_files(trigger),
        *_filter(trigger, filter_problem),
        *_substitutions(trigger),
        *_sources(trigger),
    ]
    if trigger.build is not None:
        problems += [
            Problem(
                found.message,
                path=f"build.{found.path}" if found.path else "build",
                hint=found.hint,
                rule=found.rule,
                severity=found.severity,
            )
            for found in check_build(
                trigger.build, substitutions=trigger.substitutions, triggered=True
            )
            if found.rule != "git-password"  # `git_address.trigger_problems` checks all of it
        ]
    return problems


def _sizes(trigger: BuildTrigger) -> Iterator[Problem]:
    """Yield exceeded limits, which exist since each push is compared with all patterns."""
    counted = {
        "tags": (len(trigger.tags), DEFAULT_LIMITS.tags),
        "substitutions": (len(trigger.substitutions), DEFAULT_LIMITS.substitutions),
        "includedFiles": (len(trigger.included_files), MAX_PATTERNS),
        "ignoredFiles": (len(trigger.ignored_files), MAX_PATTERNS),
    }
    for path, (count, most) in counted.items():
        if count > most:
            yield Problem(
                f"a trigger has {most} {path} at most, not {count}", path=path, rule="trigger-size"
            )
    most_bytes = DEFAULT_LIMITS.substitution_value_bytes
    texts = {
        **{f"substitutions.{k}": (v, most_bytes) for k, v in trigger.substitutions.items()},
        **{path: (pattern, MAX_PATTERN) for path, pattern in _patterns(trigger)},
    }
    for path, (text, most) in texts.items():
        if len(text) > most:
            yield Problem(
                f"it has {len(text)} characters, and {most} are the most",
                path=path,
                rule="trigger-size",
            )


def _patterns(trigger: BuildTrigger) -> Iterator[tuple[str, str]]:
    """Yield every glob and regular expression of a trigger, with its path."""
    for field, globs in (
        ("ignoredFiles", trigger.ignored_files),
        ("includedFiles", trigger.included_files),
    ):
        yield from ((f"{field}[{at}]", glob) for at, glob in enumerate(globs))
    for path, config in _event_configs(trigger):
        push, pull = config.push if config else None, config.pull_request if config else None
        yield f"{path}.push.branch", (push and push.branch) or ""
        yield f"{path}.push.tag", (push and push.tag) or ""
        yield f"{path}.pullRequest.branch", (pull and pull.branch) or ""
    template = trigger.trigger_template
    if template is not None:
        yield "triggerTemplate.branchName", template.branch_name or ""
        yield "triggerTemplate.tagName", template.tag_name or ""


def _event_configs(trigger: BuildTrigger) -> tuple[tuple[str, EventConfig | None], ...]:
    return (
        ("github", trigger.github),
        ("repositoryEventConfig", trigger.repository_event_config),
        ("gitlabEnterpriseEventsConfig", trigger.gitlab_enterprise_events_config),
        ("bitbucketServerTriggerConfig", trigger.bitbucket_server_trigger_config),
    )


def _name(trigger: BuildTrigger) -> Iterator[Problem]:
    if not NAME.fullmatch(trigger.name):
        yield Problem(
            f"{trigger.name!r} is no name for a trigger",
            path="name",
            hint="1 to 64 letters, digits and -, a letter or digit at both ends",
            rule="trigger-name",
        )


def _template(trigger: BuildTrigger) -> Iterator[Problem]:
    if not any((trigger.autodetect, trigger.build, trigger.filename, trigger.git_file_source)):
        yield Problem(
            f"a trigger must say what to build: one of {_TEMPLATES}", rule="trigger-template"
        )


def _event(trigger: BuildTrigger) -> Iterator[Problem]:
    events = {
        "triggerTemplate": trigger.trigger_template,
        "github": trigger.github,
        "repositoryEventConfig": trigger.repository_event_config,
        "pubsubConfig": trigger.pubsub_config,
        "webhookConfig": trigger.webhook_config,
        "gitlabEnterpriseEventsConfig": trigger.gitlab_enterprise_events_config,
        "bitbucketServerTriggerConfig": trigger.bitbucket_server_trigger_config,
    }
    given = [name for name, value in events.items() if value is not None]
    if len(given) > 1:
        message = f"a trigger listens to one kind of event, but here are {' and '.join(given)}"
        yield Problem(message, path=given[1], hint="make a trigger for each", rule="trigger-event")
    webhook, pubsub = trigger.webhook_config, trigger.pubsub_config
    if webhook is not None and not _SECRET_VERSION.fullmatch(webhook.secret or ""):
        yield Problem(
            f"{webhook.secret or ''!r} is no secret version",
            path="webhookConfig.secret",
            hint="projects/PROJECT/secrets/NAME/versions/latest",
            rule="trigger-webhook",
        )
    if pubsub is not None and not _TOPIC.fullmatch(pubsub.topic):
        message = f"{pubsub.topic!r} is no topic: projects/PROJECT/topics/NAME"
        yield Problem(message, path="pubsubConfig.topic", rule="trigger-pubsub")


def _repository(trigger: BuildTrigger) -> Iterator[Problem]:
    """Check names of repositories: ``x/../owner/name`` would lead to another owner's."""
    github, gitlab = trigger.github, trigger.gitlab_enterprise_events_config
    server = trigger.bitbucket_server_trigger_config
    names = {
        "github": f"{github.owner}/{github.name}" if github else "",
        "gitlabEnterpriseEventsConfig.projectNamespace": gitlab.project_namespace if gitlab else "",
        "bitbucketServerTriggerConfig": f"{server.project_key}/{server.repo_slug}"
        if server
        else "",
    }
    for path, name in names.items():
        if name and not is_full_name(name):
            yield Problem(
                f"{name[:_MOST_SHOWN]!r} is no full name of a repository",
                path=path,
                hint="OWNER/NAME, as in the repository's address",
                rule="trigger-repository",
            )


def _cron(trigger: BuildTrigger) -> Iterator[Problem]:
    if trigger.cron is None:
        return
    wrong = check_schedule(Schedule(cron=trigger.cron.schedule, time_zone=trigger.cron.time_zone))
    if wrong:
        is_zone = not check_schedule(Schedule(cron=trigger.cron.schedule))
        hint = "" if is_zone else "minute hour day month weekday"
        yield Problem(wrong, path="cron", hint=hint, rule="trigger-cron")


def _expressions(trigger: BuildTrigger) -> Iterator[Problem]:
    for path, config in _event_configs(trigger):
        if config is None:
            continue
        if config.push is not None:
            yield from _push(f"{path}.push", config.push)
        elif config.pull_request is not None:
            yield from _pull_request(f"{path}.pullRequest", config.pull_request)
        else:
            message = "either push or pullRequest must say which events fire"
            yield Problem(message, path=path, rule="trigger-event")
    template = trigger.trigger_template
    if template is not None:
        yield from _regex("triggerTemplate.branchName", template.branch_name)
        yield from _regex("triggerTemplate.tagName", template.tag_name)


def _push(path: str, push: PushFilter) -> Iterator[Problem]:
    if push.branch is None and push.tag is None:
        message = "either branch or tag must be a regular expression"
        yield Problem(message, path=path, hint="branch: ^main$", rule="trigger-event")
    yield from _regex(f"{path}.branch", push.branch)
    yield from _regex(f"{path}.tag", push.tag)


def _pull_request(path: str, pull: PullRequestFilter) -> Iterator[Problem]:
    if pull.branch is None:
        message = "branch must be a regular expression for the base branch"
        yield Problem(message, path=path, hint="branch: ^main$", rule="trigger-event")
    yield from _regex(f"{path}.branch", pull.branch)


def _regex(path: str, pattern: str | None) -> Iterator[Problem]:
    if not pattern:
        return
    import re2

    options = re2.Options()
    options.log_errors = False
    try:
        re2.compile(pattern, options)
    except re2.error as error:
        text = error.args[0] if error.args else error
        reason = text.decode(errors="replace") if isinstance(text, bytes) else str(text)
        yield Problem(
            f"{pattern!r} is no regular expression of RE2: {reason}",
            path=path,
            hint="look-around and back-references don't exist there; invertRegex negates",
            rule="trigger-regex",
        )


def _files(trigger: BuildTrigger) -> Iterator[Problem]:
    for field, patterns in (
        ("ignoredFiles", trigger.ignored_files),
        ("includedFiles", trigger.included_files),
    ):
        for at, pattern in enumerate(patterns):
            wrong = check_pattern(pattern)
            if wrong:
                yield Problem(
                    wrong,
                    path=f"{field}[{at}]",
                    hint="*, ?, [a-z] and ** have a meaning; \\ before them takes it away",
                    rule="trigger-files",
                )


def _filter(
    trigger: BuildTrigger, filter_problem: Callable[[str, Mapping[str, str]], str]
) -> Iterator[Problem]:
    if not trigger.filter:
        return
    wrong = filter_problem(trigger.filter, trigger.substitutions)
    if wrong:
        yield Problem(wrong, path="filter", rule="trigger-filter")


def _substitutions(trigger: BuildTrigger) -> Iterator[Problem]:
    for key in trigger.substitutions:
        if not may_be_set(key):
            yield Problem(
                f'substitution key "{key}" does not respect format "^_[A-Z0-9_]+$"',
                path=f"substitutions.{key}",
                rule="V14",
            )


def _sources(trigger: BuildTrigger) -> Iterator[Problem]:
    file, source = trigger.git_file_source, trigger.source_to_build
    if file is not None:
        yield from _git_file(file)
    if source is not None:
        yield from _source_to_build(source)
    for name, place in (("gitFileSource", file), ("sourceToBuild", source)):
        if place is None:
            continue
        for field, config in (
            ("githubEnterpriseConfig", place.github_enterprise_config),
            ("bitbucketServerConfig", place.bitbucket_server_config),
        ):
            if config:
                yield Problem(
                    "connections to forges exist only inside Google Cloud",
                    path=f"{name}.{field}",
                    hint="give the repository's whole URL in uri",
                    severity=Severity.WARNING,
                    rule="trigger-source",
                )


def _git_file(file: GitFileSource) -> Iterator[Problem]:
    if not file.path:
        yield Problem(
            "the path of the config file is missing", path="gitFileSource", rule="trigger-source"
        )
    if file.uri and file.repository:
        message = "either uri or repository names the repository, not both"
        yield Problem(message, path="gitFileSource", rule="trigger-source")


def _source_to_build(source: GitRepoSource) -> Iterator[Problem]:
    if bool(source.uri) is bool(source.repository):
        message = "one of uri and repository must name the repository"
        yield Problem(message, path="sourceToBuild", rule="trigger-source")
    if not source.ref.startswith("refs/"):
        yield Problem(
            f"ref must begin with refs/, and {source.ref!r} does not",
            path="sourceToBuild.ref",
            hint="e.g. refs/heads/main or refs/tags/v1",
            rule="trigger-source",
        )


def load_trigger_file(path: str) -> tuple[tuple[Loaded[BuildTrigger], ...], list[Problem]]:
    """Return the triggers of a file, and all their problems.

    Raises:
        UsageError: the file can't be read, or holds no trigger.
    """
    from buildrunner.spec.reading.decode import load_triggers

    file = "standard input" if path == "-" else path
    try:
        if path == "-":
            text = sys.stdin.buffer.read()
        else:
            with open(path, "rb") as opened:
                text = opened.read()
    except OSError as error:
        raise UsageError(f"{path} can't be read: {error.strerror}") from error
    loaded = load_triggers(text, file=file)
    if not loaded:
        raise UsageError(f"{file} holds no trigger")
    return loaded, [problem for one in loaded for problem in _problems(one, file)]


def _problems(loaded: Loaded[BuildTrigger], file: str) -> list[Problem]:
    """Return the problems of one trigger, with their lines and columns in the file."""
    from msgspec.structs import replace

    from buildrunner.spec.model import git_address
    from buildrunner.spec.writing import encode_message

    if not (loaded.ok and loaded.value.name):
        return list(loaded.problems)
    found = []
    passwords = git_address.trigger_problems(encode_message(loaded.value))
    for problem in (*check_trigger(loaded.value), *passwords):
        line, column = loaded.locate(problem.path)
        found.append(replace(problem, file=file, line=line, column=column))
    return [*loaded.problems, *found]
