"""Parses YAML text or JSON values into a tree of nodes with places.

The composer stops at nodes: constructing Python values would turn ``1.10`` into 1.1 and silently
drop the second of two equal keys. The tree may share nodes (aliases), but it has no cycles, and its
size with all aliases followed is limited.

The ``tag`` of an untagged scalar is replaced by the pair (plain, quoted) of the parser, so that the
decoder resolves only the scalars that it reads.
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

# The ``tag`` of a list or mapping without a tag in the text.
IMPLICIT: Any = True

_ANCHOR = re.compile(rb"(?:^|[\s\[{,])&[^\s&]")
# Two escapes of one character, if no backslash escapes the first.
_SURROGATES = re.compile(
    rb"(?<!\\)((?:\\\\)*)\\u([dD][89abAB][0-9a-fA-F]{2})\\u([dD][c-fC-F][0-9a-fA-F]{2})"
)


class _Refused(Exception):
    """The text can't be read or exceeds a limit; holds the problem."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem.message)
        self.problem = problem


class _Limits:
    """The hooks that a composer calls around every node, used to count.

    libyaml's composer recurses on the C stack without a limit: without these hooks, 200 KB of ``[``
    end the process.
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
    """PyYAML's own composer, with anchors that may be redefined, as YAML permits.

    A mixin for a parser, which has the two methods below.
    """

    check_event: Callable[..., bool]
    peek_event: Callable[[], Any]

    def compose_node(self, parent: Node | None, index: Any) -> Node | None:
        if not self.check_event(yaml.events.AliasEvent):
            self.anchors.pop(self.peek_event().anchor, None)
        return super().compose_node(parent, index)


def _composers() -> tuple[type[Any], type[Any]]:
    """Return the composer for texts without anchors, and the one for texts with anchors.

    If PyYAML was built without libyaml, both are the same, in pure Python.
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
    """Return a composer in pure Python."""

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
    """Parse the only document of ``text``.

    Returns:
        The document's root (None if the text is empty or can't be read), and the problem (None if
        the text can be read).
    """
    try:
        return _compose_one(text), None
    except _Refused as refused:
        return None, refused.problem


def compose_all(text: bytes) -> tuple[list[Node], Problem | None]:
    """Parse the documents of ``text``, without empty ones, up to the first problem."""
    roots: list[Node] = []
    try:
        roots.extend(_documents(text))
    except _Refused as refused:
        return roots, refused.problem
    return roots, None


def is_plain(node: Node) -> bool:
    """Return whether ``node`` is a scalar without quotes and without a tag."""
    tag: object = node.tag
    return tag == (True, False)


def position(node: Node | None) -> tuple[int, int]:
    """Return line and column of ``node``, from 1; (0, 0) if it was not read from a text."""
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
    """Yield the non-empty documents of ``text``; raises `_Refused`."""
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
        raise _Refused(syntax_problem(error, text)) from None
    finally:
        if composer is not None:
            composer.dispose()


def _with_whole_characters(text: bytes) -> bytes:
    """Return JSON with each character beyond U+FFFF as one escape instead of two.

    ``json.dumps`` writes an emoji as such a pair, which YAML does not support.
    """
    if not text.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"{"):
        return text

    def whole(pair: re.Match[bytes]) -> bytes:
        high, low = int(pair[2], 16), int(pair[3], 16)
        return pair[1] + b"\\U%08X" % (0x10000 + (high - 0xD800) * 0x400 + low - 0xDC00)

    return _SURROGATES.sub(whole, text)


def _is_empty(root: Node) -> bool:
    """Return whether a document is empty (an end marker alone makes such a document)."""
    return isinstance(root, ScalarNode) and root.value == "" and is_plain(root)


def _check_bytes(text: bytes) -> None:
    if len(text) > MAX_BYTES:
        message = f"the config has {len(text)} bytes; at most {MAX_BYTES} are read"
        raise _Refused(Problem(message, rule="yaml-size"))
    try:
        text.decode()
    except UnicodeDecodeError as error:
        raise _Refused(encoding_problem(error, text)) from None


def _too_deep(line: int, column: int) -> Problem:
    message = f"values are nested more than {MAX_DEPTH} levels deep"
    return Problem(message, line=line, column=column, rule="yaml-depth")


def _too_many() -> Problem:
    return Problem(f"the config has more than {MAX_NODES} values", rule="yaml-size")


def _check_expansion(root: Node) -> None:
    """Refuse a document that contains itself, or that expands too much by aliases.

    Linear in the size of the text: the target of an alias is measured once.
    """
    sizes: dict[int, tuple[int, int]] = {}
    _measure(root, 1, sizes)


def _measure(node: Node, level: int, sizes: dict[int, tuple[int, int]]) -> tuple[int, int]:
    """Return the number of nodes under ``node`` and its height, with aliases followed."""
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
    """Return the keys and values, or the items, directly under ``node``."""
    if isinstance(node, MappingNode):
        for key, value in node.value:
            yield key
            yield value
    elif isinstance(node, SequenceNode):
        yield from node.value


_TAB = "found character '\\t' that cannot start any token"
_HINTS = {
    "mapping values are not allowed": (
        "a colon followed by a blank starts a value: quote the text, or check the indentation"
    ),
    "cannot start any token": "quote the value: ' @ ` and % cannot begin plain text",
    "found undefined alias": (
        "define it with & before its first use, or quote a text that begins with *"
    ),
    "did not find expected key": (
        "check the indentation and the quotes of this line and of the line before"
    ),
    "did not find expected '-' indicator": "check the indentation: a list item or a key is off",
    "unexpected end of stream": "a quote or a bracket is never closed",
    "escape character": "in double quotes a backslash starts an escape: use single quotes",
}


def syntax_problem(error: yaml.YAMLError, text: bytes) -> Problem:
    """Return the parser's problem in ``text``, at its line and column."""
    if isinstance(error, yaml.reader.ReaderError):
        return _control_character(error, text)
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    what = getattr(error, "problem", None) or getattr(error, "context", None) or "it can't be read"
    line, column = (mark.line + 1, mark.column + 1) if mark is not None else (0, 0)
    if _at_tab(text, line, column):
        message = "a tab can't be used to indent YAML"
        return Problem(
            f"not valid YAML: {message}",
            line=line,
            column=column,
            hint="use blanks",
            rule="yaml-syntax",
        )
    context = getattr(error, "context", None)
    message = f"{context}, {what}" if context and context != what else str(what)
    hint = next((hint for words, hint in _HINTS.items() if words in message), "")
    return Problem(
        f"not valid YAML: {message}", line=line, column=column, hint=hint, rule="yaml-syntax"
    )


def encoding_problem(error: UnicodeDecodeError, text: bytes) -> Problem:
    """Return the problem of bytes that are not UTF-8."""
    line, column = _place(text, error.start)
    kind = "UTF-16" if text[:2] in (b"\xff\xfe", b"\xfe\xff") else "something else"
    return Problem(
        f"the config is not UTF-8 text but {kind}",
        line=line,
        column=column,
        hint="save it as UTF-8",
        rule="yaml-encoding",
    )


def _control_character(error: yaml.reader.ReaderError, text: bytes) -> Problem:
    # libyaml counts bytes, the parser in pure Python characters.
    counts_bytes = error.encoding != "unicode"
    offset = error.position if counts_bytes else len(text.decode()[: error.position].encode())
    line, column = _place(text, offset)
    code = error.character if isinstance(error.character, int) else ord(str(error.character)[:1])
    return Problem(
        f"not valid YAML: the character U+{code:04X} may not stand in it",
        line=line,
        column=column,
        hint="remove it, or write it as an escape in double quotes",
        rule="yaml-syntax",
    )


def _at_tab(text: bytes, line: int, column: int) -> bool:
    lines = text.splitlines()
    if not 0 < line <= len(lines):
        return False
    return lines[line - 1].decode(errors="replace")[column - 1 : column] == "\t"


def _place(text: bytes, offset: int) -> tuple[int, int]:
    """Return line and column, from 1, of the byte at ``offset``."""
    before = text[:offset]
    start = before.rfind(b"\n") + 1
    return before.count(b"\n") + 1, len(before[start:].decode(errors="replace")) + 1


_QUOTED = (False, True)


def node_of(value: object) -> tuple[Node, Problem | None]:
    """Return the tree of ``value``, a result of `json.loads`, and the problem (None for none)."""
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
