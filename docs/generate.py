"""Writes the pages and pictures that are made from the code: ``python docs/generate.py``.

``make docs`` runs it, and a test fails when a page is not what it would write. Each page is a pure
function of the code and of the texts in docs/*.toml, in a module of its own below docs/pages.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from pages import (
    api,
    architecture,
    behaviours,
    builder_images,
    cli,
    compatibility,
    engines,
    errors,
    events,
    open_points,
    rules,
    settings,
)
from pages.layers import drawing, layers

if TYPE_CHECKING:
    from collections.abc import Callable

DOCS = Path(__file__).resolve().parent
ROOT = DOCS.parent
PACKAGE = ROOT / "buildrunner"

NOTICE = "<!-- Written by docs/generate.py: change the code, or the texts in docs/*.toml. -->\n\n"


def _compatibility() -> str:
    return compatibility.page(behaviours.load(DOCS / "behaviours.toml"))


def _layers() -> str:
    return drawing(layers(ROOT / "pyproject.toml"), PACKAGE)


def _server_layers() -> str:
    inside = layers(ROOT / "pyproject.toml", container="server")
    return drawing(inside, PACKAGE / "server")


def _open_points() -> str:
    return open_points.page(behaviours.load(DOCS / "behaviours.toml"))


# path below docs/ -> what writes it
PAGES: dict[str, Callable[[], str]] = {
    "explanation/architecture.md": lambda: architecture.page(ROOT, DOCS / "architecture.toml"),
    "images/layers.svg": _layers,
    "images/layers-server.svg": _server_layers,
    "reference/cli.md": cli.page,
    "reference/api.md": api.page,
    "reference/settings.md": lambda: settings.page(DOCS / "settings.toml"),
    "reference/compatibility.md": _compatibility,
    "reference/rules.md": lambda: rules.page(DOCS / "rules.toml"),
    "reference/events.md": events.page,
    "reference/builder-images.md": lambda: builder_images.page(DOCS / "builder-images.toml"),
    "reference/engines.md": lambda: engines.page(DOCS / "engines.toml"),
    "reference/exit-codes.md": errors.page,
    "decisions/0010-open-points.md": _open_points,
}


def written(name: str) -> str:
    """The text that the page should have."""
    return NOTICE + PAGES[name]()


def main() -> int:
    """Write every page that is not up to date."""
    for name in PAGES:
        path = DOCS / name
        text = written(name)
        if not path.exists() or path.read_text() != text:
            path.write_text(text)
            sys.stdout.write(f"written: docs/{name}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
