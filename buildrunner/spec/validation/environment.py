"""Rules about environment variables and secrets: V30, V37-V49."""

from __future__ import annotations

from collections.abc import Sequence

from buildrunner.spec.model.build import Build
from buildrunner.spec.validation.build import Limits
from buildrunner.spec.validation.findings import Findings, shortened


def check_environment(build: Build, limits: Limits, findings: Findings) -> None:
    """Plain variables of the build and of each step: V30, V37, V38."""
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
    """Secrets: what is defined, what is used, and that the two agree: V39-V49."""
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
    """Every secret variable that the build defines, with the path of its first definition."""

    def __init__(self, limits: Limits, findings: Findings) -> None:
        self.paths: dict[str, str] = {}
        self.count = 0
        self._limits = limits
        self._findings = findings

    def define(self, name: str, path: str) -> None:
        """One more variable: V44."""
        self.count += 1
        if name in self.paths:
            message = f'secretEnv "{shortened(name)}" is defined more than once'
            self._findings.error("V44", path, message)
        self.paths.setdefault(name, path)

    def define_encrypted(
        self, path: str, entries: Sequence[tuple[str, dict[str, bytes]]], map_name: str
    ) -> None:
        """Variables that are encrypted with KMS keys: V42, V43, V48."""
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
    """Every secret variable that a step gets, with the path of its first use."""
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
    """A name may be secret or plain in a step, not both: V49."""
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
