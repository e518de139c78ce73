"""Puts files into a repository as they are, by HTTP PUT."""

import hashlib
import os
from collections.abc import Iterator

from .repository import Refused, Repository


def publish(request: dict[str, list[str]], repository: Repository) -> Iterator[tuple[str, str]]:
    """Publish the file of the request, or all files below its folder. Yields address and SHA-256.

    Where the request names a package, the files lie in ``NAME/VERSION/``.
    """
    (start,) = request["paths"]
    name, version = str(request["name"]), str(request["version"])
    place = f"{name}/{version}/" if name else ""
    for path, full in files_below(start):
        with open(full, "rb") as file:
            content = file.read()
        yield repository.put(f"{place}{path}", content), hashlib.sha256(content).hexdigest()


def files_below(start: str) -> list[tuple[str, str]]:
    """Return relative and full path of each file below a folder, sorted, or of the file itself.

    Links are left out.
    """
    if os.path.isfile(start):
        return [(os.path.basename(start), start)]
    found = []
    for parent, _, names in os.walk(start):
        for name in names:
            full = os.path.join(parent, name)
            if not os.path.islink(full) and os.path.isfile(full):
                found.append((os.path.relpath(full, start), full))
    if not found:
        raise Refused(f"there is no file in {start}")
    return sorted(found)
