"""Triggers in files: read and checked."""

from __future__ import annotations

import sys

from buildrunner.errors import UsageError
from buildrunner.problem import Problem
from buildrunner.spec.model.trigger import BuildTrigger
from buildrunner.spec.reading.decode import Loaded


def load_trigger_file(path: str) -> tuple[tuple[Loaded[BuildTrigger], ...], list[Problem]]:
    """The triggers of a file, and everything that is wrong with them.

    Raises:
        UsageError: the file can't be read, or holds none.
    """
    from buildrunner.spec.reading.decode import load_triggers

    file = "standard input" if path == "-" else path
    try:
        if path == "-":
            text = sys.stdin.buffer.read()
        else:
            with open(path, "rb") as opened:
                text = opened.read()
    except OSError as error:
        raise UsageError(f"{path} can't be read: {error.strerror}") from error
    loaded = load_triggers(text, file=file)
    if not loaded:
        raise UsageError(f"{file} holds no trigger")
    return loaded, [problem for one in loaded for problem in _problems(one, file)]


def _problems(loaded: Loaded[BuildTrigger], file: str) -> list[Problem]:
    """What is wrong with one trigger, with its place: the server has no lines to point at."""
    from msgspec.structs import replace

    from buildrunner.spec.model import git_address
    from buildrunner.spec.writing import encode_message
    from buildrunner.triggers.check import check_trigger

    if not (loaded.ok and loaded.value.name):
        return list(loaded.problems)
    found = []
    passwords = git_address.trigger_problems(encode_message(loaded.value))
    for problem in (*check_trigger(loaded.value), *passwords):
        line, column = loaded.locate(problem.path)
        found.append(replace(problem, file=file, line=line, column=column))
    return [*loaded.problems, *found]
