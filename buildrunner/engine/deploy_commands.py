"""Deployments that the command of a step suggests. Pure.

For steps that succeeded and reported nothing: the arguments and the environment of a known tool
name the target, and mostly no digest. Of scripts, the commands count that run in any case.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Final, NamedTuple

import msgspec
from msgspec.structs import replace

from buildrunner.engine.deployments import Deployment
from buildrunner.engine.image_pulls import split_reference
from buildrunner.engine.script_commands import commands_of_script
from buildrunner.plan.build_plan import StepPlan

_SHELLS = frozenset({"ash", "bash", "dash", "sh"})
_SDK_IMAGES = frozenset({"cloud-sdk", "google-cloud-cli"})
_KINDS = {
    **dict.fromkeys(("deploy", "deployment", "deployments", "deployment.apps"), "Deployment"),
    **dict.fromkeys(("sts", "statefulset", "statefulsets", "statefulset.apps"), "StatefulSet"),
    **dict.fromkeys(("ds", "daemonset", "daemonsets", "daemonset.apps"), "DaemonSet"),
    **dict.fromkeys(("cj", "cronjob", "cronjobs", "cronjob.batch"), "CronJob"),
}
# Flags that take no value; other flags take the next word.
_SWITCHES = frozenset(
    {
        *("-i", "-q", "-R", "-V", "--all", "--allow-unauthenticated", "--async", "--atomic"),
        *("--cleanup-on-fail", "--create-namespace", "--debug", "--dependency-update", "--force"),
        *("--gen2", "--install", "--prune", "--promote", "--quiet", "--record", "--recursive"),
        *("--reset-values", "--reuse-values", "--server-side", "--skip-crds", "--trigger-http"),
        *("--verbose", "--wait", "--wait-for-jobs"),
    }
)
_DRY = frozenset({"-D", "--dry-run", "--server-dry-run", "--validate-only"})


class _Command(NamedTuple):
    """The words of a command without its flags, and the flags' values."""

    words: tuple[str, ...]
    flags: Mapping[str, str]

    def first(self, *names: str) -> str:
        """Return the value of the first of those flags that has one."""
        return next((self.flags[name] for name in names if self.flags.get(name)), "")


def suggested(step: StepPlan, project: str) -> tuple[Deployment, ...]:
    """Return the deployments that the commands of a step suggest; empty for most steps.

    Args:
        step: a step that succeeded.
        project: the build's project, which the tools use unless a command names another.
    """
    env = {"CLOUDSDK_CORE_PROJECT": project}
    env |= dict(entry.partition("=")[::2] for entry in step.env)
    found: dict[str, Deployment] = {}
    for program, arguments in _commands(step, env):
        read = _TOOLS.get(program)
        if read is None or any(word.partition("=")[0] in _DRY for word in arguments):
            continue
        one = read(_command(arguments), env)
        if one is None or "$" in one.target:
            continue
        known = tuple(image for image in one.images if not set(image) & set("$`"))
        try:  # the arguments are the author's: a deployment has rules
            checked = msgspec.to_builtins(replace(one, images=known))
            found[one.target] = msgspec.convert(checked, Deployment)
        except msgspec.ValidationError:
            continue
    return tuple(found.values())


def _commands(step: StepPlan, env: Mapping[str, str]) -> Iterable[tuple[str, Sequence[str]]]:
    """The programs that a step runs, with their arguments, as far as its text tells."""
    arguments = step.args or ()
    if step.script is not None:
        return _of_script(step.script, env)
    if step.entrypoint is None:
        last = split_reference(step.image)[0].rpartition("/")[2]
        if last in _SDK_IMAGES:
            last, arguments = (*arguments[:1], "")[0], arguments[1:]
    else:
        last = step.entrypoint
    last = last.rpartition("/")[2]
    if last in _SHELLS and len(arguments) > 1 and re.fullmatch("-[a-z]*c", arguments[0]):
        return _of_script(arguments[1], env)
    return [(last.removesuffix("-slim").removesuffix(".bash"), arguments)]


def _of_script(text: str, env: Mapping[str, str]) -> Iterator[tuple[str, Sequence[str]]]:
    if any(tool in text for tool in _TOOLS):
        for program, *arguments in commands_of_script(text, env):
            yield program.rpartition("/")[2], arguments


def _command(arguments: Sequence[str]) -> _Command:
    words: list[str] = []
    flags: dict[str, str] = {}
    rest = iter(arguments)
    for argument in rest:
        if argument == "--":
            break
        name, equals, value = argument.partition("=")
        if not argument.startswith("-"):
            words.append(argument)
        elif equals:
            flags[name] = value
        elif name not in _SWITCHES and not name.startswith("--no-"):
            flags[name] = next(rest, "")
    return _Command(tuple(words), flags)


def _cluster(command: _Command, env: Mapping[str, str]) -> str:
    cluster = command.first("--cluster", "-c") or env.get("CLOUDSDK_CONTAINER_CLUSTER", "")
    place = (
        command.first("--location", "-l")
        or env.get("CLOUDSDK_COMPUTE_REGION", "")
        or env.get("CLOUDSDK_COMPUTE_ZONE", "")
    )
    if not cluster or not place:
        return "kubernetes://-"
    project = command.first("--project", "-p") or env["CLOUDSDK_CORE_PROJECT"]
    return f"gke://{project}/{place}/{cluster}"


def _of_gke_deploy(command: _Command, env: Mapping[str, str]) -> Deployment | None:
    if command.words[:1] not in (("run",), ("apply",)):
        return None
    namespace = command.first("--namespace", "-n") or "default"
    image = command.first("--image", "-i")
    target = f"{_cluster(command, env)}/{namespace}"
    if image and not command.first("--filename", "-f"):
        app = command.first("--app", "-a") or split_reference(image)[0].rpartition("/")[2]
        target += f"/Deployment/{app}"
    return Deployment(target=target, images=(image,) if image else ())


def _of_kubectl(command: _Command, env: Mapping[str, str]) -> Deployment | None:
    namespace = command.first("--namespace", "-n") or "default"
    target = f"{_cluster(_Command((), {}), env)}/{namespace}"
    match command.words:
        case ("apply" | "replace", *_):
            return Deployment(target=target)
        case ("set", "image", *named) | ("rollout", "restart" | "undo", *named) if named:
            kind, slash, name = named[0].partition("/")
            values = [one.partition("=")[2] for one in named[1:] if "=" in one]
            if not slash:
                name = named[1] if len(named) > 1 else ""
            known = _KINDS.get(kind.casefold())
            if known and name:
                return Deployment(target=f"{target}/{known}/{name}", images=tuple(values))
            return None
        case _:
            return None


def _of_helm(command: _Command, env: Mapping[str, str]) -> Deployment | None:
    match command.words:
        case ("upgrade" | "install", release, _, *_):
            namespace = command.first("--namespace", "-n") or "default"
            cluster = _cluster(_Command((), {}), env)
            version = command.first("--version")
            return Deployment(
                target=f"{cluster}/{namespace}/HelmRelease/{release}", version=version
            )
        case _:
            return None


def _of_gcloud(command: _Command, env: Mapping[str, str]) -> Deployment | None:
    words = [word for word in command.words if word not in ("alpha", "beta")]
    project = command.first("--project") or env["CLOUDSDK_CORE_PROJECT"]
    image = command.first("--image", "--image-url", "--docker-repository")
    images = (image,) if image else ()
    match words:
        case ["run", "deploy", name] | ["run", "services", "update", name]:
            region = command.first("--region") or env.get("CLOUDSDK_RUN_REGION", "-")
            return Deployment(target=f"run://{project}/{region}/{name}", images=images)
        case ["functions", "deploy", name]:
            region = command.first("--region") or env.get("CLOUDSDK_FUNCTIONS_REGION", "-")
            return Deployment(target=f"functions://{project}/{region}/{name}")
        case ["app", "deploy", *_]:
            version = command.first("--version", "-v")
            return Deployment(target=f"appengine://{project}", images=images, version=version)
        case _:
            return None


_TOOLS: Final = {
    "gcloud": _of_gcloud,
    "gke-deploy": _of_gke_deploy,
    "helm": _of_helm,
    "kubectl": _of_kubectl,
}
