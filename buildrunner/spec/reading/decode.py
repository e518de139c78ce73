"""Decodes text or JSON to messages: the only decoder of configs, triggers and request bodies.

Invalid content raises nothing: every problem is returned.

Readers of messages, lists and maps are made from the fields of each message class. Each class
is compiled once, at its first use. A reader visits every node at most once, so the time is
linear in the size of the (already limited) tree.
"""

from __future__ import annotations

import enum
import hashlib
from typing import Any, Generic, TypeVar

from msgspec import Struct
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from buildrunner.problem import Problem, Severity
from buildrunner.spec.model.build import Build
from buildrunner.spec.model.message import LIST, MAP, SCALARS, Field, Message, fields_of, type_named
from buildrunner.spec.model.trigger import BuildTrigger
from buildrunner.spec.reading.findings import (
    DecodingProblems,
    camel_case,
    is_merge_key,
    locate,
    report_unknown_key,
    report_unknown_value,
    shorten,
)
from buildrunner.spec.reading.nodes import IMPLICIT, compose, compose_all, position
from buildrunner.spec.reading.scalars import (
    INTEGER,
    READERS,
    STRING,
    Reader,
    is_null,
    kind_of,
    read_string,
    whole_number,
    wrong_type,
)

M = TypeVar("M", bound="Message")


class Loaded(Struct, Generic[M], frozen=True):
    """A message as far as it could be read, and its problems.

    Attributes:
        value: the message; an unreadable field has its default.
        problems: errors and warnings in the order of the text.
        root: root of the text's node tree, for `locate`; None if there is none.
    """

    value: M
    problems: tuple[Problem, ...]
    root: Any = None

    @property
    def ok(self) -> bool:
        """Return whether there are no errors (there may be warnings)."""
        return all(problem.severity is not Severity.ERROR for problem in self.problems)

    def locate(self, path: str) -> tuple[int, int]:
        """Return line and column (from 1) of a JSON path, or of its nearest ancestor.

        Args:
            path: such as ``steps[2].waitFor[0]``; the place of a missing field is the start of the
                mapping that lacks it. (0, 0) if the value was not read from a text.
        """
        return locate(self.root, path)


class LoadedBuild(Loaded[Build], frozen=True):
    """A build config as far as it could be read, and its problems.

    Attributes:
        file: name of the file; empty for a config from elsewhere.
        sha256: SHA-256 of the file, in hex; empty without a file.
    """

    file: str = ""
    sha256: str = ""

    @property
    def build(self) -> Build:
        """The build."""
        return self.value


def load_build(text: bytes, *, file: str, allow_source: bool = False) -> LoadedBuild:
    """Read a build config (YAML or JSON).

    Args:
        text: content of the file.
        file: its name, for the problems.
        allow_source: accept a ``source`` in it.

    Source: what ``gcloud builds submit`` accepts; its message names the flag ``--no-source``.
    """
    root, problem = compose(text)
    if problem is not None:
        return LoadedBuild(Build(), (_in_file(problem, file),))
    findings = DecodingProblems(file, merges=b"<<" in text)
    if not isinstance(root, MappingNode):
        return LoadedBuild(Build(), (_not_a_mapping(root, file, "build config"),), root)
    build: Build = message_reader(Build, outputs=False)(root, findings) or Build()
    if build.source is not None and not allow_source:
        _refuse_source(root, findings)
    sha256 = hashlib.sha256(text).hexdigest()
    return LoadedBuild(build, findings.problems(root), root, file, sha256)


def load_triggers(text: bytes, *, file: str) -> tuple[Loaded[BuildTrigger], ...]:
    """Read a file of build triggers: one trigger in each document; empty documents are skipped.

    If the text itself is invalid, the last element has that problem.
    """
    roots, problem = compose_all(text)
    reader = message_reader(BuildTrigger, outputs=False)
    loaded: list[Loaded[BuildTrigger]] = []
    for root in roots:
        findings = DecodingProblems(file, merges=b"<<" in text)
        if isinstance(root, MappingNode):
            trigger = reader(root, findings) or BuildTrigger()
            loaded.append(Loaded(trigger, findings.problems(root), root))
        else:
            wrong = _not_a_mapping(root, file, "build trigger")
            loaded.append(Loaded(BuildTrigger(), (wrong,), root))
    if problem is None and not roots:
        problem = _not_a_mapping(None, file, "build trigger")
    if problem is not None:
        loaded.append(Loaded(BuildTrigger(), (_in_file(problem, file),)))
    return tuple(loaded)


def decode_message(message: type[M], value: object, *, outputs: bool = True) -> Loaded[M]:
    """Decode a parsed JSON value (a request body, a stored build) by the same rules.

    Args:
        message: class to read.
        value: the result of `json.loads`.
        outputs: keep the fields that only the service sets; otherwise drop them with a warning.
    """
    from buildrunner.spec.reading.nodes import node_of

    root, problem = node_of(value)
    if problem is not None:
        return Loaded(message(), (problem,))
    findings = DecodingProblems()
    if is_null(root):
        return Loaded(message(), ())
    decoded: M = message_reader(message, outputs=outputs)(root, findings) or message()
    return Loaded(decoded, findings.problems(root), root)


def _refuse_source(root: MappingNode, findings: DecodingProblems) -> None:
    for key, _ in root.value:
        if key.value == "source":
            findings.error(
                key,
                "a config cannot specify source without the flag --no-source",
                rule="source-in-config",
                hint="remove it, or submit with --no-source",
            )


def _not_a_mapping(root: Node | None, file: str, what: str) -> Problem:
    if root is None:
        message = f"the file is empty, but a {what} is wanted"
        return Problem(message, file=file, line=1, column=1, rule="not-a-mapping")
    return Problem(
        f"a {what} is a mapping of fields, but this could not be read as one",
        file=file,
        line=root.start_mark.line + 1,
        column=root.start_mark.column + 1,
        hint="begin it with 'steps:'" if what == "build config" else "write 'key: value' pairs",
        rule="not-a-mapping",
    )


def _in_file(problem: Problem, file: str) -> Problem:
    return Problem(
        problem.message,
        file=file,
        line=problem.line,
        column=problem.column,
        hint=problem.hint,
        rule=problem.rule,
        severity=problem.severity,
    )


def resolve_merges(
    pairs: list[tuple[Node, Node]], findings: DecodingProblems
) -> list[tuple[Node, Node]]:
    """Return ``pairs`` with its merge keys resolved.

    The mapping's own keys win; among merged keys, the first wins. The tree has no cycles and its
    expanded size is limited, so this ends soon.
    """
    own = [pair for pair in pairs if not is_merge_key(pair[0])]
    taken = {_name(key) for key, _ in own}
    merged: list[tuple[Node, Node]] = []
    for key, value in pairs:
        if not is_merge_key(key):
            continue
        for source in value.value if isinstance(value, SequenceNode) else [value]:
            if not isinstance(source, MappingNode):
                message = "a merge key (<<) takes a mapping or a list of mappings"
                findings.error(source, message, rule="yaml-merge")
                continue
            for pair in resolve_merges(source.value, findings):
                name = _name(pair[0])
                if name not in taken:
                    taken.add(name)
                    merged.append(pair)
    return own + merged


def _name(key: Node) -> object:
    return camel_case(key.value) if isinstance(key, ScalarNode) else id(key)


Entry = tuple[str, Reader, Any]


_readers: dict[tuple[type[Message], bool], Reader] = {}


def message_reader(message: type[Message], *, outputs: bool) -> Reader:
    """Return the reader of ``message``.

    Args:
        message: class to read.
        outputs: keep the fields that only the service sets; otherwise drop them with a warning.
    """
    known = _readers.get((message, outputs))
    if known is None:
        known = _readers[message, outputs] = _compile(message, outputs)
    return known


def _compile(message: type[Message], outputs: bool) -> Reader:
    table: dict[str, Entry] = {}
    for field in fields_of(message):
        entry = (field.name, _field_reader(field, message, outputs), field.default)
        table[field.json] = table[field.name] = entry
    groups = [(name, group) for name, group in message.ONEOFS.items() if len(group) > 1]

    def read(node: Node, findings: DecodingProblems) -> Message | None:
        if (type(node) is not MappingNode or node.tag is not IMPLICIT) and not is_mapping(
            node, findings
        ):
            return None
        pairs = node.value if not findings.merges else merged_pairs(node, findings)
        values: dict[str, Any] = {}
        for key, value_node in pairs:
            entry = table.get(key.value) if type(key) is ScalarNode else None
            if entry is None:
                entry = _other_spelling(key, table)
                if entry is None:
                    report_unknown_key(key, message, findings)
                    continue
            name, reader, default = entry
            if name in values:
                _report_repeated(key, pairs, findings)
                continue
            value = reader(value_node, findings)
            values[name] = default if value is None else value
        if groups:
            _check_groups(groups, pairs, values, table, findings)
        return message(**values)

    return read


def _field_reader(field: Field, message: type[Message], outputs: bool) -> Reader:
    if field.name in message.OUTPUT_ONLY and not outputs:
        return _ignore
    reader: Reader
    if field.type_name in SCALARS:
        reader = READERS[field.type_name]
    else:
        reader = _late_reader(field.type_name, message, outputs)
    if field.form == LIST:
        reader = list_reader(reader, field, message)
    elif field.form == MAP:
        reader = map_reader(reader, default="" if field.type_name == "str" else None)
    if field.name in message.REFUSED:
        reader = _refused_reader(reader, field.json, message.REFUSED[field.name])
    return reader


def _late_reader(type_name: str, beside: type[Message], outputs: bool) -> Reader:
    """Return a reader that is compiled, and whose class is imported, at its first use."""
    compiled: Reader | None = None

    def read(node: Node, findings: DecodingProblems) -> Any:
        nonlocal compiled
        if compiled is None:
            found = type_named(type_name, beside)
            if issubclass(found, enum.Enum):
                compiled = enum_reader(found)
            else:
                compiled = message_reader(found, outputs=outputs)
        return compiled(node, findings)

    return read


def _ignore(node: Node, findings: DecodingProblems) -> None:
    if not is_null(node):
        findings.warning(
            node,
            "this field is set by the service; the value given here is ignored",
            rule="output-only",
            hint="remove it",
        )


def _refused_reader(reader: Reader, json: str, reason: str) -> Reader:
    def read(node: Node, findings: DecodingProblems) -> Any:
        value = reader(node, findings)
        if value is not None:
            message = f"{json} is known to Cloud Build but not supported here"
            findings.error(node, message, rule="unsupported-field", hint=reason)
        return value

    return read


def _other_spelling(key: Node, table: dict[str, Entry]) -> Entry | None:
    """Return the field whose camelCase name gcloud would make from ``key``."""
    if type(key) is ScalarNode and "_" in key.value:
        return table.get(camel_case(key.value))
    return None


def _report_repeated(key: Node, pairs: list[tuple[Node, Node]], findings: DecodingProblems) -> None:
    """Report a second key for the same field; the first one counts."""
    if findings.full:
        findings.error(key, "", rule="two-spellings")
        return
    camel = camel_case(key.value)
    first = next(
        other
        for other, _ in pairs
        if isinstance(other, ScalarNode) and camel_case(other.value) == camel
    )
    if first.value == key.value:
        report_duplicate(key, pairs, findings)
    else:
        findings.error(
            key,
            f"{key.value} and {first.value} are two spellings of the same field",
            rule="two-spellings",
            hint="keep one of them",
        )


def _check_groups(
    groups: list[tuple[str, tuple[str, ...]]],
    pairs: list[tuple[Node, Node]],
    values: dict[str, Any],
    table: dict[str, Entry],
    findings: DecodingProblems,
) -> None:
    """Report every member of a oneof after the first."""
    for name, members in groups:
        if sum(values.get(member) is not None for member in members) < 2:
            continue
        keys = [
            key
            for key, _ in pairs
            if isinstance(key, ScalarNode)
            and (entry := table.get(key.value) or _other_spelling(key, table))
            and entry[0] in members
            and values.get(entry[0]) is not None
        ]
        given = ", ".join(camel_case(key.value) for key in keys)
        findings.error(
            keys[1],
            f"exactly one {name.replace('_', ' ')} may be set, but here are {given}",
            rule="one-of",
            hint="keep one of them",
        )


_COLLECTION_TAGS = frozenset({"tag:yaml.org,2002:map", "tag:yaml.org,2002:seq"})


def list_reader(reader: Reader, field: Field, message: type[Message]) -> Reader:
    """Return the reader of a list.

    Args:
        reader: reads an item.
        field: the repeated field.
        message: class that the field belongs to.
    """

    def read(node: Node, findings: DecodingProblems) -> tuple[Any, ...] | None:
        if type(node) is SequenceNode and (node.tag is IMPLICIT or _has_collection_tag(node)):
            items = [reader(item, findings) for item in node.value]
            if None in items:
                _report_nulls(node, findings)
                # An unreadable item becomes an empty one, so that the others keep their indexes.
                items = [_empty(field, message) if item is None else item for item in items]
            return tuple(items)
        if not isinstance(node, ScalarNode):
            wrong_type(node, findings, "a list", "begin each item on a line of its own with '- '")
            return None
        value = reader(node, findings)
        if value is None:
            return None
        findings.warning(
            node,
            "a list is wanted; this one value is taken as a list of one",
            rule="scalar-for-list",
            hint=f"write it as ['{shorten(node.value)}']",
        )
        return (value,)

    return read


def _report_nulls(node: SequenceNode, findings: DecodingProblems) -> None:
    for item in node.value:
        if is_null(item):
            findings.error(
                item,
                "a list item can't be null",
                rule="null-item",
                hint="remove the item, or write '' for the empty string",
            )


def _empty(field: Field, message: type[Message]) -> Any:
    """Return the zero value of an item of a list."""
    if field.type_name not in SCALARS:
        found = type_named(field.type_name, message)
        return next(iter(found)) if issubclass(found, enum.Enum) else found()
    return {"str": "", "bytes": b""}.get(field.type_name, 0)


def map_reader(reader: Reader, default: Any) -> Reader:
    """Return the reader of a map from strings.

    Args:
        reader: reads a value.
        default: the value for null; None refuses null.
    """

    def read(node: Node, findings: DecodingProblems) -> dict[str, Any] | None:
        if (type(node) is not MappingNode or node.tag is not IMPLICIT) and not is_mapping(
            node, findings
        ):
            return None
        pairs = node.value if not findings.merges else merged_pairs(node, findings)
        values: dict[str, Any] = {}
        for key, value_node in pairs:
            name = read_string(key, findings)
            if name is None:
                if is_null(key):
                    findings.error(key, "a key can't be null", rule="wrong-type")
                continue
            if name in values:
                report_duplicate(key, pairs, findings)
                continue
            value = reader(value_node, findings)
            if value is None:
                value = _null_value(value_node, default, findings)
            if value is not None:
                values[name] = value
        return values

    return read


def _null_value(node: Node, default: Any, findings: DecodingProblems) -> Any:
    """Return the value for null in a map; None after a reported problem."""
    if not is_null(node):
        return None
    if default is None:
        message = "a value of this mapping can't be null"
        findings.error(node, message, rule="null-value", hint="remove the key, or give it a value")
    else:
        message = "null is taken as the empty string"
        findings.warning(node, message, rule="null-value", hint="write ''")
    return default


def enum_reader(found: type[enum.Enum]) -> Reader:
    """Return the reader of an enum, by name or by number."""
    by_name = dict(found.__members__)
    by_number: dict[object, enum.Enum] = {member.value: member for member in found}

    def read(node: Node, findings: DecodingProblems) -> enum.Enum | None:
        if isinstance(node, ScalarNode) and kind_of(node) in (STRING, INTEGER):
            member = by_name.get(node.value)
            if member is None:
                member = by_number.get(whole_number(node))
            if member is None:
                report_unknown_value(node, found, findings)
            return member
        wrong_type(node, findings, f"one of {', '.join(by_name)}")
        return None

    return read


def is_mapping(node: Any, findings: DecodingProblems) -> bool:
    """Return whether ``node`` can be read as a mapping; reports a problem if not."""
    if isinstance(node, MappingNode) and _has_collection_tag(node):
        return True
    if isinstance(node, MappingNode):
        findings.error(node, f"the tag {node.tag} means nothing here", rule="yaml-tag")
        return False
    wrong_type(node, findings, "a mapping", "write 'key: value' pairs")
    return False


def _has_collection_tag(node: Any) -> bool:
    return node.tag is IMPLICIT or node.tag in _COLLECTION_TAGS


def report_duplicate(key: Node, pairs: list[tuple[Node, Node]], findings: DecodingProblems) -> None:
    """Report a duplicate key of a mapping; the first one counts."""
    place = ""
    if not findings.full:
        line, column = position(next(other for other, _ in pairs if other.value == key.value))
        place = f" at {line}:{column}" if line else ""
    findings.warning(
        key,
        f"{shorten(key.value)} is given twice; the first value{place} counts",
        rule="duplicate-key",
        hint="keep one of them: other readers take the last",
    )


def merged_pairs(node: Node, findings: DecodingProblems) -> list[tuple[Node, Node]]:
    """Return a mapping's own pairs, followed by the merged pairs for keys that it lacks."""
    pairs: list[tuple[Node, Node]] = node.value
    if not any(is_merge_key(key) for key, _ in pairs):
        return pairs

    return resolve_merges(pairs, findings)
