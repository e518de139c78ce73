"""Notifiers: configs in the form of Cloud Build's own notifiers, and what we add to it. Pure.

What we add needs ``apiVersion: buildrunner/v1``, so that a config says by itself whether it is
understood elsewhere::

    apiVersion: buildrunner/v1
    kind: SlackNotifier
    metadata: {name: team}
    spec:
      notification:
        on: change
        filter: build.substitutions["BRANCH_NAME"] == "main"
        template: {type: jinja2, content: "{{ trigger }} is {{ change }}"}
        delivery: {webhookUrl: {secretRef: url}}
      secrets: [{name: url, value: slack-url}]

Source: semantics 12.2; "Configure notifications" of Cloud Build's documentation, and the source of
cloud-build-notifiers.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, get_args

import msgspec

from buildrunner.errors import ConfigError
from buildrunner.problem import Problem
from buildrunner.server.notifications.checks import KINDS, Finding, problems_of
from buildrunner.server.notifications.model import Notifier, On

_CHOICES = {
    "spec.notification.on": f"use one of {', '.join(get_args(On))}",
    "spec.notification.delivery.tls": "use starttls or tls, or leave it out",
}
_TYPES = {
    "object": "a mapping",
    "array": "a list",
    "str": "text",
    "int": "a number",
    "float": "a number with a point",
    "bool": "true or false",
    "null": "nothing",
}
_WANTED = re.compile(r"expected `([^`]*)`, got `([^`]*)`")
_PLACE = re.compile(r" - at `\$\.?(.*)`$")


def read_notifier(document: Any, *, with_filter: bool = True) -> Notifier:
    """The notifier in a document, with its words and its filter checked here.

    A server checks in `bounded_process` instead (`notifier_of`, `config_error`): it does not know
    how long that takes.

    Args:
        document: as parsed from JSON or YAML.
        with_filter: look at its filter, too, which needs CEL.

    Raises:
        ConfigError: something is wrong in it.
    """
    notifier = notifier_of(document)
    problems = problems_of(notifier, with_filter=with_filter)
    if problems:
        raise config_error(problems)
    return notifier


def config_error(problems: Sequence[Finding]) -> ConfigError:
    """The error that tells of problems."""
    return ConfigError(
        [
            Problem(message, path=path, hint=hint, rule="notifier")
            for path, message, hint in problems
        ]
    )


def notifier_of(document: Any) -> Notifier:
    """The notifier in a document, as far as its form goes; neither words nor filter are looked at.

    Args:
        document: as parsed from JSON or YAML.

    Raises:
        ConfigError: it has not the form.
    """
    kind = document.get("kind") if isinstance(document, dict) else None
    if isinstance(kind, str) and kind not in KINDS:  # whose fields nobody here knows
        hint = f"use one of {', '.join(KINDS)}"
        wrong = Problem(f"there is no {kind} here", path="kind", hint=hint, rule="notifier")
        raise ConfigError([wrong])
    try:
        return msgspec.convert(document, Notifier)
    except msgspec.ValidationError as error:
        text = str(error)
        place = _PLACE.search(text)
        message = _PLACE.sub("", text)
        message = _in_words(message[:1].lower() + message[1:])
        path = place.group(1) if place else ""
        hint = _CHOICES.get(path, "")
        raise ConfigError([Problem(message, path=path, hint=hint, rule="notifier")]) from error


def _in_words(message: str) -> str:
    """A sentence about types, as people call them."""

    def worded(found: re.Match[str]) -> str:
        wanted, got = (
            " or ".join(_TYPES.get(one, one) for one in group.split(" | "))
            for group in found.groups()
        )
        return f"{wanted} is wanted here, not {got}"

    return _WANTED.sub(worded, message)
