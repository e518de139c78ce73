"""Finds images of the host engine that a build mentions, in its plan or in files of its source.

A nested engine starts with the images of the image cache. Another image of the host engine that
steps may name (`FROM base:1`, `docker run tool:2`) must be copied before the first step. Only names
that are written out in the plan or the files are found. For a name that a step composes, the nested
engine pulls the image from its registry, as on the hosted service.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping

import msgspec

from buildrunner.containers.image_name import ImageName
from buildrunner.plan.build_plan import BuildPlan

_BEFORE = r"(?<![\w./-])(?:docker\.io/(?:library/)?)?"
_AFTER = r"(?![\w/:@-]|\.\w)"
_MOST_BYTES = 4 << 20
_SEARCH = f"""
cd "$1"
search() {{ timeout 10 grep -rIhF --exclude-dir=.git --exclude-dir=node_modules "$@" . || :; }}
{{
  search -e "$2"
  [ -z "$3" ] ||
    search --include='*ockerfile*' --include='*ontainerfile*' --include='*compose*' -e "$3"
}} | head -c {_MOST_BYTES}
"""


def search_command(names: Iterable[str], folder: str) -> tuple[str, ...]:
    """Return the command that prints lines of files that may mention one of these names.

    Names that may be any word (``node``) are searched in Dockerfiles and compose files only.
    """
    clear, short = _forms(names)
    return ("sh", "-c", _SEARCH, "search", folder, "\n".join(clear), "\n".join(short))


def mentioned_in_text(names: Iterable[str], text: str) -> set[str]:
    """Return the names that ``text`` mentions."""
    clear, short = _forms(names)
    return _found({**short, **clear}, text)


def mentioned_in_plan(names: Iterable[str], plan: BuildPlan) -> set[str]:
    """Return the names that a plan mentions."""
    clear, short = _forms(names)
    texts = list(_texts(msgspec.to_builtins(plan)))
    found = _found(clear, "\n".join(texts))
    for text in texts:
        word = text.rpartition("=")[2]
        if word in short:
            found.add(short[word])
    return found


def made_by(names: Iterable[str], plan: BuildPlan) -> set[str]:
    """Return the names of images that a build makes, and so does not need."""
    clear, short = _forms(names)
    forms = {**short, **clear}
    return {forms[image] for image in plan.images if image in forms}


def _found(forms: Mapping[str, str], text: str) -> set[str]:
    if not forms:
        return set()
    longest_first = sorted(forms, key=len, reverse=True)
    pattern = f"{_BEFORE}({'|'.join(map(re.escape, longest_first))}){_AFTER}"
    return {forms[found] for found in re.findall(pattern, text)}


def _forms(names: Iterable[str]) -> tuple[dict[str, str], dict[str, str]]:
    """Return the forms of names that can only be images, and those that may be any word."""
    clear: dict[str, str] = {}
    short: dict[str, str] = {}
    for name in names:
        parsed = ImageName.parse(name)
        clear[name] = name
        if parsed.tag == "latest":
            (clear if "/" in parsed.repository else short)[parsed.repository] = name
    return clear, short


def _texts(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for one in value.values():
            yield from _texts(one)
    elif isinstance(value, (list, tuple)):
        for one in value:
            yield from _texts(one)
