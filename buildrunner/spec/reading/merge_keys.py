"""YAML's merge keys: ``<<: *defaults`` and ``<<: [*first, *second]``.

Source: https://yaml.org/type/merge.html
"""

from __future__ import annotations

from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from buildrunner.spec.reading.findings import Findings
from buildrunner.spec.reading.places import camel_case, is_merge_key


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
