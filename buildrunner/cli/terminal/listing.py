"""Prints lists as tables, JSON or YAML."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from typing import Any

from buildrunner.logs.console.wording import printable

_NAME = r"[A-Za-z_]\w*(?:\[\d*\])*"
_FIELD = rf"\s*{_NAME}(?:\.{_NAME})*\s*"
_VALUE_FORM = re.compile(rf"(?:value|get)\(({_FIELD}(?:,{_FIELD})*)\)")


def is_value_form(form: str) -> bool:
    """Return whether a format is like gcloud's ``value(status, results.images[0].digest)``."""
    return _VALUE_FORM.fullmatch(form) is not None


def add_format(parser: argparse.ArgumentParser, forms: Sequence[str]) -> None:
    """Add ``--format``, whose default is the first of some forms, to a command.

    Args:
        parser: of the command.
        forms: the forms that the command prints, besides ``value(FIELD, ...)``.
    """

    def form(text: str) -> str:
        if text not in forms and not is_value_form(text):
            raise argparse.ArgumentTypeError(f"{text} is none of {', '.join(forms)}, value(FIELD)")
        return text

    parser.add_argument(
        "--format",
        type=form,
        default=forms[0],
        metavar="FORM",
        help=f"format: {', '.join(forms)}, or value(FIELD, ...) as in gcloud (default: {forms[0]})",
    )


def formatted(value: Any, form: str) -> str:
    """Format a value as ``json``, ``yaml`` or ``value(FIELD, ...)``.

    For a list, ``yaml`` prints a document for each entry. ``value`` prints a line for each entry,
    with tabs between the fields; a missing field is empty.

    Source: ``gcloud topic formats``.
    """
    if fields := _VALUE_FORM.fullmatch(form):
        paths = [re.findall(r"\w+|\[\d*\]", field) for field in fields[1].split(",")]
        entries = value if isinstance(value, list) else [value]
        rows = (tuple(_text(_at(entry, path)) for path in paths) for entry in entries)
        text = "".join("\t".join(row) + "\n" for row in rows)
        return printable(text) if sys.stdout.isatty() else text
    if form == "json":
        import msgspec

        return msgspec.json.format(msgspec.json.encode(value), indent=2).decode() + "\n"
    from buildrunner.spec.writing import yaml_text

    if isinstance(value, list):
        return "".join(f"---\n{yaml_text(document)}" for document in value)
    return yaml_text(value)


def _at(value: Any, path: Sequence[str]) -> Any:
    """Return the value at a path, ``["steps", "[0]", "name"]``; for a list, that of each entry."""
    for index, part in enumerate(path):
        if isinstance(value, list) and not part[1:-1].isdigit():
            return [_at(entry, path[index + (part == "[]") :]) for entry in value]
        if isinstance(value, list):
            number = int(part[1:-1])
            value = value[number] if number < len(value) else None
        else:
            value = value.get(part) if isinstance(value, dict) else None
    return value


def _text(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, list):
        return ";".join(map(_text, value))
    if isinstance(value, dict):
        return ";".join(f"{key}={_text(entry)}" for key, entry in value.items())
    return str(value)


def _cell(text: str) -> str:
    """Return the text of others so that it controls no terminal, and begins no row."""
    return printable(text).replace("\n", "\\n").replace("\t", "\\t")


def table(columns: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    """Format rows below their column names, padded; empty without rows.

    Source: semantics 11.3; the form of gcloud's tables.
    """
    if not rows:
        return ""
    lines = [columns, *(tuple(map(_cell, row)) for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(columns))]
    return "".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        + "\n"
        for line in lines
    )
