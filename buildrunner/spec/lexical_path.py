"""POSIX paths as text, without access to a file system.

Source: Go's ``path.Clean`` and ``path.Join``, which the local builder uses for ``dir`` and volumes.
"""

from __future__ import annotations


def clean_path(path: str) -> str:
    """Return the shortest equal path: no ``.``, no double or final ``/``, ``..`` resolved as text.

    An absolute path can't climb above ``/``; the empty path is ``.``.
    """
    absolute = path.startswith("/")
    kept: list[str] = []
    for part in path.split("/"):
        if part in ("", "."):
            continue
        if part != "..":
            kept.append(part)
        elif kept and kept[-1] != "..":
            kept.pop()
        elif not absolute:
            kept.append(part)
    joined = "/".join(kept)
    return f"/{joined}" if absolute else joined or "."


def join_paths(*parts: str) -> str:
    """Return the parts joined with ``/`` and cleaned; empty parts are skipped."""
    return clean_path("/".join(part for part in parts if part))
