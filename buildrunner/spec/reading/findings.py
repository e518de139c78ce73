"""What a decoder found wrong, collected while it goes on."""

from __future__ import annotations

from yaml.nodes import Node

from buildrunner.problem import Problem, Severity
from buildrunner.spec.reading.yaml_nodes import position

MAX_PROBLEMS = 100


class Findings:
    """The problems of one text.

    A problem is kept with the node it is about; its path is worked out at the end, so that a config
    without problems never pays for paths. After `MAX_PROBLEMS` problems further ones are only
    counted: nobody reads them, and it keeps hostile input cheap.

    Attributes:
        file: name of the file, as the user gave it.
        merges: whether the text may hold merge keys (``<<``).
    """

    def __init__(self, file: str = "", *, merges: bool = False) -> None:
        self.file = file
        self.merges = merges
        self._found: list[tuple[Node, Problem]] = []
        self._more = 0
        self._more_errors = False

    @property
    def full(self) -> bool:
        """Whether further problems are only counted; then no need to look for suggestions."""
        return len(self._found) >= MAX_PROBLEMS

    def error(self, node: Node, message: str, *, rule: str, hint: str = "") -> None:
        """Something that makes the config unusable."""
        self._add(node, message, rule, hint, Severity.ERROR)

    def warning(self, node: Node, message: str, *, rule: str, hint: str = "") -> None:
        """Something that is accepted, but should be said."""
        self._add(node, message, rule, hint, Severity.WARNING)

    def problems(self, root: Node | None) -> tuple[Problem, ...]:
        """All problems under ``root`` in the order of the text, with their paths."""
        if not self._found or root is None:
            return ()
        from buildrunner.spec.reading.places import paths_under

        paths = paths_under(root)
        problems = []
        for node, found in self._found:
            line, column = position(node)
            problems.append(
                Problem(
                    found.message,
                    path=paths.get(id(node), ""),
                    file=self.file,
                    line=line,
                    column=column,
                    hint=found.hint,
                    rule=found.rule,
                    severity=found.severity,
                )
            )
        problems.sort(key=lambda problem: (problem.line, problem.column))
        if self._more:
            last = problems[-1]
            problems.append(
                Problem(
                    f"{self._more} more problems are not shown",
                    file=self.file,
                    line=last.line,
                    column=last.column,
                    rule="too-many-problems",
                    severity=Severity.ERROR if self._more_errors else Severity.WARNING,
                )
            )
        return tuple(problems)

    def _add(self, node: Node, message: str, rule: str, hint: str, severity: Severity) -> None:
        if self.full:
            self._more += 1
            self._more_errors |= severity is Severity.ERROR
        else:
            self._found.append((node, Problem(message, hint=hint, rule=rule, severity=severity)))
