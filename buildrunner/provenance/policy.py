"""The policy that an artifact's provenance must meet, and the file that it comes from."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from difflib import get_close_matches
from typing import Any, Final

import msgspec
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from buildrunner.errors import ConfigError, UsageError
from buildrunner.problem import Problem
from buildrunner.spec.reading.nodes import compose, position

KEYS: Final = ("keys", "authorities", "builders", "sources", "refs", "configs", "forks")


class Policy(msgspec.Struct, frozen=True, kw_only=True):
    """Demands on provenance. An empty field allows every value, but there must be a key.

    In patterns ``*`` stands for any characters but a slash, ``**`` for any characters.

    Attributes:
        keys: paths of public keys, one of which must have signed.
        authorities: paths of certificates of authorities, one of which must have certified the key
            that signed, unless it is one of ``keys``.
        builders: patterns of builder ids.
        sources: patterns of URLs of source repositories.
        refs: patterns of refs: ``refs/heads/main``, ``refs/tags/v*``.
        configs: patterns of paths of the config in the source repository.
        forks: accept builds of pull requests from forks.
    """

    keys: tuple[str, ...] = ()
    authorities: tuple[str, ...] = ()
    builders: tuple[str, ...] = ()
    sources: tuple[str, ...] = ()
    refs: tuple[str, ...] = ()
    configs: tuple[str, ...] = ()
    forks: bool = False


def allows(patterns: Iterable[str], text: str) -> bool:
    """Return whether one of the patterns matches the whole text."""
    return any(_compiled(pattern).fullmatch(text) for pattern in patterns)


def read_policy(path: str) -> Policy:
    """Read a policy file. Paths in it are relative to the file.

    Raises:
        ConfigError: the file is wrong; holds every problem with its place.
        UsageError: the file cannot be read.
    """
    try:
        with open(path, "rb") as file:
            text = file.read()
    except OSError as error:
        raise UsageError(f"the policy {path} can't be read: {error.strerror or error}") from error
    root, problem = compose(text)
    if problem is not None:
        raise ConfigError([msgspec.structs.replace(problem, file=path)])
    if not isinstance(root, MappingNode):
        raise ConfigError([Problem("a policy is a mapping", file=path, hint=_known())])
    problems: list[Problem] = []
    fields = dict(_fields(path, root, problems))
    if problems:
        raise ConfigError(problems)
    folder = os.path.dirname(path)
    for name in ("keys", "authorities"):
        fields[name] = tuple(os.path.join(folder, file) for file in fields.get(name, ()))
    return Policy(**fields)


def _fields(path: str, root: MappingNode, problems: list[Problem]) -> Iterator[tuple[str, Any]]:
    for key, value in root.value:
        name = key.value if isinstance(key, ScalarNode) else ""
        line, column = position(key)
        if name not in KEYS:
            near = get_close_matches(name, KEYS, n=1)
            hint = f"did you mean {near[0]}?" if near else _known()
            problems.append(
                Problem("unknown key", name, file=path, line=line, column=column, hint=hint)
            )
        elif name == "forks":
            if not isinstance(value, ScalarNode) or value.value not in ("true", "false"):
                problems.append(_wrong(path, name, value, "must be true or false"))
            else:
                yield name, value.value == "true"
        elif (texts := _texts(value)) is None:
            problems.append(_wrong(path, name, value, "must be a list of strings"))
        else:
            yield name, texts


def _texts(node: Node) -> tuple[str, ...] | None:
    """Return a list of texts, or one text as such a list; None for anything else."""
    nodes = node.value if isinstance(node, SequenceNode) else [node]
    if not all(isinstance(one, ScalarNode) and one.value for one in nodes):
        return None
    return tuple(str(one.value) for one in nodes)


def _wrong(path: str, name: str, node: Node, message: str) -> Problem:
    line, column = position(node)
    return Problem(message, name, file=path, line=line, column=column)


def _known() -> str:
    return f"keys are {', '.join(KEYS)}"


def _compiled(pattern: str) -> re.Pattern[str]:
    texts = (
        re.escape(part) if at % 2 == 0 else "[^/]*" if part == "*" else ".*"
        for at, part in enumerate(re.split(r"(\*+)", pattern))  # text and asterisks by turns
    )
    return re.compile("".join(texts), re.DOTALL)
