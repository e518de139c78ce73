"""Templates of messages: Jinja2 in its sandbox, and the part of Go's templates that notifiers use.

A template can access only data: no files, no attributes of Python's objects. A problem names
its line. `translated` turns a template of Go into one of Jinja2; `FUNCTIONS` are its operations on
values. A server evaluates templates in `bounded_process` only, since even compiling one can take
any amount of time and memory.

Source: https://jinja.palletsprojects.com/en/stable/sandbox/
"""

from __future__ import annotations

import html
import json
import re
import traceback
from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from typing import Any, Final, Literal
from urllib.parse import quote_plus

from jinja2 import StrictUndefined, TemplateError, TemplateSyntaxError
from jinja2.exceptions import SecurityError
from jinja2.meta import find_undeclared_variables
from jinja2.sandbox import ImmutableSandboxedEnvironment
from markupsafe import Markup

from buildrunner.errors import BuildrunnerError
from buildrunner.server.notifications.facts import MessageView
from buildrunner.spec.reading.findings import suggestion

GOLANG: Final = "golang"
JINJA: Final = "jinja2"

MOST_CHARACTERS: Final = 256 * 1024
_URL: Final = re.compile(r"https?://[^\s<>|]+")
_NO_FIELD: Final = re.compile(r"'[\w.]+ object' has no attribute ('\w+')")
_NEVER: Final = re.compile(r"MessageView object' has no attribute|has no field \w+$")
_NAME: Final = "<template>"  # Jinja's own name for a template that is no file

# Tags that print nothing, in either language, and tags that print a value.
_CONTROL: Final = re.compile(
    r"\{%.*?%\}|\{#.*?#\}|\{\{-?\s*(?:(?:if|else|end|range|with)\b|/\*|\$\w+\s*:?=).*?\}\}",
    re.DOTALL,
)
_VALUE: Final = re.compile(r"\{\{.*?\}\}", re.DOTALL)

Escapes = Literal["", "html", "json", "chat", "chat-json"]
"""Formats of an output. Those of chats are the texts of Slack and Google Chat."""

_NOTHING: Final = "<no value>"
_VERB: Final = re.compile(r"%(?:[-+ #0]*[0-9]*(?:\.[0-9]+)?)([a-zA-Z])")
_VERBS: Final = {"v": "s", "q": "s", "t": "s"}


class TemplateProblem(BuildrunnerError):
    """A template is invalid, or fails for this build. The message names the line.

    Attributes:
        is_of_all: the template fails for every build, since it uses a field that does not exist.
    """

    is_of_all = False


def check_template(text: str, kind: str, names: frozenset[str]) -> None:
    """Check that a template is valid, and that a Jinja2 template uses only known names.

    Args:
        text: the template.
        kind: `GOLANG` or `JINJA`.
        names: the names that a Jinja2 template may use.

    Raises:
        TemplateProblem: the template is invalid, or uses an unknown name.
    """
    _compiled(text, kind, "")
    if kind == GOLANG:
        return
    environment = _environment("")
    requested = find_undeclared_variables(environment.parse(text))
    for name in sorted(requested - names - environment.globals.keys()):
        hint = suggestion(name, names)
        raise TemplateProblem(f"there is no name {name}{f'; {hint}' if hint else ''}")


def is_json(text: str) -> bool:
    """Return whether a template makes JSON: its text opens an object or list, and closes it."""
    words = _VALUE.sub("_", _CONTROL.sub("", text)).strip()
    return words[:1] + words[-1:] in ("{}", "[]")


def rendered(text: str, kind: str, values: Mapping[str, Any], *, escapes: Escapes = "") -> str:
    """Render a template with values.

    Args:
        text: the template.
        kind: `GOLANG` or `JINJA`.
        values: the values for the template.
        escapes: format of the output, for which values are escaped; empty for plain text.

    Raises:
        TemplateProblem: the template is invalid, or fails.
    """
    pieces: list[str] = []
    length = 0
    try:
        for piece in _compiled(text, kind, escapes).generate(**values):
            pieces.append(piece)
            length += len(piece)
            if length > MOST_CHARACTERS:
                break
    except (TemplateProblem, MemoryError):
        raise
    except SecurityError as error:
        raise TemplateProblem(f"{_line_of(error)}this is not allowed: {error}") from error
    except Exception as error:  # a template may raise any error, which becomes a problem
        problem = TemplateProblem(f"{_line_of(error)}{_reason(error)}")
        problem.is_of_all = _NEVER.search(str(error)) is not None
        raise problem from error
    if length > MOST_CHARACTERS:
        raise TemplateProblem(f"the template makes more than {MOST_CHARACTERS} characters")
    return "".join(pieces)


@lru_cache(maxsize=5)
def _environment(escapes: Escapes) -> ImmutableSandboxedEnvironment:
    sandbox = ImmutableSandboxedEnvironment(
        undefined=StrictUndefined,
        autoescape=escapes == "html",
        finalize=_PARTS.get(escapes),
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=False,
    )
    sandbox.globals = {"range": sandbox.globals["range"], **FUNCTIONS}
    return sandbox


def _json_part(value: Any) -> Any:
    """Escape a value for a string in JSON. A value from ``tojson`` is JSON and stays unchanged."""
    if isinstance(value, Markup | Quoted):
        return value
    return json.dumps(str(value), ensure_ascii=False)[1:-1]


def escaped_for_chat(text: str) -> str:
    """Escape text for Slack and Google Chat: it can't mention people or make links.

    Source: https://docs.slack.dev/messaging/formatting-message-text/#escaping
    """
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _chat_part(value: Any) -> Any:
    """Escape a value. A value that the template calls safe stays unchanged."""
    return value if isinstance(value, Markup) else escaped_for_chat(str(value))


def _chat_json_part(value: Any) -> Any:
    """Escape a value for a string in JSON, and all strings of a value from ``tojson``."""
    if isinstance(value, Markup | Quoted):
        try:
            return json.dumps(_escaped_in(json.loads(value)), ensure_ascii=False)
        except (ValueError, RecursionError):  # the template calls it safe
            return value
    return _json_part(_escaped_in(str(value)))


def _escaped_in(value: Any) -> Any:
    if isinstance(value, str):  # a URL may be that of a button, where `&amp;` is no `&`
        return value if _URL.fullmatch(value) else escaped_for_chat(value)
    if isinstance(value, list):
        return [_escaped_in(one) for one in value]
    if isinstance(value, dict):
        return {name: _escaped_in(one) for name, one in value.items()}
    return value


_PARTS: Final[dict[str, Callable[[Any], Any]]] = {
    "json": _json_part,
    "chat": _chat_part,
    "chat-json": _chat_json_part,
}


@lru_cache(maxsize=256)
def _compiled(text: str, kind: str, escapes: Escapes) -> Any:
    try:
        source = translated(text) if kind == GOLANG else text
        return _environment(escapes).from_string(source)
    except GoTemplateError as error:
        raise TemplateProblem(str(error)) from error
    except TemplateSyntaxError as error:
        raise TemplateProblem(f"line {error.lineno}: {error.message}") from error
    except (TemplateError, RecursionError, SyntaxError) as error:
        raise TemplateProblem(f"the template can't be read: {error}") from error


def _line_of(error: Exception) -> str:
    """Return the line of an error, as ``line 3: ``; empty if unknown."""
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if frame.filename == _NAME:
            return f"line {frame.lineno}: "
    return ""


def _reason(error: Exception) -> str:
    text = str(error) or type(error).__name__
    return _NO_FIELD.sub(r"there is no field \1", text)


class Quoted(str):
    """Quoted text, as from ``%q``, which is valid JSON."""

    __slots__ = ()


def field(value: Any, name: str) -> Any:
    """Return ``.Name`` of a value; None for a missing key of a map.

    Raises:
        ValueError: the value has no such field.
    """
    if isinstance(value, MessageView):
        try:
            return value[name[:1].lower() + name[1:]]
        except KeyError:
            raise ValueError(f"a {value.kind_name} has no field {name}") from None
    if isinstance(value, Mapping):
        return value.get(name)
    if value is None:
        return None
    raise ValueError(f"{shown(value)[:40]!r} has no field {name}")


def pairs(value: Any) -> Iterator[tuple[Any, Any]]:
    """Return the items of ``range``: a list with its indexes, a map by its sorted keys."""
    if isinstance(value, Mapping):
        return iter(sorted(value.items()))
    if isinstance(value, list | tuple):
        return iter(enumerate(value))
    if value is None:
        return iter(())
    raise ValueError(f"range can't go through {shown(value)[:40]!r}")


def shown(value: Any) -> str:
    """Return a value as Go prints it."""
    if isinstance(value, str):
        return value
    if value is None:
        return _NOTHING
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, Mapping):
        return f"map[{' '.join(f'{key}:{shown(item)}' for key, item in sorted(value.items()))}]"
    if isinstance(value, list | tuple):
        return f"[{' '.join(shown(item) for item in value)}]"
    return str(value)


def _index(value: Any, *keys: Any) -> Any:
    for key in keys:
        if isinstance(value, Mapping):
            value = value.get(key)
            continue
        try:
            value = value[key]
        except (TypeError, IndexError):
            raise ValueError(f"{shown(value)[:40]!r} has no index {key}") from None
    return value


def _slice(value: Any, start: int = 0, end: int | None = None) -> Any:
    try:
        return value[start:end]
    except TypeError:
        raise ValueError(f"slice can't be taken of {shown(value)[:40]!r}") from None


def _equal(first: Any, *others: Any) -> bool:
    return any(first == other for other in others)


def _and(*values: Any) -> Any:
    return next((value for value in values if not value), values[-1])


def _or(*values: Any) -> Any:
    return next((value for value in values if value), values[-1])


def _printf(form: str, *values: Any) -> str:
    if "*" in form or re.search(r"%[0-9]{3}", form):
        raise ValueError(f"printf {form!r}: widths of that kind are not understood here")
    verbs = _VERB.findall(form)
    given = [_printed(verb, value) for verb, value in zip(verbs, values, strict=False)]
    try:
        text = _VERB.sub(lambda verb: f"{verb[0][:-1]}{_VERBS.get(verb[1], verb[1])}", form)
        made = text % (*given, *values[len(given) :])
    except (TypeError, ValueError) as error:
        raise ValueError(f"printf {form!r}: {error}") from None
    return Quoted(made) if form == "%q" else made


def _printed(verb: str, value: Any) -> Any:
    if verb == "q":
        return json.dumps(shown(value), ensure_ascii=False)
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return value if is_number and verb not in "sv" else shown(value)


def _replace(text: Any, old: str, new: str) -> str:
    return shown(text).replace(old, new)


CALLS: Final[dict[str, Callable[..., Any]]] = {
    "and": _and,
    "or": _or,
    "not": lambda value: not value,
    "eq": _equal,
    "ne": lambda first, second: first != second,
    "lt": lambda first, second: first < second,
    "le": lambda first, second: first <= second,
    "gt": lambda first, second: first > second,
    "ge": lambda first, second: first >= second,
    "len": len,
    "index": _index,
    "slice": _slice,
    "print": lambda *values: "".join(map(shown, values)),
    "println": lambda *values: " ".join(map(shown, values)) + "\n",
    "printf": _printf,
    "html": lambda *values: html.escape("".join(map(shown, values))),
    "urlquery": lambda *values: quote_plus("".join(map(shown, values))),
    "replace": _replace,
}


# The functions that translated templates call.
FUNCTIONS: Final[dict[str, Callable[..., object]]] = {
    "go_call": lambda name, *values: CALLS[name](*values),
    "go_field": field,
    "go_pairs": pairs,
    "go_text": shown,
}
ROOT: Final = "go_root"

_ACTION: Final = re.compile(
    r"""\{\{(?P<before>-[ \t\r\n])?[ \t\r\n]*
    (?P<body>/\*.*?\*/|(?:"(?:\\.|[^"\\\n])*"|`[^`]*`|[^"`{}])*?)
    [ \t\r\n]*(?P<after>[ \t\r\n]-)?\}\}""",
    re.VERBOSE | re.DOTALL,
)
_TOKEN: Final = re.compile(
    r"""\s*(?:(?P<text>"(?:\\.|[^"\\\n])*")|(?P<raw>`[^`]*`)|(?P<number>-?[0-9]+(?:\.[0-9]+)?)
    |(?P<path>(?:\$[A-Za-z0-9_]*)?(?:\.[A-Za-z_][A-Za-z0-9_]*)+|\$[A-Za-z0-9_]*|\.)
    |(?P<name>[A-Za-z_][A-Za-z0-9_]*)|(?P<sign>:=|[()|,=]))""",
    re.VERBOSE,
)
_DECLARED: Final = re.compile(
    r"\$([A-Za-z0-9_]+)\s*(?:,\s*\$([A-Za-z0-9_]+)\s*)?:?=(.*)", re.DOTALL
)
_BLOCKS: Final = ("if", "range", "with")
_WORDS: Final = {"true": "true", "false": "false", "nil": "none"}
# A brace before an action would be parsed as part of it.
_BRACES: Final = re.compile(r"\{(?=[{%#]|$)")


class GoTemplateError(ValueError):
    """A template that can't be translated; the message names the line."""


def translated(text: str) -> str:
    """Return the Jinja2 template equivalent to a Go template.

    Raises:
        GoTemplateError: the template is invalid.
    """
    return _Translation(text).result()


class _Translation:
    def __init__(self, text: str) -> None:
        self._text = text
        self._line = 1
        self._ends: list[str] = []  # closing tags of the open blocks
        self._dots: list[str] = [ROOT]

    def result(self) -> str:
        pieces: list[str] = []
        at = 0
        for action in _ACTION.finditer(self._text):
            pieces.append(self._literal(self._text[at : action.start()]))
            self._line = self._text.count("\n", 0, action.start()) + 1
            pieces.append(self._action(action))
            at = action.end()
        pieces.append(self._literal(self._text[at:]))
        if self._ends:
            raise self._wrong(f"{len(self._ends)} of if, range and with have no end")
        return "".join(pieces)

    def _literal(self, text: str) -> str:
        if "{{" in text:
            raise self._wrong("there is a {{ without its }}")
        return _BRACES.sub("{{ '{' }}", text)

    def _action(self, action: re.Match[str]) -> str:
        opening = "-" if action["before"] else ""
        closing = "-" if action["after"] else ""
        body = action["body"].strip()
        newlines = "\n" * action.group().count("\n")
        if body.startswith("/*"):
            return f"{{#{opening} {newlines}{closing}#}}"
        statement, is_block = self._statement(body)
        if is_block:
            return f"{{%{opening or '+'} {statement}{newlines} {closing or '+'}%}}"
        return f"{{{{{opening} go_text({statement}){newlines} {closing}}}}}"

    def _statement(self, body: str) -> tuple[str, bool]:
        word, _, rest = body.partition(" ") if " " in body else (body, "", "")
        if word in _BLOCKS:
            return self._block(word, rest), True
        if word == "else":
            return self._otherwise(rest.strip()), True
        if word == "end":
            if not self._ends:
                raise self._wrong("there is an end of nothing")
            self._dots.pop()
            return self._ends.pop(), True
        if word in ("define", "template", "block", "break", "continue"):
            raise self._wrong(f"{word} is not understood here")
        declared = _DECLARED.fullmatch(body)
        if declared:
            return f"set v_{declared[1]} = {self._pipe(declared[3])}", True
        return self._pipe(body), False

    def _block(self, word: str, rest: str) -> str:
        declared = _DECLARED.fullmatch(rest.strip())
        value = self._pipe(declared[3] if declared else rest)
        dot = f"dot{len(self._dots)}"
        if word == "if":
            self._open("endif", self._dots[-1])
            if declared:
                raise self._wrong("declare the variable before the if")
            return f"if {value}"
        if word == "with":
            name = f"v_{declared[1]}" if declared else dot
            self._open("endif %}{% endwith", name)
            return f"with {name} = {value} %}}{{% if {name}"
        self._open("endfor", dot)
        key, item = "key_", dot
        if declared:
            key, item = (declared[1], declared[2]) if declared[2] else ("key_", declared[1])
            key, item = (key if key == "key_" else f"v_{key}"), f"v_{item}"
            self._dots[-1] = item
        return f"for {key}, {item} in go_pairs({value})"

    def _open(self, end: str, dot: str) -> None:
        self._ends.append(end)
        self._dots.append(dot)

    def _otherwise(self, rest: str) -> str:
        if not self._ends:
            raise self._wrong("there is an else of nothing")
        self._dots[-1] = self._dots[-2]
        if rest.startswith("if "):
            return f"elif {self._pipe(rest[3:])}"
        if rest:
            raise self._wrong(f"else {rest} is not understood here")
        return "else"

    # -- expressions -----------------------------------------------------------------------------

    def _pipe(self, text: str) -> str:
        tokens = self._tokens(text)
        value = self._commands(tokens)
        if tokens:
            raise self._wrong(f"{tokens[0][1]!r} is not understood here")
        return value

    def _tokens(self, text: str) -> list[tuple[str, str]]:
        found: list[tuple[str, str]] = []
        at = 0
        while text[at:].strip():
            token = _TOKEN.match(text, at)
            if token is None or token.lastgroup is None:
                raise self._wrong(f"{text[at:].strip()[:20]!r} is not understood here")
            found.append((token.lastgroup, token[token.lastgroup]))
            at = token.end()
        return found

    def _commands(self, tokens: list[tuple[str, str]]) -> str:
        value = self._command(tokens, None)
        while tokens and tokens[0] == ("sign", "|"):
            tokens.pop(0)
            value = self._command(tokens, value)
        return value

    def _command(self, tokens: list[tuple[str, str]], piped: str | None) -> str:
        if not tokens:
            raise self._wrong("a value is missing")
        function = ""
        if tokens[0][0] == "name" and tokens[0][1] not in _WORDS:
            function = tokens.pop(0)[1]
            if function not in CALLS:
                raise self._wrong(f"there is no function {function}")
        values: list[str] = []
        while tokens and tokens[0][1] not in ("|", ")"):
            values.append(self._operand(tokens))
        if piped is not None:
            values.append(piped)
        if function:
            return f"go_call({', '.join([repr(function), *values])})"
        if len(values) != 1:
            raise self._wrong("a value can't be called")
        return values[0]

    def _operand(self, tokens: list[tuple[str, str]]) -> str:
        kind, text = tokens.pop(0)
        if kind == "text":
            return text
        if kind == "raw":
            return repr(text[1:-1])
        if kind == "number":
            return text
        if kind == "name" and text in _WORDS:
            return _WORDS[text]
        if kind == "path":
            return self._path(text)
        if text == "(":
            value = self._commands(tokens)
            if not tokens or tokens.pop(0)[1] != ")":
                raise self._wrong("a ) is missing")
            return self._fields(value, tokens)
        raise self._wrong(f"{text!r} is not understood here")

    def _fields(self, value: str, tokens: list[tuple[str, str]]) -> str:
        """Translate fields of a parenthesized expression: ``(index .Build.Steps 0).Name``."""
        if (
            tokens
            and tokens[0][0] == "path"
            and tokens[0][1].startswith(".")
            and len(tokens[0][1]) > 1
        ):
            return _chain(value, tokens.pop(0)[1])
        return value

    def _path(self, text: str) -> str:
        if text.startswith("$"):
            name, _, rest = text[1:].partition(".")
            return _chain(f"v_{name}" if name else ROOT, f".{rest}" if rest else "")
        return _chain(self._dots[-1], "" if text == "." else text)

    def _wrong(self, message: str) -> GoTemplateError:
        return GoTemplateError(f"line {self._line}: {message}")


def _chain(value: str, fields: str) -> str:
    for name in filter(None, fields.split(".")):
        value = f"go_field({value}, {name!r})"
    return value
