"""Triggers in files: ``triggers import`` and ``triggers export``.

Source: gcloud's ``builds triggers import``: one or several YAML documents; one with an ``id``
changes that trigger, one with a ``name`` changes the trigger of that name or makes it. A trigger
that another service exported has an id and a creation time: its name counts, too.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from buildrunner.client.client import Document, ServerClient
from buildrunner.errors import ConfigError, NotFound, UsageError
from buildrunner.triggers.check import load_trigger_file

_OURS = ("resourceName", "id", "createTime")


def read_triggers(path: str) -> list[Document]:
    """Read the triggers of a file, with ``id`` and ``createTime`` if the file has them.

    Raises:
        UsageError: the file can't be read, or holds no trigger.
        ConfigError: a trigger is invalid. Holds all problems of all triggers, with their places.
    """
    from buildrunner.spec.validation.check import errors_of
    from buildrunner.spec.writing import encode_message

    loaded, problems = load_trigger_file(path)
    if errors_of(problems):
        raise ConfigError(errors_of(problems))
    return [{**encode_message(one.value), **_identity(one.root)} for one in loaded]


def _identity(root: Any) -> Document:
    return {
        key.value: value.value
        for key, value in (root.value if root is not None else ())
        if key.value in ("id", "createTime") and isinstance(value.value, str) and value.value
    }


def import_trigger(
    client: ServerClient, document: Document, forge: Mapping[str, str]
) -> tuple[Document, bool]:
    """Create a trigger, or change the one of that id or name. Returns it, and whether it is new.

    Args:
        client: of the server.
        document: the trigger.
        forge: query parameters that name the forge of a new trigger's repository.

    Raises:
        NotFound: no trigger has that id, and ``document`` has no ``createTime`` of another service.
        UsageError: the server refuses the trigger.
    """
    from buildrunner.cli.triggers.calls import trigger_path

    body = {name: value for name, value in document.items() if name not in _OURS}
    for named in filter(None, (document.get("id"), document.get("name"))):
        try:
            return client.call("PATCH", trigger_path(str(named)), body=body), False
        except NotFound as error:
            if named == document.get("id") and "createTime" not in document:
                raise NotFound(
                    f"there is no trigger with the id {named}", hint="without its id it is made"
                ) from error
    made = client.call("POST", "/v1/{parent}/triggers", query=forge, body=body, once=True)
    return made, True


def write_trigger(trigger: Document, path: str) -> None:
    """Write a trigger for ``import``, under its name, without fields that only the server sets.

    Fields are in the schema's order, so that a diff in Git shows only real changes.

    Raises:
        UsageError: the file can't be written.
    """
    from buildrunner.spec.model.trigger import BuildTrigger
    from buildrunner.spec.writing import yaml_text

    fields = [name for name in BuildTrigger.__struct_encode_fields__ if name in trigger]
    fields += [name for name in trigger if name not in fields]
    text = yaml_text({name: trigger[name] for name in fields if name not in _OURS})
    if path == "-":
        sys.stdout.write(text)
        return
    try:
        with open(path, "w", encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        raise UsageError(f"{path} can't be written: {error.strerror}") from error
