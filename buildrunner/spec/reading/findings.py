"""Problems found by a decoder, each with its place, and suggestions for unknown words."""

from __future__ import annotations

import enum
import re
from collections.abc import Iterable, Iterator

from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from buildrunner.problem import Problem, Severity, nearest
from buildrunner.spec.model.message import Message, fields_of
from buildrunner.spec.model.stands import Stand, stand_of
from buildrunner.spec.reading.nodes import is_plain, position

# Keys below these are the user's own and keep their spelling.
_VERBATIM = frozenset({"substitutions", "secretEnv", "envMap", "timing", "fileHashes"})

_PART = re.compile(r"\[(\d+)\]|([^.\[\]]+)")


def shorten(text: str) -> str:
    """Return ``text`` on one line, short enough for a message."""
    line = text.strip().replace("\n", " ")
    return line if len(line) <= 40 else f"{line[:37]}..."


def camel_case(key: str) -> str:
    """Return ``key`` with every ``_x`` as ``X``, and the rest of that word in lower case.

    Leading underscores stay. Source: gcloud's conversion of keys in a config file.
    """
    stripped = key.lstrip("_")
    if "_" not in stripped:
        return key
    first, *others = stripped.split("_")
    lead = key[: len(key) - len(stripped)]
    return lead + first + "".join(word.capitalize() for word in others)


def paths_under(root: Node) -> dict[int, str]:
    """Return the path of every node under ``root``, by the node's id; keys have their value's path.

    A node shared by several aliases has the path of its first place.
    """
    paths: dict[int, str] = {}
    # Nodes to visit, each with its path, and whether its keys are the user's own.
    pending: list[tuple[Node, str, bool]] = [(root, "", False)]
    while pending:
        node, path, verbatim = pending.pop()
        if id(node) in paths:
            continue
        paths[id(node)] = path
        below = list(_below(node, path, verbatim, paths))
        pending.extend(reversed(below))
    return paths


def _below(
    node: Node, path: str, verbatim: bool, paths: dict[int, str]
) -> Iterator[tuple[Node, str, bool]]:
    if isinstance(node, SequenceNode):
        for index, item in enumerate(node.value):
            # The items of a merge key's list belong to the mapping itself.
            yield item, f"{path}[{index}]", False
    elif isinstance(node, MappingNode):
        for key, value in node.value:
            if is_merge_key(key):
                yield from _merged(value, path, verbatim)
                continue
            name = _key_text(key, verbatim)
            below = f"{path}.{name}" if path else name
            paths.setdefault(id(key), below)
            yield value, below, name in _VERBATIM


def _merged(value: Node, path: str, verbatim: bool) -> Iterator[tuple[Node, str, bool]]:
    sources = value.value if isinstance(value, SequenceNode) else [value]
    for source in sources:
        yield source, path, verbatim


def is_merge_key(key: Node) -> bool:
    """Return whether ``key`` is an unquoted ``<<``."""
    return isinstance(key, ScalarNode) and key.value == "<<" and is_plain(key)


def locate(root: Node | None, path: str) -> tuple[int, int]:
    """Return line and column of ``path``, or of its nearest existing ancestor.

    Args:
        root: root of the document; None gives (0, 0).
        path: as in `Problem.path`: camelCase, list items in brackets.
    """
    if root is None:
        return 0, 0
    node, verbatim = root, False
    for index, name in _PART.findall(path):
        found = _item(node, int(index)) if index else _value(node, name, verbatim, ())
        if found is None:
            break
        node, verbatim = found, name in _VERBATIM
    return position(node)


def _item(node: Node, index: int) -> Node | None:
    if isinstance(node, SequenceNode):
        return node.value[index] if index < len(node.value) else None
    # A single value in place of a list is a list of one.
    return node if index == 0 and isinstance(node, ScalarNode) else None


def _value(node: Node, name: str, verbatim: bool, seen: tuple[int, ...]) -> Node | None:
    if not isinstance(node, MappingNode) or id(node) in seen:
        return None
    merges: list[Node] = []
    for key, value in node.value:
        if is_merge_key(key):
            merges.extend(value.value if isinstance(value, SequenceNode) else [value])
        elif _key_text(key, verbatim) == name:
            found: Node = value
            return found
    for merged in merges:
        inherited = _value(merged, name, verbatim, (*seen, id(node)))
        if inherited is not None:
            return inherited
    return None


def _key_text(key: Node, verbatim: bool) -> str:
    if not isinstance(key, ScalarNode):
        return "?"
    text: str = key.value
    return text if verbatim else camel_case(text)


MAX_PROBLEMS = 100


class DecodingProblems:
    """The problems of one text.

    A problem is stored with its node; its path is computed at the end, so that a config
    without problems never computes paths. After `MAX_PROBLEMS` problems, further ones are only
    counted, which keeps hostile input cheap.

    Attributes:
        file: name of the file, as given by the user.
        merges: whether the text may have merge keys (``<<``).
    """

    def __init__(self, file: str = "", *, merges: bool = False) -> None:
        self.file = file
        self.merges = merges
        self._found: list[tuple[Node, Problem]] = []
        self._more = 0
        self._more_errors = False

    @property
    def full(self) -> bool:
        """Return whether further problems are only counted, and need no suggestions."""
        return len(self._found) >= MAX_PROBLEMS

    def error(self, node: Node, message: str, *, rule: str, hint: str = "") -> None:
        """Add a problem that makes the config unusable."""
        self._add(node, message, rule, hint, Severity.ERROR)

    def warning(self, node: Node, message: str, *, rule: str, hint: str = "") -> None:
        """Add a problem that does not make the config unusable."""
        self._add(node, message, rule, hint, Severity.WARNING)

    def problems(self, root: Node | None) -> tuple[Problem, ...]:
        """Return all problems under ``root`` in the order of the text, with their paths."""
        if not self._found or root is None:
            return ()

        paths = paths_under(root)
        problems = []
        for node, found in self._found:
            line, column = position(node)
            problems.append(
                Problem(
                    found.message,
                    path=paths.get(id(node), ""),
                    file=self.file,
                    line=line,
                    column=column,
                    hint=found.hint,
                    rule=found.rule,
                    severity=found.severity,
                )
            )
        problems.sort(key=lambda problem: (problem.line, problem.column))
        if self._more:
            last = problems[-1]
            problems.append(
                Problem(
                    f"{self._more} more problems are not shown",
                    file=self.file,
                    line=last.line,
                    column=last.column,
                    rule="too-many-problems",
                    severity=Severity.ERROR if self._more_errors else Severity.WARNING,
                )
            )
        return tuple(problems)

    def _add(self, node: Node, message: str, rule: str, hint: str, severity: Severity) -> None:
        if self.full:
            self._more += 1
            self._more_errors |= severity is Severity.ERROR
        else:
            self._found.append((node, Problem(message, hint=hint, rule=rule, severity=severity)))


def report_unknown_key(key: Node, message: type[Message], findings: DecodingProblems) -> None:
    """Report a key that is no field of ``message``."""
    if not isinstance(key, ScalarNode):
        findings.error(key, "a key must be a single word", rule="wrong-type")
        return
    if findings.full:
        findings.error(key, "", rule="unknown-field")
        return
    verdict = stand_of(message, camel_case(key.value))
    if verdict is not None and verdict.stand is Stand.OUTPUT_ONLY:
        text = "this field is set by the service; the value given here is ignored"
        findings.warning(key, text, rule="output-only", hint="remove it")
    elif verdict is not None:
        text = f"{shorten(key.value)} is known to Cloud Build but not supported here"
        findings.error(key, text, rule="unsupported-field", hint=verdict.reason)
    else:
        name = message.__name__.rstrip("_")
        text = f"unknown field {shorten(key.value)!r} in {name}"
        findings.error(key, text, rule="unknown-field", hint=_hint_for_key(key.value, message))


def report_unknown_value(
    node: ScalarNode, found: type[enum.Enum], findings: DecodingProblems
) -> None:
    """Report a value that is no member of the enum ``found``."""
    if findings.full:
        findings.error(node, "", rule="enum-value")
        return
    verdict = stand_of(found, node.value)
    if verdict is not None:
        text = f"{shorten(node.value)} is known to Cloud Build but not supported here"
        findings.error(node, text, rule="unsupported-value", hint=verdict.reason)
        return
    names = list(found.__members__)
    hint = suggestion(node.value.upper(), names) or f"use one of {', '.join(names)}"
    text = f"{shorten(node.value)!r} is not one of the values of this field"
    findings.error(node, text, rule="enum-value", hint=hint)


def suggestion(word: str, known: Iterable[str]) -> str:
    """Return ``did you mean waitFor?`` if a known word is similar to ``word``, else empty."""
    if len(word) > 40:
        return ""
    near = nearest(word, known, cutoff=0.7)
    return f"did you mean {near}?" if near else ""


def _hint_for_key(key: str, message: type[Message]) -> str:
    hint = suggestion(camel_case(key), [field.json for field in fields_of(message)])
    if not hint and key.startswith(("x-", ".")):
        hint = "Cloud Build has no extension fields: put the anchor where its value is first used"
    return hint
