"""`check_build`: all problems of a build, in the order of the file.

The rules have stable ids, V01-V71 and a few names; each rule is in the module of its subject.
Reading problems (unknown fields, wrong types, V01, V02) come from the decoder: `check_build` only
adds them to its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Final

import msgspec

from buildrunner.problem import Problem, Severity
from buildrunner.spec.model.build import Build
from buildrunner.spec.model.message import Message
from buildrunner.spec.reading.decode import LoadedBuild
from buildrunner.spec.substitutions.expressions import TOO_MUCH, BadExpression, Budget
from buildrunner.spec.substitutions.templates import Cycle, expand
from buildrunner.spec.substitutions.variables import BuiltIns, is_user_variable
from buildrunner.spec.validation.build import (
    DEFAULT_LIMITS,
    Limits,
    check_build_level,
    check_uploads,
    effective_options,
)
from buildrunner.spec.validation.findings import Findings
from buildrunner.spec.validation.references import Values, check_results
from buildrunner.spec.validation.steps import (
    check_environment,
    check_secrets,
    check_steps,
    check_volumes,
)
from buildrunner.spec.validation.substitutions import (
    check_references,
    check_substitution_maps,
    without_own_values,
)

_UPLOADS = {
    "objects": "objects",
    "maven_artifacts": "mavenArtifacts",
    "go_modules": "goModules",
    "python_packages": "pythonPackages",
    "npm_packages": "npmPackages",
    "generic_artifacts": "genericArtifacts",
}

_RECORDED_OPTIONS = {
    "pool": "pool",
    "disk_size_gb": "diskSizeGb",
    "source_provenance_hash": "sourceProvenanceHash",
    "pubsub_topic": "pubsubTopic",
}


def check_differences(build: Build, findings: Findings) -> None:
    """Warn about every used field that has no effect here: rule ``not-done-here``."""
    for owner, json_name, path in _used(build):
        # Imported here, since most builds use none of them.
        from buildrunner.spec.model.stands import Stand, stand_of

        verdict = stand_of(owner, json_name)
        if verdict is not None and verdict.stand is Stand.RECORDED:
            message = f"{json_name} has no effect here: {verdict.reason}"
            findings.warning("not-done-here", path, message)


def _used(build: Build) -> Iterator[tuple[type[Message], str, str]]:
    if build.dependencies:
        yield type(build), "dependencies", "dependencies"
    artifacts = build.artifacts
    if artifacts:
        for name, json_name in _UPLOADS.items():
            if getattr(artifacts, name):
                yield type(artifacts), json_name, f"artifacts.{json_name}"
    options = build.options
    if options is None:
        return
    for name, json_name in _RECORDED_OPTIONS.items():
        if getattr(options, name):
            yield type(options), json_name, f"options.{json_name}"


MAX_PROBLEMS: Final = 200

# Samples of values that only a run knows, so that gcr.io/$PROJECT_ID/x can be checked.
SAMPLE: Final = BuiltIns(
    project_id="my-project",
    project_number="123456789012",
    build_id="00000000-0000-4000-8000-000000000000",
)
TRIGGERED_SAMPLE: Final = msgspec.structs.replace(
    SAMPLE,
    commit_sha="0123456789abcdef0123456789abcdef01234567",
    branch="main",
    tag="v1.2.3",
    repo_full_name="owner/repository",
    trigger_name="my-trigger",
    config_path="cloudbuild.yaml",
    service_account_email="builder@my-project.iam.gserviceaccount.com",
    pull_request={
        "_HEAD_BRANCH": "feature",
        "_BASE_BRANCH": "main",
        "_HEAD_REPO_URL": "https://example.com/owner/repository",
        "_PR_NUMBER": "1",
    },
)


def check_build(
    subject: LoadedBuild | Build,
    *,
    file: str = "",
    substitutions: Mapping[str, str] | None = None,
    built_ins: BuiltIns | None = None,
    triggered: bool = False,
    limits: Limits = DEFAULT_LIMITS,
) -> list[Problem]:
    """Return all problems of a build, errors and warnings, in the order of the file.

    Args:
        subject: the result of `decode.load_build` (problems then have a place, reading problems are
            included, and the stricter rules for config files apply), or a Build from the API
            (problems are then in the order of the rules).
        file: name of the file of ``subject``.
        substitutions: values from outside (flags, trigger, API), which override the build's.
        built_ins: values of the built-in variables. Without them samples are used, and values that
            depend on a repository are checked leniently, since the environment is unknown.
        triggered: check the build as a triggered build: loose, dynamic substitutions.
        limits: the limits of a build.

    Returns:
        An empty list for a valid build. An invalid build never raises; the time is linear in
        the build's size.
    """
    findings = Findings()
    terms = _Terms(substitutions or {}, built_ins, triggered=triggered, limits=limits)
    if isinstance(subject, Build):
        _run_checks(subject, terms, findings, from_file=False)
        return _readable(findings.problems)
    read = list(subject.problems)
    if triggered:
        read = [_as_read_by_triggers(found) for found in read]
    if subject.root is None or any(found.rule == "not-a-mapping" for found in read):
        return read
    _run_checks(subject.value, terms, findings, from_file=True)
    if not findings.problems:
        return read
    read_badly = [found.path for found in read if found.severity is Severity.ERROR]
    placed = [
        _with_place(found, subject, file)
        for found in findings.problems
        if not (read_badly and _follows_from(found, read_badly, subject.value))
    ]
    placed += read
    placed.sort(key=lambda found: (found.line, found.column))
    return _readable(placed)


def _as_read_by_triggers(problem: Problem) -> Problem:
    """Return a problem with the severity for triggered configs.

    Source: configs in use whose triggers read ``timeout: 20m`` (googleapis/cel-spec,
        GoogleCloudPlatform/golang-samples); the API refuses it.
    """
    if problem.rule != "duration-unit":
        return problem
    return msgspec.structs.replace(problem, severity=Severity.WARNING)


def check_values(build: Build) -> list[Problem]:
    """Check the values and the source of a build whose steps are not known yet."""
    findings = Findings()
    check_substitution_maps(build, {}, DEFAULT_LIMITS, findings, from_config_file=False)
    if build.source is not None or build.dependencies:
        from buildrunner.spec.validation.build import check_source

        check_source(build, findings)
    return _readable(findings.problems)


def _readable(problems: list[Problem]) -> list[Problem]:
    """Return the problems up to a limit; a last one counts the rest."""
    if len(problems) <= MAX_PROBLEMS:
        return problems
    hidden = problems[MAX_PROBLEMS:]
    worst = Severity.ERROR if errors_of(hidden) else Severity.WARNING
    count = Problem(
        f"{len(hidden)} more problems are not shown",
        file=hidden[0].file,
        line=hidden[0].line,
        column=hidden[0].column,
        rule="too-many-problems",
        severity=worst,
    )
    return [*problems[:MAX_PROBLEMS], count]


class _Terms(msgspec.Struct, frozen=True):
    """The arguments of `check_build` besides its subject."""

    given: Mapping[str, str]
    built_ins: BuiltIns | None
    triggered: bool
    limits: Limits


def _run_checks(build: Build, terms: _Terms, findings: Findings, *, from_file: bool) -> None:
    given, built_ins, limits = terms.given, terms.built_ins, terms.limits
    check_substitution_maps(build, given, limits, findings, from_config_file=from_file)
    check_build_level(build, limits, findings)
    check_uploads(build, limits, findings)
    check_steps(build, limits, findings)
    options = effective_options(build.options, triggered=terms.triggered)
    user = {**build.substitutions, **given} if given else build.substitutions
    assumed = built_ins is None
    budget = Budget()
    complete = check_references(build, user, options, findings, budget, assumed=assumed)
    check_volumes(build, findings)
    check_environment(build, limits, findings)
    check_secrets(build, limits, findings)
    if build.source is not None or build.dependencies:
        from buildrunner.spec.validation.build import check_source  # few builds have these

        check_source(build, findings)
    check_differences(build, findings)
    sample = TRIGGERED_SAMPLE if terms.triggered else SAMPLE
    built_in = (built_ins or sample).values()
    expanded = user
    if complete and options.dynamic_substitutions and user:
        known = without_own_values(user) if assumed else user
        try:
            expanded = expand(known, built_in, is_template=is_user_variable, budget=budget)
        except BadExpression as error:
            # Not an error with samples, whose values may be shorter than the real ones.
            complete = False
            if not assumed and not budget.is_exhausted:
                findings.error("expression", "substitutions", str(error))
        except Cycle:
            complete = False
    values = Values(
        {**built_in, **expanded},
        user,
        dynamic=options.dynamic_substitutions,
        budget=budget,
        complete=complete,
        assumed=assumed,
    )
    check_results(build, values, findings)
    if budget.is_exhausted:
        findings.error("expression", "substitutions", TOO_MUCH)


def _with_place(problem: Problem, loaded: LoadedBuild, file: str) -> Problem:
    line, column = (0, 0) if problem.path.startswith("--") else loaded.locate(problem.path)
    return msgspec.structs.replace(problem, file=file, line=line, column=column)


# Rules about missing values, which don't count if the surrounding value is unreadable.
_ABSENCE: Final = frozenset({"V20", "V22", "V43", "V63", "V65", "artifact-field", "V17"})
_ABSENCE_ANYWHERE: Final = frozenset({"V19", "V45", "V46", "V50", "V59"})


def _follows_from(problem: Problem, read_badly: Sequence[str], build: Build) -> bool:
    """Return whether the problem may result from an unreadable value."""
    if problem.rule == "V27":
        return any(_may_hide_an_id(path, build) for path in read_badly)
    if problem.rule in _ABSENCE_ANYWHERE:
        return True
    if problem.rule == "V20" and any(path.isidentifier() for path in read_badly):
        return True  # "stps:" is an unknown field, which explains the missing steps
    if problem.rule == "V17":
        return any(path.startswith("substitutions") for path in read_badly)
    return problem.rule in _ABSENCE and any(path.startswith(problem.path) for path in read_badly)


def _may_hide_an_id(path: str, build: Build) -> bool:
    """Return whether a step's id may be in the unreadable value at ``path``."""
    if not path.startswith("steps"):
        return False
    number = path.removeprefix("steps[").partition("]")[0]
    if path == f"steps[{number}]" or not number.isdecimal() or int(number) >= len(build.steps):
        return True
    return not build.steps[int(number)].id


def errors_of(problems: Iterable[Problem]) -> list[Problem]:
    """Return the problems that stop a build."""
    return [problem for problem in problems if problem.severity is Severity.ERROR]
