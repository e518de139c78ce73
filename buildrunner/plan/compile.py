"""Checks a config and compiles it to a BuildPlan, by the rules of Cloud Build.

Pure: no clock, no file, no engine. The `PlanContext` has everything else that a plan depends on.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Final

import msgspec
from msgspec.structs import replace

from buildrunner.errors import ConfigError
from buildrunner.plan.build_plan import (
    BuildPlan,
    PackageUpload,
    ResourceLimits,
    SecretReference,
    StepPlan,
    VolumeMount,
)
from buildrunner.plan.pinned_images import with_pinned_images
from buildrunner.plan.privilege import lowered
from buildrunner.plan.resolve import PlanContext, ResolvedBuild, resolve
from buildrunner.plan.selection import only_step, select_steps, without_steps
from buildrunner.problem import Problem, Severity
from buildrunner.spec.lexical_path import clean_path, join_paths
from buildrunner.spec.model.build import Build, BuildOptions, BuildStep, LoggingMode, MachineType
from buildrunner.spec.model.results import Artifacts, GenericArtifact, MavenArtifact
from buildrunner.spec.model.source import Source
from buildrunner.spec.reading.decode import LoadedBuild
from buildrunner.spec.validation.check import check_build

DEFAULT_TIMEOUT_S: Final = 3600.0
WORKSPACE: Final = "/workspace"
DEFAULT_SHEBANG: Final = "#!/bin/sh\n"

_GIB: Final = 2**30
# Source: the machine types of Compute Engine that Cloud Build offers.
MACHINE_LIMITS: Final[dict[MachineType, ResourceLimits]] = {
    MachineType.UNSPECIFIED: ResourceLimits(),
    MachineType.N1_HIGHCPU_8: ResourceLimits(cpus=8, memory_bytes=int(7.2 * _GIB)),
    MachineType.N1_HIGHCPU_32: ResourceLimits(cpus=32, memory_bytes=int(28.8 * _GIB)),
    MachineType.E2_HIGHCPU_8: ResourceLimits(cpus=8, memory_bytes=8 * _GIB),
    MachineType.E2_HIGHCPU_32: ResourceLimits(cpus=32, memory_bytes=32 * _GIB),
    MachineType.E2_MEDIUM: ResourceLimits(cpus=1, memory_bytes=4 * _GIB),
    MachineType.E2_STANDARD_2: ResourceLimits(cpus=2, memory_bytes=8 * _GIB),
}


class CompiledBuild(msgspec.Struct, frozen=True, kw_only=True):
    """A checked Build and its plan.

    Attributes:
        build: the Build to store: every substitution made, with the selected steps.
        plan: the plan.
        problems: warnings about the config.
    """

    build: Build
    plan: BuildPlan
    problems: tuple[Problem, ...] = ()


def compile_build(
    config: LoadedBuild | Build, context: PlanContext, *, file: str = ""
) -> CompiledBuild:
    """Check a config and plan its build.

    Args:
        config: a `LoadedBuild` from a file, for which stricter rules apply, or a Build from the
            API.
        context: everything else that the plan depends on.
        file: the config's path, for messages.

    Raises:
        ConfigError: the config or the selection of steps is invalid, or the build requests rights
            that it may not have. Holds all problems.
    """
    problems = check_build(
        config,
        file=file,
        substitutions=context.substitutions,
        built_ins=context.built_ins,
        triggered=context.triggered,
    )
    if any(one.severity is Severity.ERROR or context.strict for one in problems):
        raise ConfigError(problems)
    build = config if isinstance(config, Build) else config.build
    resolved = resolve(build, context=context)
    whole = plan_resolved(resolved, context=context)
    plan = select_steps(whole, context.selection)
    if context.reused:
        plan = without_steps(plan, context.reused)
    if context.rollback is not None:
        alone = only_step(whole, context.rollback.step)
        plan = with_pinned_images(alone, context.rollback.images)
    if not context.trusted:
        _refuse_what_needs_trust(resolved.build, plan, file)
    named = replace(resolved.build, id=plan.build_id, project_id=plan.project_id)
    return CompiledBuild(build=named, plan=plan, problems=tuple(problems))


def _refuse_what_needs_trust(build: Build, plan: BuildPlan, file: str) -> None:
    """Raise `ConfigError` if an untrusted config requests something that needs our credentials."""
    wanted = {
        "availableSecrets": any(step.secrets for step in plan.steps) and "secrets",
        "dependencies": build.dependencies and "repositories beside its source",
    }
    problems = [
        Problem(f"a build from somebody who is not trusted gets no {what}", path, file)
        for path, what in wanted.items()
        if what
    ]
    if problems:
        raise ConfigError(problems)


def plan_resolved(resolved: ResolvedBuild, *, context: PlanContext) -> BuildPlan:
    """Return the plan of a build whose substitutions are made.

    Raises:
        ConfigError: a step waits for an unknown id, or an ``env`` entry has no ``=``.
    """
    build = resolved.build
    options = build.options or BuildOptions()
    secrets = _secret_references(build)
    dependencies = step_dependencies(build.steps)
    source_dir = context.source_dir or source_dir_of(build)
    steps = tuple(
        _step_plan(index, step, resolved, source_dir, secrets, dependencies[index])
        for index, step in enumerate(build.steps)
    )
    mounted = (volume.name for step in steps for volume in step.volumes)
    objects = build.artifacts.objects if build.artifacts else None
    privilege = lowered(context.grant, options.docker_daemon)
    return BuildPlan(
        build_id=context.built_ins.build_id,
        project_id=context.built_ins.project_id,
        steps=steps,
        images=images_of(build),
        tags=build.tags,
        timeout_s=build.timeout.total_seconds() if build.timeout else DEFAULT_TIMEOUT_S,
        volumes=tuple(dict.fromkeys(mounted)),
        docker_socket=privilege.docker_socket,
        privileged=privilege.privileged,
        limits=MACHINE_LIMITS[options.machine_type],
        store_log=options.logging is not LoggingMode.NONE,
        substitutions=resolved.variables,
        object_location=_folder(objects.location) if objects else "",
        object_paths=objects.paths if objects else (),
        packages=_packages(build, context),
        source_dir=source_dir,
    )


def working_directory(source_dir: str, step_dir: str) -> str:
    """Return the working directory of a step: absolute and lexically clean.

    Source: the local builder; an absolute ``dir`` stays, any other is below ``/workspace`` and the
    source's folder, unless ``..`` leads out.
    """
    if step_dir.startswith("/"):
        return clean_path(step_dir)
    return join_paths(WORKSPACE, source_dir, step_dir)


def script_with_shebang(script: str) -> str:
    """Return the script with an interpreter: ``#!/bin/sh`` unless it names one."""
    return script if script.startswith("#!") else DEFAULT_SHEBANG + script


def step_dependencies(steps: Sequence[BuildStep]) -> list[tuple[int, ...]]:
    """Return, for each step, the indexes of the steps that must succeed before it, ascending.

    Source: ``waitFor``; empty means all steps before it, ``-`` means none and is ignored beside
    other ids.

    Raises:
        ConfigError: a step waits for an id that no earlier step has.
    """
    known: dict[str, int] = {}
    result: list[tuple[int, ...]] = []
    for index, step in enumerate(steps):
        if step.wait_for:
            try:
                waits = {known[name] for name in step.wait_for if name != "-"}
            except KeyError as error:
                message = f"waits for {error.args[0]!r}, which no earlier step has as its id"
                raise ConfigError(
                    [Problem(message, path=f"steps[{index}].waitFor", rule="V27")]
                ) from error
            result.append(tuple(sorted(waits)))
        else:
            result.append(tuple(range(index)))
        if step.id:
            known.setdefault(step.id, index)
    return result


def images_of(build: Build) -> tuple[str, ...]:
    """Return the images to push: ``images``, or ``artifacts.images``, which means the same."""
    return build.images or (build.artifacts.images if build.artifacts else ())


def source_dir_of(build: Build) -> str:
    """Return ``dir`` of the build's source; empty if it has none."""
    source = build.source
    if source is None:
        return ""
    kinds = (source.repo_source, source.git_source, source.connected_repository)
    return next((kind.dir for kind in kinds if kind), "")


def git_source_of(build: Build) -> Source | None:
    """Return the Git source that must be fetched before the build can be planned, or None."""
    source = build.source
    if source is None or fetches_nothing(build):
        return None
    is_git = source.git_source or source.repo_source or source.connected_repository
    return source if is_git else None


def fetches_nothing(build: Build) -> bool:
    """Return whether the build requests that no source is fetched.

    Source: ``Dependency.empty``, semantics 1.13: not even the default source is fetched.
    """
    return any(dependency.empty for dependency in build.dependencies)


def _step_plan(
    index: int,
    step: BuildStep,
    resolved: ResolvedBuild,
    source_dir: str,
    secrets: Mapping[str, SecretReference],
    depends_on: tuple[int, ...],
) -> StepPlan:
    options = resolved.build.options or BuildOptions()
    secret_names = sorted({*options.secret_env, *step.secret_env})
    automap = step.automap_substitutions
    if automap is None:
        automap = options.automap_substitutions
    return StepPlan(
        index=index,
        id=step.id,
        image=step.name,
        entrypoint=step.entrypoint or None,
        args=step.args or None,
        script=script_with_shebang(step.script) if step.script else None,
        env=_environment(
            (("options.env", options.env), (f"steps[{index}].env", step.env)),
            automapped=resolved.variables if automap else {},
            secret_names=secret_names,
        ),
        secrets=tuple(secrets[name] for name in secret_names if name in secrets),
        workdir=working_directory(source_dir, step.dir),
        volumes=tuple(
            VolumeMount(volume.name, clean_path(volume.path))
            for volume in (*options.volumes, *step.volumes)
        ),
        depends_on=depends_on,
        timeout_s=step.timeout.total_seconds() if step.timeout else None,
        allow_failure=step.allow_failure,
        allow_exit_codes=step.allow_exit_codes,
    )


def _environment(
    lists: Iterable[tuple[str, Sequence[str]]],
    *,
    automapped: Mapping[str, str],
    secret_names: Iterable[str],
) -> tuple[str, ...]:
    """Return one ``KEY=VALUE`` for each key, sorted by key.

    The step's entries win over the global ones, both over automapped variables. A secret that the
    step requests wins over an automapped variable.
    """
    values = dict(automapped)
    for name in secret_names:
        values.pop(name, None)
    for path, entries in lists:
        for position, entry in enumerate(entries):
            key, separator, value = entry.partition("=")
            if not separator:
                message = f'the entry "{entry}" must be of the form "KEY=VALUE"'
                raise ConfigError([Problem(message, path=f"{path}[{position}]", rule="V30")])
            values[key] = value
    return tuple(f"{key}={values[key]}" for key in sorted(values))


def _secret_references(build: Build) -> dict[str, SecretReference]:
    """Return the reference of each secret variable; values never enter a plan."""
    references: dict[str, SecretReference] = {}
    available = build.available_secrets
    if available:
        for secret in available.secret_manager:
            reference = SecretReference(secret.env, "secretManager", secret.version_name)
            references[secret.env] = reference
    encrypted = [(entry.kms_key_name, entry.secret_env) for entry in build.secrets]
    if available:
        encrypted += [(entry.kms_key_name, entry.env_map) for entry in available.inline]
    for key_name, values in encrypted:
        for name, ciphertext in values.items():
            references[name] = SecretReference(name, "kms", key_name, _base64(ciphertext))
    return references


def _base64(data: bytes) -> str:
    from base64 import b64encode

    return b64encode(data).decode("ascii")


def _packages(build: Build, context: PlanContext) -> tuple[PackageUpload, ...]:
    artifacts = build.artifacts
    if artifacts is None:
        return ()

    built_ins = context.built_ins
    return package_uploads(artifacts, built_ins.project_id, built_ins.location)


def _folder(location: str) -> str:
    return location if location.endswith("/") else f"{location}/"


def fitted(wanted: ResourceLimits, machine: ResourceLimits) -> tuple[ResourceLimits, str]:
    """Return the limits to set, and a warning if the machine is smaller than requested.

    A container engine refuses more CPUs than exist, so a limit beyond the machine becomes no
    limit: the steps then get the whole machine.

    Args:
        wanted: `BuildPlan.limits`, from ``options.machineType``.
        machine: resources of the engine's machine; each is None if unknown.

    Returns:
        The limits, and one sentence; empty if the machine is large enough.
    """
    short: list[str] = []
    cpus, memory = wanted.cpus, wanted.memory_bytes
    if cpus is not None and machine.cpus is not None and cpus > machine.cpus:
        short.append(f"{cpus:g} CPUs (there are {machine.cpus:g})")
        cpus = None
    if memory is not None and machine.memory_bytes is not None and memory > machine.memory_bytes:
        short.append(
            f"{memory / _GIB:.3g} GiB of memory (there are {machine.memory_bytes / _GIB:.3g})"
        )
        memory = None
    warning = f"this machine is smaller than the one asked for: {' and '.join(short)}"
    return ResourceLimits(cpus=cpus, memory_bytes=memory), warning if short else ""


_REGISTRY_PATH = re.compile(
    r"(projects/[^/]+/locations/[^/]+/repositories/[^/]+)/packages/([^/]+)/versions/([^/]+)"
)


def package_uploads(
    artifacts: Artifacts, project_id: str, location: str
) -> tuple[PackageUpload, ...]:
    """Return the packages in the order of publishing: maven, python, npm, go, generic.

    Source: semantics 1.8, 6.1 and 6.7. A path is relative to ``/workspace`` or absolute below it.

    Args:
        artifacts: the build's ``artifacts``, with substitutions made.
        project_id: project of Go repositories that name no project.
        location: their location in that case.

    Raises:
        ConfigError: a path leads out of the workspace, or a ``registryPath`` is invalid.
    """
    found = _Uploads(project_id, location)
    uploads = tuple(found.of(artifacts))
    if found.problems:
        raise ConfigError(found.problems)
    return uploads


class _Uploads:
    def __init__(self, project_id: str, location: str) -> None:
        self._project_id = project_id
        self._location = location
        self.problems: list[Problem] = []

    def of(self, artifacts: Artifacts) -> Iterator[PackageUpload]:
        for index, maven in enumerate(artifacts.maven_artifacts):
            yield self._maven(maven, f"artifacts.mavenArtifacts[{index}]")
        for index, python in enumerate(artifacts.python_packages):
            place = f"artifacts.pythonPackages[{index}].paths"
            globs = tuple(self._below(path, f"{place}[{n}]") for n, path in enumerate(python.paths))
            repository = python.repository.rstrip("/")
            yield PackageUpload(kind="python", repository=repository, paths=globs)
        for index, npm in enumerate(artifacts.npm_packages):
            folder = self._below(npm.package_path, f"artifacts.npmPackages[{index}].packagePath")
            repository = npm.repository.rstrip("/")
            yield PackageUpload(kind="npm", repository=repository, paths=(folder,))
        for index, go in enumerate(artifacts.go_modules):
            host = f"{go.repository_location or self._location}-go.pkg.dev"
            project = go.repository_project_id or self._project_id
            place = f"artifacts.goModules[{index}].sourcePath"
            yield PackageUpload(
                kind="go",
                repository=f"https://{host}/{project}/{go.repository_name}",
                paths=(self._below(go.source_path, place),),
                name=go.module_path,
                version=go.module_version,
            )
        for index, generic in enumerate(artifacts.generic_artifacts):
            yield self._generic(generic, f"artifacts.genericArtifacts[{index}]")

    def _maven(self, maven: MavenArtifact, place: str) -> PackageUpload:
        repository = maven.repository.rstrip("/")
        if maven.deploy_folder:
            folder = self._below(maven.deploy_folder, f"{place}.deployFolder")
            return PackageUpload(kind="maven-folder", repository=repository, paths=(folder,))
        return PackageUpload(
            kind="maven",
            repository=repository,
            paths=(self._below(maven.path, f"{place}.path"),),
            group=maven.group_id,
            name=maven.artifact_id,
            version=maven.version,
        )

    def _generic(self, generic: GenericArtifact, place: str) -> PackageUpload:
        paths = (self._below(generic.folder, f"{place}.folder"),)
        repository, name, version = generic.registry_path.rstrip("/"), "", ""
        if named := _REGISTRY_PATH.fullmatch(repository):
            repository, name, version = named.groups()
        elif not repository.startswith(("https://", "http://")):
            problem = Problem(
                f'"{generic.registry_path}" names no place for files',
                path=f"{place}.registryPath",
                rule="artifact-field",
                hint="write projects/P/locations/L/repositories/R/packages/NAME/versions/VERSION, "
                "or the https:// address of a folder",
            )
            self.problems.append(problem)
        return PackageUpload(
            kind="generic", repository=repository, paths=paths, name=name, version=version
        )

    def _below(self, path: str, place: str) -> str:
        full = join_paths(WORKSPACE, path)
        if full != WORKSPACE and not full.startswith(f"{WORKSPACE}/"):
            message = f'"{path}" is not below {WORKSPACE}'
            self.problems.append(Problem(message, path=place, rule="package-path"))
        return full
