"""Every rule that a problem can name: found in the code, explained in rules.toml."""

from __future__ import annotations

import ast
import tomllib
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

import buildrunner
from buildrunner.spec.reading import nodes
from buildrunner.spec.substitutions.templates import MAX_SUBSTITUTED_LENGTH
from buildrunner.spec.validation.build import DEFAULT_LIMITS
from pages.markdown import code, table

if TYPE_CHECKING:
    from collections.abc import Iterator

ERROR = "error"
WARNING = "warning"

_HEAD = """\
# Validation rules

`buildrunner validate` prints the rule behind each problem, in brackets or in the field `rule`. `buildrunner
submit` checks the same rules. An error stops the build; a warning does so only with `--strict`.

A problem may disappear once a variable has a value (`$TAG_NAME`, `$_X` with `ALLOW_LOOSE`). `validate` reports it as a
warning, since a trigger or `--substitutions` may set the value. `submit` reports it as an error.

`V03` to `V71` are the rules of the hosted service and of its local builder, in their order. The rules with names concern
the reading of a file, and points that neither of the two defines clearly.

All problems of a config come at once, in the order of the file. Limits are fixed. If the hosted
service and the archived local builder have different limits, the larger is enforced, and the smaller is a
warning.

"""


class _Use(msgspec.Struct):
    rule: str
    severity: str


def texts(path: Path) -> dict[str, dict[str, str]]:
    """Section -> rule -> text, as rules.toml has them, limits not filled in."""
    with path.open("rb") as file:
        return tomllib.load(file)


def page(path: Path) -> str:
    """The page.

    Args:
        path: rules.toml.
    """
    found = rules_in_code()
    limits = _limits()
    parts = [_HEAD.rstrip() + "\n"]
    for title, entries in texts(path).items():
        rows = [
            (code(rule), " or ".join(found.get(rule, ())), text.format(**limits))
            for rule, text in entries.items()
        ]
        parts.append(f"\n## {title}\n\n{table(('rule', 'is', 'what it checks'), rows)}")
    parts.append(
        "\nV01 and V02 of the original are `not-a-mapping` and `duration` here: they are found while "
        "the file is read.\n"
    )
    return "".join(parts)


def rules_in_code() -> dict[str, tuple[str, ...]]:
    """Every rule that the code can report, with what it may be: error, warning, or both."""
    found: dict[str, set[str]] = {}
    package = Path(buildrunner.__file__).parent
    for module in sorted(package.rglob("*.py")):
        for use in _uses(ast.parse(module.read_text())):
            found.setdefault(use.rule, set()).add(use.severity)
    return {rule: tuple(sorted(severities)) for rule, severities in found.items()}


def _uses(tree: ast.Module) -> Iterator[_Use]:
    passed_on = _rules_passed_on(tree)
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        severity = _severity(node)
        if severity:
            for rule in _rules_of(node, passed_on):
                yield _Use(rule, severity)


def _severity(call: ast.Call) -> str:
    name = _called(call)
    if name == "Problem":
        given = next((k.value for k in call.keywords if k.arg == "severity"), None)
        return WARNING if given is not None and "WARNING" in ast.unparse(given) else ERROR
    return {"error": ERROR, "warning": WARNING, "wrong_type": ERROR}.get(name, "")


def _called(call: ast.Call) -> str:
    """The name of the function or method that is called."""
    return str(getattr(call.func, "attr", "") or getattr(call.func, "id", ""))


def _rules_of(call: ast.Call, passed_on: dict[str, set[str]]) -> set[str]:
    """The rules of a call: by keyword, or the first argument of `Findings.error` of the checks."""
    keyword = next((k.value for k in call.keywords if k.arg == "rule"), None)
    place = keyword if keyword is not None else (call.args[0] if call.args else None)
    if place is None:
        return set()
    if isinstance(place, ast.Name):
        return passed_on.get(place.id, set())
    if keyword is None and not _is_rule_first(call):
        return set()
    return _words(place)


def _is_rule_first(call: ast.Call) -> bool:
    return isinstance(call.func, ast.Attribute) and "indings" in ast.unparse(call.func.value)


def _words(place: ast.expr) -> set[str]:
    """The rules that an expression can give: a literal, or either branch of ``a if x else b``."""
    if isinstance(place, ast.IfExp):
        return _words(place.body) | _words(place.orelse)
    return {place.value} if isinstance(place, ast.Constant) and place.value else set()


def _rules_passed_on(tree: ast.Module) -> dict[str, set[str]]:
    """Rules that reach a call by a variable: assigned to it, or passed as ``rule=`` to a private function."""
    passed: dict[str, set[str]] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            passed.setdefault(node.targets[0].id, set()).update(_words(node.value))
        if isinstance(node, ast.Call) and _called(node).startswith("_"):
            given = [k.value for k in node.keywords if k.arg == "rule"]
            for value in given:
                passed.setdefault("rule", set()).update(_words(value))
    return {
        name: {word for word in words if isinstance(word, str)}
        for name, words in passed.items()
        if name == "rule"
    }


def _limits() -> dict[str, Any]:
    found: dict[str, Any] = {}
    for field in msgspec.structs.fields(DEFAULT_LIMITS):
        value = getattr(DEFAULT_LIMITS, field.name)
        if isinstance(value, timedelta):
            value = f"{value.total_seconds() / 3600:g} hours"
        found[field.name] = f"{value:,}" if isinstance(value, int) else value
    found["yaml_bytes"] = f"{nodes.MAX_BYTES // 2**20} MiB"
    found["yaml_nodes"] = f"{nodes.MAX_NODES:,}"
    found["yaml_depth"] = nodes.MAX_DEPTH
    found["substituted"] = f"{MAX_SUBSTITUTED_LENGTH:,}"
    return found
