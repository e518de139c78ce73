"""How commands print what they list: as a table, as JSON or as YAML."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence


def formatted(value: Any, form: str) -> str:
    """``value`` as ``json`` or ``yaml``; a list in YAML is one document for each entry."""
    if form == "json":
        import msgspec

        return msgspec.json.format(msgspec.json.encode(value), indent=2).decode() + "\n"
    from buildrunner.spec.yaml_text import yaml_text

    if isinstance(value, list):
        return "".join(f"---\n{yaml_text(document)}" for document in value)
    return yaml_text(value)


def table(columns: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    """Rows below their column names, padded; nothing at all without rows.

    Source: semantics 11.3; the form of gcloud's tables.
    """
    if not rows:
        return ""
    lines = [columns, *rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(columns))]
    return "".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        + "\n"
        for line in lines
    )
