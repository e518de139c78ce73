"""From a node to its JSON path, and from a JSON path to its place in the text."""

from __future__ import annotations

import re
from collections.abc import Iterator

from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from buildrunner.spec.reading.yaml_nodes import is_plain, position

# Keys under these are the user's own and keep their spelling.
_VERBATIM = frozenset({"substitutions", "secretEnv", "envMap", "timing", "fileHashes"})

_PART = re.compile(r"\[(\d+)\]|([^.\[\]]+)")


def camel_case(key: str) -> str:
    """``key`` with every ``_x`` turned to ``X``, the rest of that word lowered.

    Underscores in front stay. Source: what gcloud does to the keys of a config file.
    """
    stripped = key.lstrip("_")
    if "_" not in stripped:
        return key
    first, *others = stripped.split("_")
    lead = key[: len(key) - len(stripped)]
    return lead + first + "".join(word.capitalize() for word in others)


def paths_under(root: Node) -> dict[int, str]:
    """The path of every node under ``root``, by the node's id; keys have their value's path.

    A node that several aliases share has the path where it stands first.
    """
    paths: dict[int, str] = {}
    # What is still to visit: a node, its path and whether its keys are the user's own.
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
    """Whether ``key`` is an unquoted ``<<``."""
    return isinstance(key, ScalarNode) and key.value == "<<" and is_plain(key)


def locate(root: Node | None, path: str) -> tuple[int, int]:
    """Line and column of what stands at ``path``, or of its nearest ancestor that exists.

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
    # One value where a list is wanted is a list of one.
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
