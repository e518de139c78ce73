"""Readers of messages, lists and maps, made from the fields of each message class.

Each class is compiled once, when it is first met. A reader walks every node at most once, so the
work is linear in the size of the (already limited) tree.
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, Any

from yaml.nodes import MappingNode, Node, ScalarNode

from buildrunner.spec.decode_collections import (
    enum_reader,
    is_mapping,
    list_reader,
    map_reader,
    merged_pairs,
    report_duplicate,
)
from buildrunner.spec.decode_scalars import READERS, is_null
from buildrunner.spec.paths import camel_case
from buildrunner.spec.shapes import LIST, MAP, SCALARS, Field, fields_of, type_named
from buildrunner.spec.yaml_nodes import IMPLICIT

if TYPE_CHECKING:
    from buildrunner.spec.decode_findings import Findings
    from buildrunner.spec.decode_scalars import Reader
    from buildrunner.spec.message import Message

    # What to do with a key: the field's name, the reader of its value and its default.
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
                    _report_unknown(key, message, findings)
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


def _report_unknown(key: Node, message: type[Message], findings: Findings) -> None:
    from buildrunner.spec.decode_suggestions import report_unknown_key

    report_unknown_key(key, message, findings)


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
