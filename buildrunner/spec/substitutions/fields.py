"""The fields of a build that hold templates: one table, for checks and for replacements.

The table lacks, on purpose: ``script`` (the documentation says: use ``env`` or automap),
``id``, ``waitFor``, ``secretEnv``, volumes, ``source``, and all fields that are not text. Values of
``substitutions`` are templates only with dynamic substitutions (`templates.expand`).

Source: the local builder's list, extended as on the hosted service (``options.env``,
``logsBucket``, ``serviceAccount``, pools, secret names, packages).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, TypeVar

import msgspec

from buildrunner.spec.model.build import Build

SUBSTITUTED_FIELDS: Final = (
    "steps[].name",
    "steps[].args[]",
    "steps[].env[]",
    "steps[].dir",
    "steps[].entrypoint",
    "images[]",
    "tags[]",
    "artifacts.images[]",
    "artifacts.objects.location",
    "artifacts.objects.paths[]",
    "artifacts.maven_artifacts[].repository",
    "artifacts.maven_artifacts[].path",
    "artifacts.maven_artifacts[].artifact_id",
    "artifacts.maven_artifacts[].group_id",
    "artifacts.maven_artifacts[].version",
    "artifacts.maven_artifacts[].deploy_folder",
    "artifacts.generic_artifacts[].folder",
    "artifacts.generic_artifacts[].registry_path",
    "artifacts.go_modules[].repository_name",
    "artifacts.go_modules[].repository_location",
    "artifacts.go_modules[].repository_project_id",
    "artifacts.go_modules[].source_path",
    "artifacts.go_modules[].module_path",
    "artifacts.go_modules[].module_version",
    "artifacts.python_packages[].repository",
    "artifacts.python_packages[].paths[]",
    "artifacts.npm_packages[].repository",
    "artifacts.npm_packages[].package_path",
    "logs_bucket",
    "service_account",
    "options.env[]",
    "options.pool.name",
    "options.worker_pool",
    "available_secrets.secret_manager[].version_name",
    "available_secrets.inline[].kms_key_name",
    "secrets[].kms_key_name",
)

_AnyStruct = TypeVar("_AnyStruct", bound=msgspec.Struct)


class _Field:
    """One field of the table: a text, a list of texts, a message or a list of messages."""

    __slots__ = ("children", "json_name", "name", "repeated")

    def __init__(self, name: str, *, repeated: bool) -> None:
        head, *rest = name.split("_")
        self.name = name
        self.json_name = head + "".join(map(str.capitalize, rest))
        self.repeated = repeated
        self.children: dict[str, _Field] = {}


def _tree(paths: tuple[str, ...]) -> dict[str, _Field]:
    root: dict[str, _Field] = {}
    for path in paths:
        level = root
        for part in path.split("."):
            name = part.removesuffix("[]")
            field = level.setdefault(name, _Field(name, repeated=part.endswith("[]")))
            level = field.children
    return root


_TREE: Final = _tree(SUBSTITUTED_FIELDS)


def templates(build: Build) -> list[tuple[str, str]]:
    """Return JSON path and text of every substituted field with a ``$``."""
    found: list[tuple[str, str]] = []
    _collect(build, _TREE, "", found)
    return found


def _collect(
    message: msgspec.Struct, tree: dict[str, _Field], prefix: str, found: list[tuple[str, str]]
) -> None:
    for field in tree.values():
        value = getattr(message, field.name)
        if not value:
            continue
        path = prefix + field.json_name
        if not field.repeated:
            if field.children:
                _collect(value, field.children, f"{path}.", found)
            elif "$" in value:
                found.append((path, value))
        elif field.children:
            for index, item in enumerate(value):
                _collect(item, field.children, f"{path}[{index}].", found)
        else:
            found += [(f"{path}[{index}]", item) for index, item in enumerate(value) if "$" in item]


def with_templates_replaced(build: Build, replace: Callable[[str], str]) -> Build:
    """Return the build with ``replace`` applied to every substituted field, and no other."""
    return _replaced(build, _TREE, replace)


def _replaced(
    message: _AnyStruct, tree: dict[str, _Field], replace: Callable[[str], str]
) -> _AnyStruct:
    changes: dict[str, object] = {}
    for field in tree.values():
        value = getattr(message, field.name)
        if not value:
            continue
        changed: object
        if field.children:
            if field.repeated:
                changed = tuple(_replaced(item, field.children, replace) for item in value)
            else:
                changed = _replaced(value, field.children, replace)
        elif field.repeated:
            changed = tuple(map(replace, value))
        else:
            changed = replace(value)
        if changed != value:
            changes[field.name] = changed
    return msgspec.structs.replace(message, **changes) if changes else message
