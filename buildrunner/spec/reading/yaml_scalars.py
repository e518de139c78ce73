"""What a plain (unquoted) YAML 1.1 scalar is: a string, or something else that only looks like one.

YAML 1.1 reads ``yes``, ``010``, ``1:30`` and ``2024-01-01`` as a boolean, an octal number, a number
to base 60 and a date. The config readers of Cloud Build do so too and then refuse them where a
string is wanted; this module is how we know.

Source: https://yaml.org/type/
"""

from __future__ import annotations

import re
from collections.abc import Mapping

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
    """What an unquoted ``text`` is: STRING, INTEGER, NUMBER, BOOLEAN, NULL or DATE."""
    if text[:1] not in _SUSPECT and text:
        return STRING
    word = _WORDS.get(text)
    if word is not None:
        return word
    match = _NUMBERS.fullmatch(text)
    return match.lastgroup or STRING if match else STRING


def kind_of_tag(tag: str) -> str | None:
    """What an explicit tag (``!!str``) makes of a scalar; None for a tag we do not know."""
    return _EXPLICIT.get(tag)


def boolean_value(text: str) -> bool:
    """The value of a scalar of kind BOOLEAN."""
    return text.lower() in _TRUE


def integer_value(text: str) -> int:
    """The value of a scalar of kind INTEGER, in any of YAML 1.1's notations.

    Raises:
        ValueError: ``text`` is none (only with an explicit tag), or has more than 100 digits.
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
