"""The commands of a shell script that run in any case. Pure, in one pass.

Nothing of a script is run. Where the text leaves a doubt, a command does not count.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Final, NamedTuple

_MOST_SCRIPT: Final = 1 << 20
_MOST_WORD: Final = 4096
_DEEPEST: Final = 100

_DOUBLE = r'"[^"\\]*(?:\\.[^"\\]*)*"'
_VARIABLE = r"\$(?:(?P<name>\w+)|\{(?P<braced>\w+)\})"
_TOKEN = re.compile(
    r"(?:[ \t\r]|\\\n)+|\#[^\n]*"
    r"|(?P<operator>\n|;;&|;;|;&|;|&&|&>>|&>|&|\|\||\|&|\||<<<|<<-|<<|<>|<&|<|>>|>&|>\||>|\(|\))"
    rf"|(?P<word>(?:[^\s'\"\\;&|()<>]+|\\.|'[^']*'|{_DOUBLE})+)",
    re.DOTALL,
)
_PIECE = re.compile(
    rf"'(?P<single>[^']*)'|(?P<double>{_DOUBLE})|\\(?P<escaped>.)|{_VARIABLE}|[^'\"\\$]+|\$",
    re.DOTALL,
)
_PIECE_IN_QUOTES = re.compile(rf"\\(?P<escaped>[\"\\$`\n])|{_VARIABLE}|[^\\$]+|.", re.DOTALL)

_SEPARATORS = frozenset({"\n", ";", ";;", ";&", ";;&", "&&", "||", "|", "|&", "&"})
_CONTINUED = frozenset({"&&", "||", "|", "|&"})  # a newline behind one ends no list
_REDIRECTIONS = frozenset({"<<<", "<<-", "<<", "<>", "<&", "<", ">>", ">&", ">|", ">", "&>>", "&>"})
_BLOCKS = {
    **dict.fromkeys(("for", "select", "until", "while"), "done"),
    "if": "fi",
    "case": "esac",
    "{": "}",
}
_HEADED = frozenset({"case", "for", "select"})  # words follow, not a command
_INNER = frozenset({"!", "do", "elif", "else", "then", "time"})  # a command follows
_CONDITIONS = frozenset({"[", "[[", "false", "test"})


def commands_of_script(text: str, env: Mapping[str, str]) -> Iterator[list[str]]:
    """Yield the commands of a script that run in any case, each up to its first redirection.

    Left out are commands in blocks, functions, subshells, here-documents and indented lines,
    commands behind a pipe, a test or ``||``, and all behind ``exit``.

    Args:
        text: the script. One above 1 MiB has no commands.
        env: values of variables. The names of other variables stay, with their ``$``. A word
            whose value exceeds 4 KiB is ``$``.
    """
    if len(text) > _MOST_SCRIPT:
        return
    for command in _Scanner().commands(text):
        words = [_value(word, env) for word in command]
        if words[0] == "exit":
            return
        yield words


class _Outer(NamedTuple):
    """An open block, subshell or substitution, and the command that it is part of."""

    end: str
    command: list[str]
    is_skipped: bool


class _Scanner:
    def __init__(self) -> None:
        self._outer: list[_Outer] = []
        self._command: list[str] = []
        self._is_skipped = False  # the command runs in some cases only
        self._is_closed = False  # further words are none of the command
        self._is_indented = False
        self._before = "\n"

    def commands(self, text: str) -> Iterator[list[str]]:
        """Yield the commands, as words with their quotes."""
        self._is_indented = text[:1].isspace()
        for word, behind in _tokens(text):
            if word in _SEPARATORS:
                yield from self._ended()
                self._separate(word, behind)
                if word == "\n" and self._before in _CONTINUED:
                    continue
            elif word == "(":
                self._begin(")", self._command)
            elif word == ")":
                self._end_parenthesis()
            elif word in _REDIRECTIONS:
                self._is_closed = True
            else:
                self._take(word)
            if len(self._outer) > _DEEPEST:
                return
            self._before = word
        yield from self._ended()

    def _ended(self) -> Iterator[list[str]]:
        command = self._command
        is_counted = command and not self._outer and not self._is_skipped
        if is_counted and (not self._is_indented or command[0] == "exit"):
            yield command

    def _separate(self, separator: str, behind: str) -> None:
        if separator in ("\n", ";"):
            is_continued = separator == "\n" and self._before in _CONTINUED
            self._is_skipped = self._is_skipped and is_continued
        elif separator != "&&" or (self._command and self._command[0] in _CONDITIONS):
            self._is_skipped = True
        if separator == "\n":
            self._is_indented = behind.isspace()
        self._command, self._is_closed = [], False

    def _begin(self, end: str, command: list[str]) -> None:
        self._outer.append(_Outer(end, command, self._is_skipped))
        self._command, self._is_closed = [], False

    def _end_parenthesis(self) -> None:
        self._command = []
        if self._outer and self._outer[-1].end == ")":  # others end a pattern of ``case``
            _, self._command, self._is_skipped = self._outer.pop()
            self._is_closed = True

    def _take(self, word: str) -> None:
        if word in _BLOCKS and self._may_begin_block():
            self._begin(_BLOCKS[word], [])
            self._command = [word] if word in _HEADED else []
        elif self._is_closed or (word in _INNER and not self._command):
            return
        elif self._outer and word == self._outer[-1].end and not self._command:
            self._is_skipped = self._outer.pop().is_skipped
            self._is_closed = True
        else:
            self._command.append(word)

    def _may_begin_block(self) -> bool:
        """Whether this is the place of a command, or of the body of a function."""
        command = self._command
        return (
            not command or self._before == ")" or (command[0] == "function" and len(command) == 2)
        )


def _tokens(text: str) -> Iterator[tuple[str, str]]:
    """Yield operators and words, each with the character behind it; nothing of here-documents.

    An open quote and a here-document without its end are the end of the script.
    """
    place, before = 0, ""
    ends: list[tuple[str, bool]] = []
    while found := _TOKEN.match(text, place):
        place = found.end()
        if found.lastgroup is None:  # a blank or a comment
            continue
        if before in ("<<", "<<-"):
            ends.append((_value(found[0], {}), before == "<<-"))
        before = found[0]
        if before == "\n":
            for end, has_tabs in ends:
                place = _behind_document(text, place, end, has_tabs)
            ends = []
        yield before, text[place : place + 1]


def _behind_document(text: str, place: int, end: str, has_tabs: bool) -> int:
    """Return the place behind a here-document that begins at ``place``."""
    while place < len(text):
        newline = text.find("\n", place)
        stop = newline if newline >= 0 else len(text)
        line, place = text[place:stop], stop + 1
        if (line.lstrip("\t") if has_tabs else line) == end:
            break
    return place


def _value(word: str, env: Mapping[str, str]) -> str:
    found: list[str] = []
    room = _MOST_WORD
    for piece in _pieces(word, env, _PIECE):
        room -= len(piece)
        if room < 0:
            return "$"
        found.append(piece)
    return "".join(found)


def _pieces(text: str, env: Mapping[str, str], pattern: re.Pattern[str]) -> Iterator[str]:
    for piece in pattern.finditer(text):
        kind = piece.lastgroup
        if kind is None:
            yield piece[0]
        elif kind == "double":
            yield from _pieces(piece[0][1:-1], env, _PIECE_IN_QUOTES)
        elif kind in ("name", "braced"):
            yield env.get(piece[kind], piece[0])
        elif piece[kind] != "\n" or kind == "single":
            yield piece[kind]
