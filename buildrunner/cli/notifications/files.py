"""Notifiers in files: what ``notifications import`` and ``test`` read, with places for problems.

A template that ``uri`` names is read here and travels as ``content``: a server reads nothing from
elsewhere.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from typing import Any

from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from buildrunner.client.client import Document
from buildrunner.errors import ConfigError, UsageError
from buildrunner.problem import Problem

_MOST_BYTES = 1 << 20


def read_notifiers(path: str) -> list[Document]:
    """The notifiers of a file; ``-`` is standard input.

    Raises:
        UsageError: the file can't be read, or holds none.
        ConfigError: something is wrong with a notifier.
        StorageError: a template can't be read.
    """
    from buildrunner.spec.reading.yaml_nodes import compose_all

    file = "standard input" if path == "-" else path
    roots, problem = compose_all(_text(path))
    if problem is not None:
        raise ConfigError([_in_file(problem, file, None)])
    if not roots:
        raise UsageError(f"{file} holds no notifier")
    folder = "." if path == "-" else os.path.dirname(path) or "."
    return [_read(root, file, folder) for root in roots]


def _text(path: str) -> bytes:
    try:
        if path == "-":
            return sys.stdin.buffer.read()
        with open(path, "rb") as opened:
            return opened.read()
    except OSError as error:
        raise UsageError(f"{path} can't be read: {error.strerror}") from error


def _read(root: Node, file: str, folder: str) -> Document:
    from buildrunner.server.notifications.notifier import read_notifier

    try:
        document = _plain(root)
    except ConfigError as error:
        raise ConfigError([_in_file(one, file, None) for one in error.problems]) from error
    template = _template(document)
    if template.get("uri") and not template.get("content"):
        template["content"] = _template_text(str(template.pop("uri")), folder)
    try:
        # What the filter means, the server knows: it may have a newer idea of builds.
        read_notifier(document, with_filter=False)
    except ConfigError as error:
        raise ConfigError([_in_file(one, file, root) for one in error.problems]) from error
    found: Document = document
    return found


def _template(document: Any) -> dict[str, Any]:
    for name in ("spec", "notification", "template"):
        document = document.get(name) if isinstance(document, dict) else None
    return document if isinstance(document, dict) else {}


def _in_file(problem: Problem, file: str, root: Node | None) -> Problem:
    from msgspec.structs import replace

    from buildrunner.spec.reading.places import locate

    if root is None:
        return replace(problem, file=file)
    line, column = locate(root, problem.path)
    return replace(problem, file=file, line=line, column=column)


def _plain(node: Node) -> Any:
    from buildrunner.spec.reading.scalars import kind_of
    from buildrunner.spec.reading.yaml_scalars import BOOLEAN, INTEGER, NULL

    if isinstance(node, MappingNode):
        return dict(_pairs(node))
    if isinstance(node, SequenceNode):
        return [_plain(one) for one in node.value]
    assert isinstance(node, ScalarNode)  # noqa: S101  (there is nothing else)
    text: str = node.value
    kind = kind_of(node)
    if kind == NULL:
        return None
    if kind == BOOLEAN:
        return text.lower() == "true"
    return int(text) if kind == INTEGER and text.isdecimal() else text


def _pairs(node: MappingNode) -> Iterator[tuple[str, Any]]:
    from buildrunner.problem import Problem
    from buildrunner.spec.reading.yaml_nodes import position

    seen = set()
    for key, value in node.value:
        name = str(key.value)
        if name in seen:
            line, column = position(key)
            message = f"{name} is there twice"
            raise ConfigError([Problem(message, line=line, column=column, rule="yaml-syntax")])
        seen.add(name)
        yield name, _plain(value)


def _template_text(uri: str, folder: str) -> str:
    """The template at ``gs://BUCKET/OBJECT``, or in a file beside the config."""
    if uri.startswith("gs://"):
        return _from_bucket(uri)
    path = os.path.join(folder, uri.removeprefix("file://"))
    try:
        with open(path, encoding="utf-8") as opened:
            return opened.read(_MOST_BYTES)
    except (OSError, UnicodeDecodeError) as error:
        said = getattr(error, "strerror", "") or "it is no text"
        raise UsageError(f"the template {uri} can't be read: {said}") from error


def _from_bucket(uri: str) -> str:
    import threading

    from buildrunner import wiring
    from buildrunner.settings import own_settings

    cancel = threading.Event()
    store, place = wiring.stores(own_settings()).place(uri)
    found = store.find(place.bucket, place.name, place.generation)
    content = b"".join(store.read(found, 0, cancel))
    return content[:_MOST_BYTES].decode("utf-8", "replace")
