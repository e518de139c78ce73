"""What a YAML parser complains about, as problems that a person can act on."""

from __future__ import annotations

import yaml

from buildrunner.problem import Problem

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
    """The problem that the parser met in ``text``, at its line and column."""
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
    """The problem of bytes that are not UTF-8."""
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
    """Line and column, from 1, of the byte at ``offset``."""
    before = text[:offset]
    start = before.rfind(b"\n") + 1
    return before.count(b"\n") + 1, len(before[start:].decode(errors="replace")) + 1
