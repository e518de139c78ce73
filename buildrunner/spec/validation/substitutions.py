"""Rules about substitutions and references to them: V11-V19, and rules for dynamic ones."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

from buildrunner.spec.model.build import Build, BuildOptions, SubstitutionOption
from buildrunner.spec.substitutions.expressions import EXPRESSION_WORK, BadExpression, Budget
from buildrunner.spec.substitutions.expressions import names_in as names_of
from buildrunner.spec.substitutions.fields import templates
from buildrunner.spec.substitutions.templates import Cycle, expand, find_references, names_in
from buildrunner.spec.substitutions.variables import (
    BUILT_IN,
    FIXED,
    PULL_REQUEST,
    USER_VARIABLE,
    is_user_variable,
    may_be_set,
)
from buildrunner.spec.validation.build import Limits
from buildrunner.spec.validation.findings import Findings, shortened

# Variables of a step's shell: $PATH in an argument most likely means the shell's.
_SHELL_VARIABLES: Final = frozenset({"BUILDER_OUTPUT", "HOME", "PATH", "PWD", "USER", "HOSTNAME"})

# Compiled on first use, since most builds have none of them.
_ESCAPED = r"\$\{?([A-Z_][A-Z0-9_]*)"
_EXPRESSION = r"\$\{[#!]?([A-Z_][A-Z0-9_]*)[^A-Za-z0-9_}]"
_WORD = r"[A-Z_][A-Z0-9_]*"
_FORMAT: Final = f'"^{USER_VARIABLE.pattern}$"'


def check_substitution_maps(
    build: Build,
    given: Mapping[str, str],
    limits: Limits,
    findings: Findings,
    *,
    from_config_file: bool,
) -> None:
    """Check keys and values of ``substitutions`` and of values from outside: V11-V16.

    Args:
        build: the build with its own map.
        given: values from the command line or a trigger.
        limits: the limits.
        findings: collects problems.
        from_config_file: the build is in a file, in which built-in names may not be set.
    """
    count = len(build.substitutions.keys() | given.keys()) if given else len(build.substitutions)
    if count > limits.substitutions:
        message = f"number of substitutions {count} exceeded (max: {limits.substitutions})"
        findings.error("V11", "substitutions", message)
    elif count > limits.portable_substitutions:
        message = f"older builders take no more than {limits.portable_substitutions} substitutions"
        findings.warning("V11", "substitutions", message)
    for key, value in build.substitutions.items():
        path = f"substitutions.{key}"
        _check_entry(path, key, value, limits, findings, in_file=from_config_file)
    for key, value in given.items():
        _check_entry(f"--substitutions {key}", key, value, limits, findings, in_file=False)


def _check_entry(
    path: str, key: str, value: str, limits: Limits, findings: Findings, *, in_file: bool
) -> None:
    shown = shortened(key)
    if key in FIXED:
        message = f'substitution key "{shown}" is a built-in substitution that can\'t be overridden'
        findings.error("V16", path, message, "drop it: the service sets it")
    elif not may_be_set(key):
        message = f'substitution key "{shown}" does not respect format {_FORMAT}'
        if not in_file:
            message += " and is not an overridable built-in substitutions"
        hint = f'name it "{_user_name(key)}"' if _user_name(key) else ""
        findings.error("V15" if in_file else "V14", path, message, hint)
    elif in_file and not is_user_variable(key):
        message = f'substitution key "{shown}" does not respect format {_FORMAT}'
        hint = f"built-in names are set from outside: --substitutions={key}=..."
        findings.error("V15", path, message, hint)
    # A character takes at most four bytes in UTF-8.
    if 4 * len(key) > limits.substitution_key_bytes:
        length = len(key.encode("utf-8", "surrogatepass"))
        if length > limits.substitution_key_bytes:
            limit = limits.substitution_key_bytes
            findings.error("V12", path, f'substitution key "{shown}" too long (max: {limit})')
    if 4 * len(value) > limits.substitution_value_bytes:
        length = len(value.encode("utf-8", "surrogatepass"))
        if length > limits.substitution_value_bytes:
            limit = limits.substitution_value_bytes
            message = f'substitution value "{shortened(value)}" too long (max: {limit})'
            findings.error("V13", path, message)


def _user_name(key: str) -> str:
    """Return the valid key similar to ``key``; empty if there is none."""
    name = "_" + key.lstrip("_").upper().replace("-", "_").replace(".", "_")
    return name if is_user_variable(name) and len(name) < 100 else ""


def without_own_values(user: Mapping[str, str]) -> dict[str, str]:
    """Return the variables without those whose value refers to themselves (``_X: ${_X}``).

    Source: configs in use write this for values that their trigger sets.
    """
    return {
        name: value
        for name, value in user.items()
        if not is_user_variable(name) or name not in names_in(value, dynamic=True)
    }


def check_references(
    build: Build,
    user: Mapping[str, str],
    options: BuildOptions,
    findings: Findings,
    budget: Budget,
    *,
    assumed: bool,
) -> bool:
    """Check that references and values agree: V17-V19, expressions, cycles.

    Args:
        build: the build before substitution.
        user: all user values, from the build and from outside.
        options: the effective options (`effective_options`).
        findings: collects problems.
        budget: the work that bash-style expressions may take.
        assumed: the values from outside are unknown.

    Returns:
        Whether every template can be substituted.
    """
    fields = templates(build)
    if not fields and not user:
        return True
    check = _ReferenceCheck(user, options, findings, budget)
    for path, text in fields:
        check.read(path, text)
    for name, value in user.items():
        if "$" in value and is_user_variable(name):
            check.read_value(name, value)
    check.report(build, assumed=assumed)
    return check.good


class _ReferenceCheck:
    """One pass over all templates of a build."""

    def __init__(
        self,
        user: Mapping[str, str],
        options: BuildOptions,
        findings: Findings,
        budget: Budget,
    ) -> None:
        self.good = True
        self._budget = budget
        self._user = user
        self._dynamic = options.dynamic_substitutions
        self._loose = options.substitution_option is SubstitutionOption.ALLOW_LOOSE
        self._findings = findings
        self._used: set[str] = set()
        self._missing: dict[str, str] = {}
        # Variables in text that only looks like a reference to them.
        self._escaped: set[str] = set()
        self._unevaluated: set[str] = set()

    def read(self, path: str, text: str) -> None:
        """Record every reference in one template, and report the invalid ones."""
        for reference in find_references(text, dynamic=self._dynamic):
            expression = reference.expression
            if expression is None:
                escaped = re.match(_ESCAPED, text[reference.end - 1 : reference.end + 120])
                if escaped:
                    self._escaped.add(escaped.group(1))
                continue
            if expression.operator and not self._affords_one_more():
                return
            written = text[reference.start : reference.end]
            if expression.error and (not expression.name or self._is_known(expression.name)):
                self.good = False
                message = f"{shortened(written)} can't be evaluated: {expression.error}"
                hint = f"write ${shortened(written)} if it is the shell's"
                self._findings.error("expression", path, message, hint)
            for name in names_of(expression):
                self._note(name, path, written)
        if not self._dynamic and "${" in text:
            self._read_unevaluated(path, text)

    def _note(self, name: str, path: str, written: str) -> None:
        if name in self._user:
            self._used.add(name)
        elif is_user_variable(name):
            self._missing.setdefault(name, path)
        elif name and name not in BUILT_IN:
            self.good = False
            message = f'key in the template "{name}" is not a valid built-in substitution'
            self._findings.error("V18", path, message, self._invalid_hint(name, written))

    def _affords_one_more(self) -> bool:
        try:
            self._budget.spend(EXPRESSION_WORK)
        except BadExpression:
            self.good = False  # reported once, after all checks
            return False
        return True

    def _is_known(self, name: str) -> bool:
        return name in self._user or name in BUILT_IN or is_user_variable(name)

    def _invalid_hint(self, name: str, written: str) -> str:
        if f"_{name}" in self._user:
            return f'did you mean "_{name}"?'
        hint = f"write ${shortened(written)} if it is the shell's"
        similar = "" if name in _SHELL_VARIABLES else self._findings.did_you_mean(name, BUILT_IN)
        return f"{similar} Or {hint}" if similar else hint

    def _read_unevaluated(self, path: str, text: str) -> None:
        """Warn about expressions that are plain text because dynamic substitutions are off."""
        for match in re.finditer(_EXPRESSION, text):
            name = match.group(1)
            if text[: match.start()].endswith("$") or not self._is_known(name):
                continue
            self._unevaluated.add(name)
            message = f"{match.group()}... is plain text without dynamic substitutions"
            hint = "set options.dynamicSubstitutions: true to have it evaluated"
            self._findings.warning("not-dynamic", path, message, hint)

    def read_value(self, name: str, value: str) -> None:
        """Record the references in a user variable's own value, or warn that they stay text."""
        path = f"substitutions.{name}"
        if self._dynamic:
            self.read(path, value)
            return
        for reference in find_references(value):
            if reference.expression and self._is_known(reference.expression.name):
                written = value[reference.start : reference.end]
                message = f"{written} is inserted as it stands without dynamic substitutions"
                hint = "set options.dynamicSubstitutions: true to have it replaced"
                self._findings.warning("not-dynamic", path, message, hint)

    def report(self, build: Build, *, assumed: bool) -> None:
        """Report problems that are known only after all templates: V17, V19 and cycles."""
        if self._dynamic and self.good:
            self._check_values(assumed=assumed)
        if self._loose:
            return
        for name, path in self._missing.items():
            self.good = False
            message = f'key in the template "{name}" is not matched in the substitution data'
            self._findings.error("V17", path, message, self._missing_hint(name))
        if _any_automap(build):
            self._used.update(filter(is_user_variable, self._user))
        unused = [name for name in self._user if name not in self._used and may_be_set(name)]
        in_scripts = _words_of_scripts(build) if unused else set()
        for name in unused:
            path = f"substitutions.{name}"
            if name not in build.substitutions:
                path = f"--substitutions {name}"
            message = f'key "{name}" in the substitution data is not matched in the template'
            self._findings.error("V19", path, message, self._unused_hint(name, in_scripts))

    def _check_values(self, *, assumed: bool) -> None:
        values = without_own_values(self._user) if assumed else self._user
        for name in self._user.keys() - values.keys():
            message = f"{name} refers to itself, so it has no value unless the build is given one"
            hint = f"a trigger or --substitutions={name}=... gives it one"
            self._findings.warning("cycle", f"substitutions.{name}", message, hint)
        try:
            built_in = dict.fromkeys(BUILT_IN, "")
            expand(values, built_in, is_template=is_user_variable, budget=self._budget)
        except Cycle as error:
            self.good = False
            name = error.names[0]
            hint = f"give {name} a value that does not depend on itself"
            self._findings.error("cycle", f"substitutions.{name}", str(error), hint)
        except BadExpression:
            # Its evaluation depends on values that only a run knows.
            pass

    def _missing_hint(self, name: str) -> str:
        if name in PULL_REQUEST:
            return (
                "only builds of pull requests have it: give it a default in substitutions, or use "
                "--triggered, which leaves it empty as a trigger does"
            )
        return self._findings.did_you_mean(name, self._user) or (
            f"give it a value in substitutions or with --substitutions={name}=..., or use "
            f"--triggered, which leaves it empty as a trigger does; write $${name} if it is the "
            "shell's"
        )

    def _unused_hint(self, name: str, in_scripts: set[str]) -> str:
        if name in self._unevaluated:
            return f"${{{name}...}} is evaluated only with options.dynamicSubstitutions: true"
        if name in self._escaped:
            return f"$${name} is no use of it: write ${name}"
        if name in in_scripts:
            return (
                "scripts are not substituted: set automapSubstitutions: true, or pass it by "
                f"env: ['{name}=${name}']"
            )
        return "use it, drop it, or set options.substitutionOption: ALLOW_LOOSE"


def _any_automap(build: Build) -> bool:
    if build.options is not None and build.options.automap_substitutions:
        return any(step.automap_substitutions is not False for step in build.steps)
    return any(step.automap_substitutions for step in build.steps)


def _words_of_scripts(build: Build) -> set[str]:
    return {word for step in build.steps for word in re.findall(_WORD, step.script)}
