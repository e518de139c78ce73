"""Text or JSON to messages: the one way in for configs, triggers and request bodies.

Nothing here raises for bad content: whatever is wrong comes back as problems, all of them.
"""

from __future__ import annotations

import hashlib
from typing import Any, Generic, TypeVar

from msgspec import Struct
from yaml.nodes import MappingNode, Node

from buildrunner.problem import Problem, Severity
from buildrunner.spec.model.build import Build
from buildrunner.spec.model.message import Message
from buildrunner.spec.model.trigger import BuildTrigger
from buildrunner.spec.reading.findings import Findings, locate
from buildrunner.spec.reading.nodes import compose, compose_all
from buildrunner.spec.reading.readers import message_reader
from buildrunner.spec.reading.scalars import is_null

M = TypeVar("M", bound="Message")


class Loaded(Struct, Generic[M], frozen=True):
    """A message as far as it could be read, and what was wrong.

    Attributes:
        value: the message; where something could not be read it has the field's default.
        problems: errors and warnings in the order of the text.
        root: root of the text's node tree, for `locate`; None when there is none.
    """

    value: M
    problems: tuple[Problem, ...]
    root: Any = None

    @property
    def ok(self) -> bool:
        """Whether there are no errors (there may be warnings)."""
        return all(problem.severity is not Severity.ERROR for problem in self.problems)

    def locate(self, path: str) -> tuple[int, int]:
        """Line and column (from 1) of what stands at a JSON path, or of its nearest ancestor.

        Args:
            path: such as ``steps[2].waitFor[0]``; a field that is not there is placed where the
                mapping that lacks it begins. (0, 0) when nothing was read from a text.
        """
        return locate(self.root, path)


class LoadedBuild(Loaded[Build], frozen=True):
    """A build config as far as it could be read, and what was wrong.

    Attributes:
        file: name of the file that was read; empty for a config that was in no file.
        sha256: SHA-256 of the file, in hex; empty without a file.
    """

    file: str = ""
    sha256: str = ""

    @property
    def build(self) -> Build:
        """The build."""
        return self.value


def load_build(text: bytes, *, file: str, allow_source: bool = False) -> LoadedBuild:
    """Reads a build config (YAML or JSON).

    Args:
        text: content of the file.
        file: its name, for the problems.
        allow_source: accept a ``source`` in it.

    Source: what ``gcloud builds submit`` accepts; its message names the flag ``--no-source``.
    """
    root, problem = compose(text)
    if problem is not None:
        return LoadedBuild(Build(), (_in_file(problem, file),))
    findings = Findings(file, merges=b"<<" in text)
    if not isinstance(root, MappingNode):
        return LoadedBuild(Build(), (_not_a_mapping(root, file, "build config"),), root)
    build: Build = message_reader(Build, outputs=False)(root, findings) or Build()
    if build.source is not None and not allow_source:
        _refuse_source(root, findings)
    sha256 = hashlib.sha256(text).hexdigest()
    return LoadedBuild(build, findings.problems(root), root, file, sha256)


def load_triggers(text: bytes, *, file: str) -> tuple[Loaded[BuildTrigger], ...]:
    """Reads a file of build triggers: one trigger a document, empty documents left out.

    When the text itself is broken, the last element carries that problem.
    """
    roots, problem = compose_all(text)
    reader = message_reader(BuildTrigger, outputs=False)
    loaded: list[Loaded[BuildTrigger]] = []
    for root in roots:
        findings = Findings(file, merges=b"<<" in text)
        if isinstance(root, MappingNode):
            trigger = reader(root, findings) or BuildTrigger()
            loaded.append(Loaded(trigger, findings.problems(root), root))
        else:
            wrong = _not_a_mapping(root, file, "build trigger")
            loaded.append(Loaded(BuildTrigger(), (wrong,), root))
    if problem is None and not roots:
        problem = _not_a_mapping(None, file, "build trigger")
    if problem is not None:
        loaded.append(Loaded(BuildTrigger(), (_in_file(problem, file),)))
    return tuple(loaded)


def decode_message(message: type[M], value: object, *, outputs: bool = True) -> Loaded[M]:
    """Reads a parsed JSON value (a request body, a stored build) by the same rules.

    Args:
        message: class to read.
        value: what `json.loads` gave.
        outputs: keep the fields that only the service sets; else they are dropped with a warning.
    """
    from buildrunner.spec.reading.nodes import node_of

    root, problem = node_of(value)
    if problem is not None:
        return Loaded(message(), (problem,))
    findings = Findings()
    if is_null(root):
        return Loaded(message(), ())
    decoded: M = message_reader(message, outputs=outputs)(root, findings) or message()
    return Loaded(decoded, findings.problems(root), root)


def _refuse_source(root: MappingNode, findings: Findings) -> None:
    for key, _ in root.value:
        if key.value == "source":
            findings.error(
                key,
                "a config cannot specify source without the flag --no-source",
                rule="source-in-config",
                hint="remove it, or submit with --no-source",
            )


def _not_a_mapping(root: Node | None, file: str, what: str) -> Problem:
    if root is None:
        message = f"the file is empty, but a {what} is wanted"
        return Problem(message, file=file, line=1, column=1, rule="not-a-mapping")
    return Problem(
        f"a {what} is a mapping of fields, but this could not be read as one",
        file=file,
        line=root.start_mark.line + 1,
        column=root.start_mark.column + 1,
        hint="begin it with 'steps:'" if what == "build config" else "write 'key: value' pairs",
        rule="not-a-mapping",
    )


def _in_file(problem: Problem, file: str) -> Problem:
    return Problem(
        problem.message,
        file=file,
        line=problem.line,
        column=problem.column,
        hint=problem.hint,
        rule=problem.rule,
        severity=problem.severity,
    )
