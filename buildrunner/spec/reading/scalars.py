"""Readers of scalar values: from a node to a Python value.

A reader returns None for null and after a reported problem; the field then keeps its
default and decoding continues.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

from yaml.nodes import Node, ScalarNode, SequenceNode

from buildrunner.spec.reading.findings import DecodingProblems, shorten

STRING = "string"
INTEGER = "integer"
NUMBER = "number"
BOOLEAN = "boolean"
NULL = "null"
DATE = "date"

# A plain scalar that begins with any other character is a string.
_SUSPECT = frozenset("-+0123456789.yYnNtTfFoO~")

_WORDS: Mapping[str, str] = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL"), NULL),
    **{
        form: BOOLEAN
        for word in ("yes", "no", "true", "false", "on", "off")
        for form in (word, word.capitalize(), word.upper())
    },
}

_TRUE = frozenset(("yes", "true", "on"))

_NUMBERS = re.compile(
    r"""
    (?P<integer> [-+]? (?: 0b[01_]+ | 0[0-7_]+ | 0x[0-9a-fA-F_]+ | 0
        | [1-9][0-9_]* (?: : [0-5]?[0-9] )* ) )
    | (?P<number> [-+]? (?: [0-9][0-9_]* \. [0-9_]* (?: [eE][-+][0-9]+ )?
        | [0-9][0-9_]* (?: : [0-5]?[0-9] )+ \. [0-9_]* | \.(?: inf | Inf | INF ) )
        | \.[0-9][0-9_]* (?: [eE][-+][0-9]+ )? | \.(?: nan | NaN | NAN ) )
    | (?P<date> [0-9]{4} - [0-9]{2} - [0-9]{2}
        | [0-9]{4} - [0-9]{1,2} - [0-9]{1,2} (?: [Tt] | [ \t]+ )
          [0-9]{1,2} : [0-9]{2} : [0-9]{2} (?: \. [0-9]* )?
          (?: [ \t]* (?: Z | [-+][0-9]{1,2} (?: : [0-9]{2} )? ) )? )
    """,
    re.VERBOSE,
)

_EXPLICIT: Mapping[str, str] = {
    "tag:yaml.org,2002:str": STRING,
    "tag:yaml.org,2002:int": INTEGER,
    "tag:yaml.org,2002:float": NUMBER,
    "tag:yaml.org,2002:bool": BOOLEAN,
    "tag:yaml.org,2002:null": NULL,
    "tag:yaml.org,2002:timestamp": DATE,
}


def kind_of_plain(text: str) -> str:
    """Return the kind of an unquoted ``text``: STRING, INTEGER, NUMBER, BOOLEAN, NULL or DATE."""
    if text[:1] not in _SUSPECT and text:
        return STRING
    word = _WORDS.get(text)
    if word is not None:
        return word
    match = _NUMBERS.fullmatch(text)
    return match.lastgroup or STRING if match else STRING


def kind_of_tag(tag: str) -> str | None:
    """Return the kind that an explicit tag (``!!str``) gives a scalar; None for an unknown tag."""
    return _EXPLICIT.get(tag)


def boolean_value(text: str) -> bool:
    """Return the value of a scalar of kind BOOLEAN."""
    return text.lower() in _TRUE


def integer_value(text: str) -> int:
    """Return the value of a scalar of kind INTEGER, in any of YAML 1.1's notations.

    Raises:
        ValueError: ``text`` is no integer (only with an explicit tag), or has more than 100 digits.
    """
    digits = text.replace("_", "")
    if len(digits) > 100:
        message = "too many digits"
        raise ValueError(message)
    sign = -1 if digits.startswith("-") else 1
    digits = digits.lstrip("+-")
    if ":" in digits:
        value = 0
        for part in digits.split(":"):
            value = value * 60 + int(part)
        return sign * value
    if digits.startswith("0") and digits.isdigit() and len(digits) > 1:
        return sign * int(digits, 8)
    return sign * int(digits, 0)


Reader = Callable[[Node, DecodingProblems], Any]

# The parts of a duration; the longest duration is the limit of the protobuf type.
_DURATION = re.compile(r"(-?)(\d{1,12})(?:\.(\d{1,9}))?s")
_MAX_DURATION_S = 315_576_000_000
# Go's durations.
_GO_DURATION = re.compile(
    r"([-+]?)((?:(?:\d{1,12}(?:\.\d{0,9})?|\.\d{1,9})(?:ns|us|µs|μs|ms|s|m|h))+)"
)
_GO_PART = re.compile(r"([\d.]+)([^\d.]+)")
_GO_UNITS_S = {
    "ns": 1e-9,
    "us": 1e-6,
    "µs": 1e-6,
    "μs": 1e-6,
    "ms": 1e-3,
    "s": 1,
    "m": 60,
    "h": 3600,
}
_HUMAN_DURATION = re.compile(r"(?:(\d{1,6})h)?(?:(\d{1,6})m)?(?:(\d{1,9})s?)?")

_INSTANT = re.compile(
    r"(\d{4})-(\d\d)-(\d\d)[Tt](\d\d):(\d\d):(\d\d)(?:\.(\d{1,9}))?(?:([Zz])|([-+])(\d\d):(\d\d))"
)
_DECIMAL = re.compile(r"-?[0-9]{1,20}(?:\.0{1,20})?")
_BASE64 = re.compile(r"[A-Za-z0-9+/_\-\r\n]*={0,2}[\r\n]*")

_NAMES = {
    STRING: "a string",
    INTEGER: "a number",
    NUMBER: "a number",
    BOOLEAN: "a boolean",
    NULL: "null",
    DATE: "a date",
}


def kind_of(node: Node) -> str:
    """Return the kind of ``node``: one of the constants above, or the words for anything else."""
    if isinstance(node, ScalarNode):
        tag: object = node.tag
        if isinstance(tag, tuple):
            return kind_of_plain(node.value) if tag[0] else STRING
        return kind_of_tag(str(tag)) or f"a value with the tag {tag}"
    return "a list" if isinstance(node, SequenceNode) else "a mapping"


def describe(node: Node) -> str:
    """Describe ``node`` for a message: its text and its kind."""
    kind = kind_of(node)
    name = _NAMES.get(kind, kind)
    if kind in (INTEGER, NUMBER, BOOLEAN, DATE, STRING):
        return f"{shorten(node.value)} is {name}"
    return f"this is {name}"


def is_null(node: Node) -> bool:
    """Return whether ``node`` is null."""
    return isinstance(node, ScalarNode) and kind_of(node) == NULL


def wrong_type(node: Node, findings: DecodingProblems, wanted: str, hint: str = "") -> None:
    """Report that ``node`` has the wrong type; null is no problem."""
    kind = kind_of(node)
    if kind == NULL:
        return
    rule = "yaml-tag" if kind.startswith("a value with") else "wrong-type"
    findings.error(node, f"{wanted} is wanted, but {describe(node)}", rule=rule, hint=hint)


def read_string(node: Node, findings: DecodingProblems) -> str | None:
    """Read a string. A value that YAML reads as another type must be quoted."""
    if type(node) is ScalarNode:
        text: str = node.value
        tag: object = node.tag
        if type(tag) is tuple and (not tag[0] or kind_of_plain(text) is STRING):
            return text
    kind = kind_of(node)
    if kind == STRING:
        plain: str = node.value
        return plain
    if kind in (INTEGER, NUMBER, BOOLEAN, DATE):
        hint = f"quote this value: '{shorten(node.value)}'"
        message = f"a string is wanted, but to YAML {describe(node)}"
        findings.error(node, message, rule="unquoted-string", hint=hint)
    else:
        wrong_type(node, findings, "a string")
    return None


def read_boolean(node: Node, findings: DecodingProblems) -> bool | None:
    """Read ``true`` or ``false``; YAML 1.1's other words are accepted with a warning."""
    if kind_of(node) != BOOLEAN or kind_of_plain(node.value) != BOOLEAN:
        wrong_type(node, findings, "true or false", "write it without quotes")
        return None
    value = boolean_value(node.value)
    if node.value.lower() not in ("true", "false"):
        findings.warning(
            node,
            f"{node.value} is a boolean to some readers and a string to others",
            rule="boolean-word",
            hint=f"write {str(value).lower()}",
        )
    return value


def read_int32(node: Node, findings: DecodingProblems) -> int | None:
    """Read an integer of 32 bits, or its decimal digits in a string."""
    return _integer(node, findings, 32)


def read_int64(node: Node, findings: DecodingProblems) -> int | None:
    """Read an integer of 64 bits, or its decimal digits in a string."""
    return _integer(node, findings, 64)


def read_duration(node: Node, findings: DecodingProblems) -> timedelta | None:
    """Read seconds with an ``s``: "600s", "1.5s". Fractions of a microsecond are cut off.

    ``15m`` and ``1h30m`` are errors of the rule ``duration-unit``, and are read nevertheless.
    """
    kind = kind_of(node)
    text = node.value if kind == STRING else ""
    match = _DURATION.fullmatch(text)
    if match is not None and int(match[2]) <= _MAX_DURATION_S:
        length = timedelta(seconds=int(match[2]), microseconds=_microseconds(match[3]))
        return -length if match[1] else length
    if kind == NULL:
        return None
    hint = f"write it as '{_suggested_duration(node)}'"
    read = _go_duration(text)
    if read is None:
        message = f"a duration in seconds is wanted, but {describe(node)}"
        findings.error(node, message, rule="duration", hint=hint)
    else:
        message = f"{shorten(text)} is a duration to triggers only: it must be in seconds"
        findings.error(node, message, rule="duration-unit", hint=hint)
    return read


def _go_duration(text: str) -> timedelta | None:
    """Return the duration of a text in Go's format; None for other texts or too long durations."""
    match = _GO_DURATION.fullmatch(text)
    if match is None:
        return None
    parts = _GO_PART.findall(match[2])
    length = sum(float(number) * _GO_UNITS_S[unit] for number, unit in parts)
    if length > _MAX_DURATION_S:
        return None
    return timedelta(seconds=-length if match[1] == "-" else length)


def read_instant(node: Node, findings: DecodingProblems) -> datetime | None:
    """Read an RFC 3339 time with its offset. Fractions of a microsecond are cut off."""
    kind = kind_of(node)
    if kind == NULL:
        return None
    match = _INSTANT.fullmatch(node.value) if kind in (STRING, DATE) else None
    instant = _instant(match) if match is not None else None
    if instant is None:
        findings.error(
            node,
            f"a time is wanted, but {describe(node)}",
            rule="timestamp",
            hint="write it as '2024-05-31T12:00:00Z'",
        )
    return instant


def read_bytes(node: Node, findings: DecodingProblems) -> bytes | None:
    """Read base64 in either alphabet; line breaks are allowed, padding is optional."""
    kind = kind_of(node)
    if kind == NULL:
        return None
    text: str = node.value if kind == STRING else "?"
    digits = text.replace("\n", "").replace("\r", "").rstrip("=")
    if _BASE64.fullmatch(text) is None or len(digits) % 4 == 1:
        # The value may be an unencrypted secret: never show it.
        findings.error(
            node,
            "base64 text is wanted, but this is not base64",
            rule="base64",
            hint="encode the encrypted value with base64",
        )
        return None
    import base64

    padded = digits + "=" * (-len(digits) % 4)
    return base64.b64decode(padded.replace("-", "+").replace("_", "/"))


def _integer(node: Node, findings: DecodingProblems, bits: int) -> int | None:
    value = whole_number(node)
    if value is None:
        wrong_type(node, findings, "a whole number")
        return None
    if not -(1 << (bits - 1)) <= value < 1 << (bits - 1):
        message = f"{shorten(node.value)} does not fit in {bits} bits"
        findings.error(node, message, rule="number-range")
        return None
    return value


def whole_number(node: Node) -> int | None:
    """Return the integer in ``node``, perhaps as decimal digits in a string; else None."""
    kind = kind_of(node)
    try:
        if kind == INTEGER:
            return integer_value(node.value)
    except ValueError:
        return None
    if kind in (STRING, NUMBER) and _DECIMAL.fullmatch(node.value):
        return int(node.value.partition(".")[0])
    return None


def _microseconds(fraction: str | None) -> int:
    return int(fraction[:6].ljust(6, "0")) if fraction else 0


def _suggested_duration(node: Node) -> str:
    """Return the duration that the user probably meant by ``10m`` or ``600``."""
    if isinstance(node, ScalarNode):
        match = _HUMAN_DURATION.fullmatch(node.value)
        if match and any(match.groups()):
            hours, minutes, seconds = (int(part or 0) for part in match.groups())
            return f"{hours * 3600 + minutes * 60 + seconds}s"
    return "600s"


def _instant(match: re.Match[str]) -> datetime | None:
    year, month, day, hour, minute, second = (int(part) for part in match.groups()[:6])
    zone = UTC
    try:
        if match[8] is None:
            offset = timedelta(hours=int(match[10]), minutes=int(match[11]))
            zone = timezone(-offset if match[9] == "-" else offset)
        microsecond = _microseconds(match[7])
        return datetime(year, month, day, hour, minute, second, microsecond, zone).astimezone(UTC)
    except (ValueError, OverflowError):
        return None


READERS: Mapping[str, Reader] = {
    "str": read_string,
    "bool": read_boolean,
    "int": read_int32,
    "Int64": read_int64,
    "bytes": read_bytes,
    "datetime": read_instant,
    "timedelta": read_duration,
}
