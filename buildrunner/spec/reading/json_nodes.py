"""Parsed JSON as the nodes that the decoder reads."""

from __future__ import annotations

from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from buildrunner.problem import Problem
from buildrunner.spec.reading.yaml_nodes import MAX_DEPTH

_QUOTED = (False, True)


def node_of(value: object) -> tuple[Node, Problem | None]:
    """The tree of ``value``, which is made of what `json.loads` makes; or why there is none."""
    try:
        return _node(value, 1), None
    except RecursionError:
        message = f"values are nested more than {MAX_DEPTH} levels deep"
        return _scalar("null", ""), Problem(message, rule="yaml-depth")


def _node(value: object, depth: int) -> Node:
    if depth > MAX_DEPTH:
        raise RecursionError
    if isinstance(value, dict):
        pairs = [(_key(key), _node(item, depth + 1)) for key, item in value.items()]
        return MappingNode(True, pairs)  # type: ignore[arg-type] # as our composer tags it
    if isinstance(value, list | tuple):
        return SequenceNode(True, [_node(item, depth + 1) for item in value])  # type: ignore[arg-type]
    if value is None:
        return _scalar("null", "")
    if isinstance(value, bool):
        return _scalar("bool", str(value).lower())
    if isinstance(value, int):
        return _scalar("int", str(value) if abs(value) < 10**100 else "x")
    if isinstance(value, float):
        return _scalar("float", repr(value))
    return ScalarNode(_QUOTED, str(value))  # type: ignore[arg-type]


def _key(key: object) -> Node:
    return ScalarNode(_QUOTED, str(key))  # type: ignore[arg-type]


def _scalar(kind: str, text: str) -> Node:
    return ScalarNode(f"tag:yaml.org,2002:{kind}", text)
