"""The words of messages: Jinja2 in its sandbox, and the part of Go's templates that notifiers use.

A template sees data and nothing else: no files, no attributes of Python's objects. What is wrong
with it is told with its line. A server evaluates templates in `bounded_process` only: even to
compile one takes as much time and memory as its author likes.

Source: https://jinja.palletsprojects.com/en/stable/sandbox/
"""

from __future__ import annotations

import json
import re
import traceback
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, Final, Literal

from jinja2 import StrictUndefined, TemplateError, TemplateSyntaxError
from jinja2.exceptions import SecurityError
from jinja2.meta import find_undeclared_variables
from jinja2.sandbox import ImmutableSandboxedEnvironment
from markupsafe import Markup

from buildrunner.errors import BuildrunnerError
from buildrunner.server.notifications.go_templates import (
    FUNCTIONS,
    GoTemplateError,
    Quoted,
    translated,
)
from buildrunner.server.notifications.model import GOLANG
from buildrunner.spec.reading.findings import suggestion

MOST_CHARACTERS: Final = 256 * 1024
_NO_FIELD: Final = re.compile(r"'[\w.]+ object' has no attribute ('\w+')")
_NEVER: Final = re.compile(r"MessageView object' has no attribute|has no field \w+$")
_NAME: Final = "<template>"  # Jinja's own name for a template that is no file

# Tags that print nothing, in either language, and tags that print a value.
_CONTROL: Final = re.compile(
    r"\{%.*?%\}|\{#.*?#\}|\{\{-?\s*(?:(?:if|else|end|range|with)\b|/\*|\$\w+\s*:?=).*?\}\}",
    re.DOTALL,
)
_VALUE: Final = re.compile(r"\{\{.*?\}\}", re.DOTALL)

Escapes = Literal["", "html", "json"]


class TemplateProblem(BuildrunnerError):
    """A template can't be read, or says nothing for this build. The message names the line.

    Attributes:
        is_of_all: it is so for every build: a field that there never is.
    """

    is_of_all = False


def check_template(text: str, kind: str, names: frozenset[str]) -> None:
    """Whether a template can be read, and asks for nothing that there never is.

    Args:
        text: the template.
        kind: `GOLANG` or `JINJA`.
        names: what one of Jinja2 may see.

    Raises:
        TemplateProblem: it can't, or does.
    """
    _compiled(text, kind, "")
    if kind == GOLANG:
        return
    environment = _environment("")
    asked = find_undeclared_variables(environment.parse(text))
    for name in sorted(asked - names - environment.globals.keys()):
        hint = suggestion(name, names)
        raise TemplateProblem(f"there is no name {name}{f'; {hint}' if hint else ''}")


def is_json(text: str) -> bool:
    """Whether a template makes JSON: its own words open an object or a list, and close it."""
    words = _VALUE.sub("_", _CONTROL.sub("", text)).strip()
    return words[:1] + words[-1:] in ("{}", "[]")


def rendered(text: str, kind: str, values: Mapping[str, Any], *, escapes: Escapes = "") -> str:
    """Render a template with values.

    Args:
        text: the template.
        kind: `GOLANG` or `JINJA`.
        values: what it sees.
        escapes: what it makes: values are escaped so that they stay values in it.

    Raises:
        TemplateProblem: it can't be read, or fails.
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
    except Exception as error:  # a template may do anything with any build: it is told, not raised
        problem = TemplateProblem(f"{_line_of(error)}{_reason(error)}")
        problem.is_of_all = _NEVER.search(str(error)) is not None
        raise problem from error
    if length > MOST_CHARACTERS:
        raise TemplateProblem(f"the template makes more than {MOST_CHARACTERS} characters")
    return "".join(pieces)


@lru_cache(maxsize=3)
def _environment(escapes: Escapes) -> ImmutableSandboxedEnvironment:
    sandbox = ImmutableSandboxedEnvironment(
        undefined=StrictUndefined,
        autoescape=escapes == "html",
        finalize=_json_part if escapes == "json" else None,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=False,
    )
    sandbox.globals = {"range": sandbox.globals["range"], **FUNCTIONS}
    return sandbox


def _json_part(value: Any) -> Any:
    """A value inside a JSON text's quotes; what is JSON by itself (``tojson``) stays as it is."""
    if isinstance(value, Markup | Quoted):
        return value
    return json.dumps(str(value), ensure_ascii=False)[1:-1]


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
    """``line 3: ``, where in the template it went wrong; empty if nobody knows."""
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if frame.filename == _NAME:
            return f"line {frame.lineno}: "
    return ""


def _reason(error: Exception) -> str:
    text = str(error) or type(error).__name__
    return _NO_FIELD.sub(r"there is no field \1", text)
