"""Rules about steps, their environment, secrets and volumes: V20-V59."""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import timedelta
from typing import Final

from buildrunner.spec.lexical_path import clean_path
from buildrunner.spec.model.build import Build, BuildStep, Volume
from buildrunner.spec.validation.build import Limits
from buildrunner.spec.validation.findings import Findings, shortened

RESERVED_VOLUME_PATHS: Final = frozenset(
    {"/workspace", "/builder/home", "/var/run/docker.sock", "/builder/outputs"}
)

_ZERO = timedelta()
_VOLUME_NAME = r"[a-zA-Z0-9][a-zA-Z0-9_.-]+"


def check_steps(build: Build, limits: Limits, findings: Findings) -> None:
    """Check every step and its dependencies: V20-V36."""
    steps = build.steps
    if not steps:
        findings.error("V20", "steps", "no build steps are specified")
    if len(steps) > limits.steps:
        findings.error("V21", "steps", f"cannot specify more than {limits.steps} build steps")
    elif len(steps) > limits.portable_steps:
        message = f"older builders take no more than {limits.portable_steps} build steps"
        findings.warning("V21", "steps", message)
    all_ids = {step.id for step in steps}
    defined: set[str] = set()
    for index, step in enumerate(steps):
        _check_command(index, step, limits, findings)
        if step.wait_for:
            _check_waits(index, step, defined, all_ids, findings)
        if step.id:
            _check_id(index, step.id, defined, findings)
            defined.add(step.id)
        if step.timeout is not None:
            _check_timeout(index, step.timeout, build, limits, findings)
        if len(step.allow_exit_codes) > limits.allow_exit_codes:
            message = f"build step {index} too many allowExitCodes (max: {limits.allow_exit_codes})"
            findings.error("V34", f"steps[{index}].allowExitCodes", message)


def _check_command(index: int, step: BuildStep, limits: Limits, findings: Findings) -> None:
    path = f"steps[{index}]"
    if not step.name:
        findings.error("V22", path, f"build step {index} must specify name")
    elif len(step.name) > limits.step_name:
        message = f"build step {index} name too long (max: {limits.step_name})"
        findings.error("V23", f"{path}.name", message)
    if len(step.args) > limits.args:
        message = f"build step {index} too many args (max: {limits.args})"
        findings.error("V24", f"{path}.args", message)
    for position, arg in enumerate(step.args):
        if len(arg) > limits.portable_arg_length:
            _check_long_arg(index, position, len(arg), limits, findings)
    if len(step.dir) > limits.dir_length:
        message = f"build step {index} dir too long (max: {limits.dir_length})"
        findings.error("V26", f"{path}.dir", message)
    if step.script:
        _check_script(index, step, limits, findings)


def _check_long_arg(
    index: int, position: int, length: int, limits: Limits, findings: Findings
) -> None:
    path = f"steps[{index}].args[{position}]"
    if length > limits.arg_length:
        message = f"build step {index} arg {position} too long (max: {limits.arg_length})"
        findings.error("V25", path, message)
    else:
        limit = limits.portable_arg_length
        message = f"build step {index} arg {position}: older builders take {limit} characters"
        findings.warning("V25", path, message)


def _check_script(index: int, step: BuildStep, limits: Limits, findings: Findings) -> None:
    path = f"steps[{index}].script"
    if step.args or step.entrypoint:
        findings.error(
            "V35",
            path,
            f"build step {index}: script cannot be combined with args or entrypoint",
            "name the interpreter in the script's first line (#!/bin/bash)",
        )
    size = len(step.script)
    if size > limits.portable_script_length:
        if len(step.script.encode("utf-8", "surrogatepass")) > limits.script_bytes:
            message = f"build step {index} script too long (max: {limits.script_bytes} bytes)"
            findings.error("V36", path, message)
        else:
            limit = limits.portable_script_length
            message = f"build step {index} script is longer than {limit} characters"
            findings.warning("V36", path, message, "the hosted service may refuse it")
    first_line = step.script.partition("\n")[0]
    if first_line.startswith("#!") and first_line.endswith("\r"):
        findings.warning(
            "script-crlf",
            path,
            f"build step {index}: the script's first line ends in a carriage return",
            "save it with Unix line ends, else its interpreter is not found",
        )


def _label(index: int, step: BuildStep) -> str:
    return f'build step #{index} - "{step.id}"' if step.id else f"build step #{index}"


def _check_waits(
    index: int, step: BuildStep, defined: set[str], all_ids: set[str], findings: Findings
) -> None:
    for position, name in enumerate(step.wait_for):
        if name == "-" or name in defined:
            continue
        if name == step.id:
            hint = "a step can't wait for itself"
        elif name in all_ids:
            hint = f'the step "{name}" comes later: move it before this one'
        else:
            hint = findings.did_you_mean(name, defined) or "give an earlier step that id"
        message = f'{_label(index, step)} depends on "{name}", which has not been defined'
        findings.error("V27", f"steps[{index}].waitFor[{position}]", message, hint)


def _check_id(index: int, step_id: str, defined: set[str], findings: Findings) -> None:
    label = f'build step #{index} - "{step_id}"'
    if step_id == "-":
        message = f'{label}: the ID cannot be "-" which is reserved for "wait for nothing"'
        findings.error("V29", f"steps[{index}].id", message)
    elif step_id in defined:
        findings.error("V28", f"steps[{index}].id", f"{label}: the ID is not unique")


def _check_timeout(
    index: int, timeout: timedelta, build: Build, limits: Limits, findings: Findings
) -> None:
    path = f"steps[{index}].timeout"
    # An unset build timeout counts as the maximum here, as in the local builder.
    build_timeout = build.timeout or limits.timeout
    if timeout < _ZERO:
        message = f"invalid .timeout in build step #{index}: build step timeout must be >0"
        findings.error("V31", path, message)
    elif timeout > limits.timeout:
        message = f"build step #{index} timeout exceeds the timeout limit of 24h0m0s"
        findings.error("V32", path, message)
    elif build_timeout > _ZERO and timeout > build_timeout:
        message = (
            f"build step #{index} timeout {timeout.total_seconds():g}s "
            f"must be <= build timeout {build_timeout.total_seconds():g}s"
        )
        findings.error("V33", path, message)


def check_volumes(build: Build, findings: Findings) -> None:
    """Check global and step volumes: V50-V59."""
    global_volumes = build.options.volumes if build.options else ()
    if global_volumes:
        if len(build.steps) < 2:
            message = "Global volumes defined but there are fewer than two steps"
            findings.error("V50", "options.volumes", message)
        _check_volume_list("options.volumes", global_volumes, findings)
    names = {volume.name for volume in global_volumes}
    paths = {clean_path(volume.path) for volume in global_volumes}
    users: dict[str, list[str]] = {}
    for index, step in enumerate(build.steps):
        if not step.volumes:
            continue
        where = f"steps[{index}].volumes"
        _check_volume_list(where, step.volumes, findings)
        for position, volume in enumerate(step.volumes):
            place = f"{where}[{position}]"
            label = _label(index, step)
            if volume.name in names:
                message = f'{label}: volume name "{volume.name}" conflicts with global volume'
                findings.error("V57", f"{place}.name", message)
            if clean_path(volume.path) in paths:
                message = f'{label}: volume path "{volume.path}" conflicts with global volume'
                findings.error("V58", f"{place}.path", message)
            users.setdefault(volume.name, []).append(place)
    for name, places in users.items():
        steps_using = {place.partition("]")[0] for place in places}
        if len(steps_using) == 1 and name not in names:
            findings.error(
                "V59",
                f"{places[0]}.name",
                f'Volume "{name}" is only used by one step',
                "a volume carries files between steps: mount it in another step, or drop it",
            )


def _check_volume_list(where: str, volumes: tuple[Volume, ...], findings: Findings) -> None:
    names: set[str] = set()
    paths: set[str] = set()
    for index, volume in enumerate(volumes):
        place = f"{where}[{index}]"
        if re.fullmatch(_VOLUME_NAME, volume.name) is None:
            message = f'volume name "{shortened(volume.name)}" does not match "^{_VOLUME_NAME}$"'
            findings.error("V51", f"{place}.name", message)
        elif volume.name in names:
            message = f'volume name "{volume.name}" is defined in more than one volume entry'
            findings.error("V55", f"{place}.name", message)
        names.add(volume.name)
        path = clean_path(volume.path)
        _check_volume_path(f"{place}.path", volume.path, path, findings)
        if path in paths:
            message = f'volume path "{volume.path}" is defined in more than one volume entry'
            findings.error("V56", f"{place}.path", message)
        paths.add(path)


def _check_volume_path(place: str, given: str, path: str, findings: Findings) -> None:
    if not path.startswith("/"):
        findings.error("V52", place, f'path "{given}" is not valid, must be absolute')
    elif path in RESERVED_VOLUME_PATHS:
        findings.error("V53", place, f'path "{given}" is reserved')
    elif path.startswith("/cloudbuild/"):
        findings.error("V54", place, f'volume path "{given}" cannot start with /cloudbuild/')


def check_environment(build: Build, limits: Limits, findings: Findings) -> None:
    """Check plain variables of the build and of each step: V30, V37, V38."""
    if build.options and build.options.env:
        prefix = "invalid .options.env field:"
        _check_env_list("options.env", prefix, "", build.options.env, limits, findings)
    for index, step in enumerate(build.steps):
        if step.env:
            prefix = f"invalid .steps.env field: build step {index}"
            label = f' - "{step.id}"' if step.id else ""
            subject = f"build step #{index}{label}: "
            _check_env_list(f"steps[{index}].env", prefix, subject, step.env, limits, findings)


def _check_env_list(
    path: str,
    prefix: str,
    subject: str,
    entries: tuple[str, ...],
    limits: Limits,
    findings: Findings,
) -> None:
    if len(entries) > limits.env:
        findings.error("V37", path, f"{prefix} too many envs (max: {limits.env})")
    for position, entry in enumerate(entries):
        if entry.find("=") < 1:
            findings.error(
                "V30",
                f"{path}[{position}]",
                f'{subject}the Env entry "{shortened(entry)}" must be of the form "KEY=VALUE"',
                f"write {entry.replace(':', '=', 1).replace('= ', '=')}"
                if ":" in entry and len(entry) < len(shortened(entry)) + 1
                else "",
            )
        if len(entry) > limits.env_length:
            message = f"{prefix} env {position} too long (max: {limits.env_length})"
            findings.error("V38", f"{path}[{position}]", message)


def check_secrets(build: Build, limits: Limits, findings: Findings) -> None:
    """Check secrets: definitions, uses, and their agreement: V39-V49."""
    defined = _check_definitions(build, limits, findings)
    used = _check_uses(build, findings)
    for name, path in used.items():
        if name not in defined:
            message = f'secretEnv "{shortened(name)}" is used without being defined'
            hint = findings.did_you_mean(name, defined) or "define it in availableSecrets"
            findings.error("V45", path, message, hint)
    for name, path in defined.items():
        if name not in used:
            message = f'secretEnv "{shortened(name)}" is defined without being used'
            findings.error("V46", path, message, "list it in the secretEnv of a step")
    if used:
        _check_overlap(build, findings)


class _Definitions:
    """The secret variables that the build defines, with the path of the first definition."""

    def __init__(self, limits: Limits, findings: Findings) -> None:
        self.paths: dict[str, str] = {}
        self.count = 0
        self._limits = limits
        self._findings = findings

    def define(self, name: str, path: str) -> None:
        """Add a variable: V44."""
        self.count += 1
        if name in self.paths:
            message = f'secretEnv "{shortened(name)}" is defined more than once'
            self._findings.error("V44", path, message)
        self.paths.setdefault(name, path)

    def define_encrypted(
        self, path: str, entries: Sequence[tuple[str, dict[str, bytes]]], map_name: str
    ) -> None:
        """Add variables that are encrypted with KMS keys: V42, V43, V48."""
        keys: set[str] = set()
        for index, (key_name, ciphertexts) in enumerate(entries):
            place = f"{path}[{index}]"
            if key_name in keys:
                message = f'kmsKeyName "{shortened(key_name)}" is used by more than one secret'
                hint = "put all its values in one entry"
                self._findings.error("V42", f"{place}.kmsKeyName", message, hint)
            keys.add(key_name)
            if not ciphertexts:
                self._findings.error("V43", place, f"secret {index} defines no secretEnvs")
            for name, ciphertext in ciphertexts.items():
                self.define(name, f"{place}.{map_name}.{name}")
                if len(ciphertext) > self._limits.secret_value_bytes:
                    limit = self._limits.secret_value_bytes
                    message = f'secretEnv value for "{shortened(name)}" cannot exceed {limit}B'
                    self._findings.error("V48", f"{place}.{map_name}.{name}", message)


def _check_definitions(build: Build, limits: Limits, findings: Findings) -> dict[str, str]:
    definitions = _Definitions(limits, findings)
    available = build.available_secrets
    for index, version in enumerate(available.secret_manager if available else ()):
        path = f"availableSecrets.secretManager[{index}]"
        if version.env:
            definitions.define(version.env, f"{path}.env")
        else:
            findings.error("V43", path, f"secret {index} defines no secretEnvs")
    older = [(secret.kms_key_name, secret.secret_env) for secret in build.secrets]
    definitions.define_encrypted("secrets", older, "secretEnv")
    if available:
        inline = [(secret.kms_key_name, secret.env_map) for secret in available.inline]
        definitions.define_encrypted("availableSecrets.inline", inline, "envMap")
    if definitions.count > limits.secret_values:
        message = f"build defines more than {limits.secret_values} secret values"
        findings.error("V47", "availableSecrets" if available else "secrets", message)
    return definitions.paths


def _check_uses(build: Build, findings: Findings) -> dict[str, str]:
    """Return every secret variable that a step gets, with the path of its first use."""
    used: dict[str, str] = {}
    everywhere: set[str] = set()
    for position, name in enumerate(build.options.secret_env if build.options else ()):
        path = f"options.secretEnv[{position}]"
        if name in everywhere:
            message = f'Build uses global secretEnv "{shortened(name)}" more than once'
            findings.error("V39", path, message)
        everywhere.add(name)
        used.setdefault(name, path)
    for index, step in enumerate(build.steps):
        here: set[str] = set()
        for position, name in enumerate(step.secret_env):
            path = f"steps[{index}].secretEnv[{position}]"
            if name in here:
                message = f'Step {index} uses the secretEnv "{shortened(name)}" more than once'
                findings.error("V41", path, message)
            elif name in everywhere:
                message = f'Step {index} uses the global secretEnv "{shortened(name)}"'
                findings.error("V40", path, message, "every step has it already: drop it here")
            here.add(name)
            used.setdefault(name, path)
    return used


def _check_overlap(build: Build, findings: Findings) -> None:
    """Check that no name is both secret and plain in a step: V49."""
    options = build.options
    global_secrets = set(options.secret_env) if options else set()
    global_env = [entry.partition("=")[0] for entry in options.env] if options else []
    global_clash = global_secrets.intersection(global_env)
    for index, step in enumerate(build.steps):
        secrets = global_secrets.union(step.secret_env)
        if not secrets:
            continue
        for position, entry in enumerate(step.env):
            name = entry.partition("=")[0]
            if name in secrets:
                message = f'step {index} has secret and non-secret env "{shortened(name)}"'
                findings.error("V49", f"steps[{index}].env[{position}]", message)
        clash = set(step.secret_env).intersection(global_env)
        if index == 0:
            clash |= global_clash
        for name in sorted(clash):
            path = f"options.env[{global_env.index(name)}]"
            message = f'step {index} has secret and non-secret env "{shortened(name)}"'
            findings.error("V49", path, message)
