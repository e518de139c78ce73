"""Readers of lists, maps and enums, and what messages and maps have in common."""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, Any

from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from buildrunner.spec.decode_scalars import (
    is_null,
    kind_of,
    read_string,
    shorten,
    whole_number,
    wrong_type,
)
from buildrunner.spec.paths import is_merge_key
from buildrunner.spec.shapes import SCALARS, Field, type_named
from buildrunner.spec.yaml_nodes import IMPLICIT, position
from buildrunner.spec.yaml_scalars import INTEGER, STRING

if TYPE_CHECKING:
    from buildrunner.spec.decode_findings import Findings
    from buildrunner.spec.decode_scalars import Reader
    from buildrunner.spec.message import Message

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
                # What could not be read leaves an empty item, so that the others keep their index.
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
    """What null stands for in a map; None for what was reported already."""
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
                from buildrunner.spec.decode_suggestions import report_unknown_value

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
    from buildrunner.spec.merge_keys import resolve_merges

    return resolve_merges(pairs, findings)
