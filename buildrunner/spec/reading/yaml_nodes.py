"""YAML text to a tree of nodes that know their place.

We compose to nodes and stop there: building Python values would turn ``1.10`` into 1.1 and drop the
second of two equal keys without a word. The tree may share nodes (aliases) but is known to be free
of cycles and small, however often its aliases are followed.

An untagged scalar has its ``tag`` replaced by the pair (plain, quoted) of the parser, so that the
decoder resolves only the scalars it looks at.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

import yaml
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from buildrunner.problem import Problem

MAX_BYTES = 2 * 1024 * 1024
MAX_NODES = 100_000
MAX_DEPTH = 64

# The ``tag`` of a list or mapping that carries none in the text.
IMPLICIT: Any = True

_ANCHOR = re.compile(rb"(?:^|[\s\[{,])&[^\s&]")
# Two escapes of one character, where no backslash makes text of the first.
_SURROGATES = re.compile(
    rb"(?<!\\)((?:\\\\)*)\\u([dD][89abAB][0-9a-fA-F]{2})\\u([dD][c-fC-F][0-9a-fA-F]{2})"
)


class _Refused(Exception):
    """The text breaks a rule of ours; carries the problem."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem.message)
        self.problem = problem


class _Limits:
    """The hooks that a composer calls around every node, used to count.

    libyaml's composer recurses on the C stack and has no limit of its own: without these hooks,
    200 KB of ``[`` end the process.
    """

    depth = 0
    nodes = 0

    def descend_resolver(self, parent: Node | None, _index: object) -> None:
        self.depth += 1
        self.nodes += 1
        if self.depth > MAX_DEPTH or self.nodes > MAX_NODES:
            line, column = position(parent)
            raise _Refused(_too_deep(line, column) if self.depth > MAX_DEPTH else _too_many())

    def ascend_resolver(self) -> None:
        self.depth -= 1

    def resolve(self, _kind: object, _value: object, implicit: object) -> object:
        return implicit


class _AnchorComposer(_Limits, yaml.composer.Composer):
    """PyYAML's own composer, with anchors that may be defined anew, as YAML allows.

    To be mixed with a parser, which brings the two methods below.
    """

    check_event: Callable[..., bool]
    peek_event: Callable[[], Any]

    def compose_node(self, parent: Node | None, index: Any) -> Node | None:
        if not self.check_event(yaml.events.AliasEvent):
            self.anchors.pop(self.peek_event().anchor, None)
        return super().compose_node(parent, index)


def _composers() -> tuple[type[Any], type[Any]]:
    """The composer of plain texts and that of texts with anchors.

    PyYAML may have been built without libyaml: then both are the same, in pure Python.
    """
    parser: Any = getattr(getattr(yaml, "cyaml", None), "CParser", None)
    if parser is None:
        return (python_composer(),) * 2

    class FastComposer(_Limits, parser):  # type: ignore[misc] # known at run time only
        def __init__(self, stream: bytes) -> None:
            parser.__init__(self, stream)

    class FastAnchorComposer(_AnchorComposer, parser):  # type: ignore[misc] # as above
        def __init__(self, stream: bytes) -> None:
            parser.__init__(self, stream)
            yaml.composer.Composer.__init__(self)

    return FastComposer, FastAnchorComposer


def python_composer() -> type[Any]:
    """A composer in pure Python."""

    class PythonComposer(
        _AnchorComposer, yaml.reader.Reader, yaml.scanner.Scanner, yaml.parser.Parser
    ):
        def __init__(self, stream: bytes) -> None:
            yaml.reader.Reader.__init__(self, stream)
            yaml.scanner.Scanner.__init__(self)
            yaml.parser.Parser.__init__(self)
            yaml.composer.Composer.__init__(self)

    return PythonComposer


_PLAIN_COMPOSER, _ANCHOR_COMPOSER = _composers()


def compose(text: bytes) -> tuple[Node | None, Problem | None]:
    """The one document of ``text``.

    Returns:
        Its root (None when there is none) and the problem that kept us from reading it.
    """
    try:
        return _compose_one(text), None
    except _Refused as refused:
        return None, refused.problem


def compose_all(text: bytes) -> tuple[list[Node], Problem | None]:
    """The documents of ``text``, empty ones left out, up to the first problem."""
    roots: list[Node] = []
    try:
        roots.extend(_documents(text))
    except _Refused as refused:
        return roots, refused.problem
    return roots, None


def is_plain(node: Node) -> bool:
    """Whether ``node`` is a scalar without quotes and without a tag."""
    tag: object = node.tag
    return tag == (True, False)


def position(node: Node | None) -> tuple[int, int]:
    """Line and column of ``node``, from 1; (0, 0) when it was not read from a text."""
    if node is None or node.start_mark is None:
        return 0, 0
    return node.start_mark.line + 1, node.start_mark.column + 1


def _compose_one(text: bytes) -> Node | None:
    documents = _documents(text)
    first = next(documents, None)
    second = next(documents, None) if first is not None else None
    if second is not None:
        line, column = position(second)
        message = "a build config is one YAML document, and here begins a second one"
        hint = "remove what follows, or the '---' line between them"
        raise _Refused(Problem(message, line=line, column=column, hint=hint, rule="yaml-documents"))
    return first


def _documents(text: bytes) -> Iterator[Node]:
    """The non-empty documents of ``text``; raises `_Refused`."""
    _check_bytes(text)
    if b"\\u" in text:
        text = _with_whole_characters(text)
    shared = _ANCHOR.search(text) is not None
    composer = None
    try:
        composer = (_ANCHOR_COMPOSER if shared else _PLAIN_COMPOSER)(text)
        while composer.check_node():
            root = composer.get_node()
            if shared:
                _check_expansion(root)
            if not _is_empty(root):
                yield root
    except yaml.YAMLError as error:
        from buildrunner.spec.reading.yaml_errors import syntax_problem

        raise _Refused(syntax_problem(error, text)) from None
    finally:
        if composer is not None:
            composer.dispose()


def _with_whole_characters(text: bytes) -> bytes:
    """JSON with a character beyond U+FFFF as one escape, where JSON writes two.

    ``json.dumps`` makes such pairs of any emoji, and YAML knows none.
    """
    if not text.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"{"):
        return text

    def whole(pair: re.Match[bytes]) -> bytes:
        high, low = int(pair[2], 16), int(pair[3], 16)
        return pair[1] + b"\\U%08X" % (0x10000 + (high - 0xD800) * 0x400 + low - 0xDC00)

    return _SURROGATES.sub(whole, text)


def _is_empty(root: Node) -> bool:
    """Whether a document holds nothing at all (an end marker alone makes such a document)."""
    return isinstance(root, ScalarNode) and root.value == "" and is_plain(root)


def _check_bytes(text: bytes) -> None:
    if len(text) > MAX_BYTES:
        message = f"the config has {len(text)} bytes; at most {MAX_BYTES} are read"
        raise _Refused(Problem(message, rule="yaml-size"))
    try:
        text.decode()
    except UnicodeDecodeError as error:
        from buildrunner.spec.reading.yaml_errors import encoding_problem

        raise _Refused(encoding_problem(error, text)) from None


def _too_deep(line: int, column: int) -> Problem:
    message = f"values are nested more than {MAX_DEPTH} levels deep"
    return Problem(message, line=line, column=column, rule="yaml-depth")


def _too_many() -> Problem:
    return Problem(f"the config has more than {MAX_NODES} values", rule="yaml-size")


def _check_expansion(root: Node) -> None:
    """Refuses a document that contains itself, or that its aliases blow up.

    Linear in the size of the text: what an alias stands for is measured once.
    """
    sizes: dict[int, tuple[int, int]] = {}
    _measure(root, 1, sizes)


def _measure(node: Node, level: int, sizes: dict[int, tuple[int, int]]) -> tuple[int, int]:
    """Number of nodes under ``node`` and its height, aliases followed."""
    known = sizes.get(id(node))
    if known == _OPEN:
        line, column = position(node)
        message = "an alias stands inside the value that it stands for"
        raise _Refused(Problem(message, line=line, column=column, rule="yaml-recursive-alias"))
    if known is None:
        sizes[id(node)] = _OPEN
        size, height = 1, 0
        for child in children(node):
            child_size, child_height = _measure(child, level + 1, sizes)
            size += child_size
            height = max(height, child_height)
        known = sizes[id(node)] = (size, height + 1)
    _check_measure(node, level, known)
    return known


_OPEN = (0, 0)


def _check_measure(node: Node, level: int, measure: tuple[int, int]) -> None:
    size, height = measure
    line, column = position(node)
    if size > MAX_NODES:
        message = f"its aliases make this config more than {MAX_NODES} values long"
        hint = "write out what you need instead of nesting aliases"
        raise _Refused(
            Problem(message, line=line, column=column, hint=hint, rule="yaml-alias-expansion")
        )
    if level + height > MAX_DEPTH + 1:
        raise _Refused(_too_deep(line, column))


def children(node: Node) -> Iterator[Node]:
    """The keys and values, or the items, directly under ``node``."""
    if isinstance(node, MappingNode):
        for key, value in node.value:
            yield key
            yield value
    elif isinstance(node, SequenceNode):
        yield from node.value
