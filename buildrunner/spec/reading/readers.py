"""Readers of messages, lists and maps, made from the fields of each message class.

Each class is compiled once, when it is first met. A reader walks every node at most once, so the
work is linear in the size of the (already limited) tree.
"""

from __future__ import annotations

import enum
from typing import Any

from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from buildrunner.spec.model.message import LIST, MAP, SCALARS, Field, Message, fields_of, type_named
from buildrunner.spec.reading.findings import (
    Findings,
    camel_case,
    is_merge_key,
    report_unknown_key,
    report_unknown_value,
    shorten,
)
from buildrunner.spec.reading.nodes import IMPLICIT, position
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


def resolve_merges(pairs: list[tuple[Node, Node]], findings: Findings) -> list[tuple[Node, Node]]:
    """``pairs`` with its merge keys resolved.

    The mapping's own keys win, then what is merged first. The tree is free of cycles, so this ends;
    its expanded size is limited, so it ends soon.
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
    """The reader of ``message``.

    Args:
        message: class to read.
        outputs: keep the fields that only the service sets; else they are dropped with a warning.
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

    def read(node: Node, findings: Findings) -> Message | None:
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
    """A reader that is compiled, and whose class is imported, when it is first used."""
    compiled: Reader | None = None

    def read(node: Node, findings: Findings) -> Any:
        nonlocal compiled
        if compiled is None:
            found = type_named(type_name, beside)
            if issubclass(found, enum.Enum):
                compiled = enum_reader(found)
            else:
                compiled = message_reader(found, outputs=outputs)
        return compiled(node, findings)

    return read


def _ignore(node: Node, findings: Findings) -> None:
    if not is_null(node):
        findings.warning(
            node,
            "this field is set by the service; the value given here is ignored",
            rule="output-only",
            hint="remove it",
        )


def _refused_reader(reader: Reader, json: str, reason: str) -> Reader:
    def read(node: Node, findings: Findings) -> Any:
        value = reader(node, findings)
        if value is not None:
            message = f"{json} is known to Cloud Build but not supported here"
            findings.error(node, message, rule="unsupported-field", hint=reason)
        return value

    return read


def _other_spelling(key: Node, table: dict[str, Entry]) -> Entry | None:
    """The field whose camelCase name gcloud would make of ``key``."""
    if type(key) is ScalarNode and "_" in key.value:
        return table.get(camel_case(key.value))
    return None


def _report_repeated(key: Node, pairs: list[tuple[Node, Node]], findings: Findings) -> None:
    """Reports a second key for the same field; the first one counts."""
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
    findings: Findings,
) -> None:
    """Reports every member of a oneof after the first."""
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
    """The reader of a list.

    Args:
        reader: reads an item.
        field: the repeated field.
        message: class that the field belongs to.
    """

    def read(node: Node, findings: Findings) -> tuple[Any, ...] | None:
        if type(node) is SequenceNode and (node.tag is IMPLICIT or _has_collection_tag(node)):
            items = [reader(item, findings) for item in node.value]
            if None in items:
                _report_nulls(node, findings)
                # An unreadable item becomes an empty one, so that the others keep their index.
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


def _report_nulls(node: SequenceNode, findings: Findings) -> None:
    for item in node.value:
        if is_null(item):
            findings.error(
                item,
                "a list item can't be null",
                rule="null-item",
                hint="remove the item, or write '' for the empty string",
            )


def _empty(field: Field, message: type[Message]) -> Any:
    """The zero value of an item of a list."""
    if field.type_name not in SCALARS:
        found = type_named(field.type_name, message)
        return next(iter(found)) if issubclass(found, enum.Enum) else found()
    return {"str": "", "bytes": b""}.get(field.type_name, 0)


def map_reader(reader: Reader, default: Any) -> Reader:
    """The reader of a map from strings.

    Args:
        reader: reads a value.
        default: what null stands for; None refuses it.
    """

    def read(node: Node, findings: Findings) -> dict[str, Any] | None:
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


def _null_value(node: Node, default: Any, findings: Findings) -> Any:
    """The meaning of null in a map; None for a problem that was reported already."""
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
    """The reader of an enum, by name or by number."""
    by_name = dict(found.__members__)
    by_number: dict[object, enum.Enum] = {member.value: member for member in found}

    def read(node: Node, findings: Findings) -> enum.Enum | None:
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


def is_mapping(node: Any, findings: Findings) -> bool:
    """Whether ``node`` can be read as a mapping after all; reports when it can't."""
    if isinstance(node, MappingNode) and _has_collection_tag(node):
        return True
    if isinstance(node, MappingNode):
        findings.error(node, f"the tag {node.tag} means nothing here", rule="yaml-tag")
        return False
    wrong_type(node, findings, "a mapping", "write 'key: value' pairs")
    return False


def _has_collection_tag(node: Any) -> bool:
    return node.tag is IMPLICIT or node.tag in _COLLECTION_TAGS


def report_duplicate(key: Node, pairs: list[tuple[Node, Node]], findings: Findings) -> None:
    """Reports a key that stands twice in one mapping; the first one counts."""
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


def merged_pairs(node: Node, findings: Findings) -> list[tuple[Node, Node]]:
    """The pairs of a mapping with those of its merge keys behind, where its own have no say."""
    pairs: list[tuple[Node, Node]] = node.value
    if not any(is_merge_key(key) for key, _ in pairs):
        return pairs

    return resolve_merges(pairs, findings)
