"""The words for keys and values that no message knows; loaded only when one is met."""

from __future__ import annotations

import difflib
import enum
from collections.abc import Iterable

from yaml.nodes import Node, ScalarNode

from buildrunner.spec.model.message import Message, fields_of
from buildrunner.spec.model.stands import Stand, stand_of
from buildrunner.spec.reading.findings import Findings, camel_case
from buildrunner.spec.reading.scalars import shorten


def report_unknown_key(key: Node, message: type[Message], findings: Findings) -> None:
    """Reports a key that is no field of ``message``."""
    if not isinstance(key, ScalarNode):
        findings.error(key, "a key must be a single word", rule="wrong-type")
        return
    if findings.full:
        findings.error(key, "", rule="unknown-field")
        return
    verdict = stand_of(message, camel_case(key.value))
    if verdict is not None and verdict.stand is Stand.OUTPUT_ONLY:
        text = "this field is set by the service; the value given here is ignored"
        findings.warning(key, text, rule="output-only", hint="remove it")
    elif verdict is not None:
        text = f"{shorten(key.value)} is known to Cloud Build but not supported here"
        findings.error(key, text, rule="unsupported-field", hint=verdict.reason)
    else:
        name = message.__name__.rstrip("_")
        text = f"unknown field {shorten(key.value)!r} in {name}"
        findings.error(key, text, rule="unknown-field", hint=_hint_for_key(key.value, message))


def report_unknown_value(node: ScalarNode, found: type[enum.Enum], findings: Findings) -> None:
    """Reports a value that is no member of the enum ``found``."""
    if findings.full:
        findings.error(node, "", rule="enum-value")
        return
    verdict = stand_of(found, node.value)
    if verdict is not None:
        text = f"{shorten(node.value)} is known to Cloud Build but not supported here"
        findings.error(node, text, rule="unsupported-value", hint=verdict.reason)
        return
    names = list(found.__members__)
    hint = suggestion(node.value.upper(), names) or f"use one of {', '.join(names)}"
    text = f"{shorten(node.value)!r} is not one of the values of this field"
    findings.error(node, text, rule="enum-value", hint=hint)


def suggestion(word: str, known: Iterable[str]) -> str:
    """``did you mean waitFor?`` when a known word is close to ``word``, else empty."""
    if len(word) > 40:
        return ""
    by_lower = {name.lower(): name for name in known}
    close = difflib.get_close_matches(word.lower(), by_lower, n=1, cutoff=0.7)
    return f"did you mean {by_lower[close[0]]}?" if close else ""


def _hint_for_key(key: str, message: type[Message]) -> str:
    hint = suggestion(camel_case(key), [field.json for field in fields_of(message)])
    if not hint and key.startswith(("x-", ".")):
        hint = "Cloud Build has no extension fields: put the anchor where its value is first used"
    return hint
