"""The change that the flags of ``triggers update`` ask for: each changes what it names, no more."""

from __future__ import annotations

import argparse
from typing import Any

from buildrunner.cli.triggers.flags import (
    CONFIGS,
    PATTERNS,
    TEMPLATES,
    WHERE,
    build_template,
    check_kind,
    common_fields,
    event_filter,
    given_flags,
    shown_flags,
    source_ref,
    template_ref,
    with_fields,
)
from buildrunner.client.client import Document
from buildrunner.errors import UsageError


def trigger_change(args: argparse.Namespace, old: Document) -> tuple[Document, str]:
    """The fields that change, and the update mask that names them; both may be empty.

    Args:
        args: flags of ``update`` without ``--trigger-config``.
        old: the trigger as the server has it.

    Raises:
        UsageError: no flag is given, or one does not go with the trigger.
        ConfigError: a file is wrong.
    """
    flags = given_flags(args)
    if not flags:
        raise UsageError("there is nothing to change: give a flag that says what")
    kind = kind_of(old)
    check_kind(args, kind)
    fields = {
        **common_fields(args),
        **_where(args, kind),
        **_events(args, kind, old),
        **_source(args, old),
        **_template(args, old),
        **_substitutions(args, old),
    }
    given = {path: value for path, value in fields.items() if value is not None}
    return with_fields({}, given), ",".join(fields)


def forge_change(args: argparse.Namespace, settings: Document) -> Document | None:
    """The trigger's settings with the forge that the flags name; None if they name none."""
    given = {
        name: value
        for name, value in (("kind", args.forge), ("host", args.forge_host))
        if value is not None
    }
    if not given:
        return None
    before = settings.get("forge", {})
    if before.get("unconfirmed"):  # a guess counts for nothing
        before = {}
    after = {**before, **given}
    if "kind" not in after:
        raise UsageError("--forge-host needs --forge: the kind of that forge")
    return {**settings, "forge": after}


def kind_of(trigger: Document) -> str:
    """The kind of a trigger, as ``create`` calls it."""
    for kind, fields in WHERE.items():
        if any(path.partition(".")[0] in trigger for path in fields.values()):
            return kind
    return "manual"


def _where(args: argparse.Namespace, kind: str) -> dict[str, Any]:
    fields = {}
    for flag, path in WHERE[kind].items():
        value = getattr(args, flag)
        if value == "":
            raise UsageError(f"--{flag.replace('_', '-')} is empty")
        if value is not None:
            fields[path] = value
    return fields


def _events(args: argparse.Namespace, kind: str, old: Document) -> dict[str, Any]:
    flags = (*PATTERNS, "invert_regex", "comment_control")
    if all(getattr(args, flag) is None for flag in flags):
        return {}
    if kind not in CONFIGS:
        ref = template_ref(args, old["triggerTemplate"])
        names = ("branchName", "tagName", "invertRegex")
        return {f"triggerTemplate.{name}": ref.get(name) for name in names}
    config = CONFIGS[kind]
    name, found = event_filter(args, old[config])
    other = "push" if name == "pullRequest" else "pullRequest"
    return {f"{config}.{name}": found, f"{config}.{other}": None}


def _source(args: argparse.Namespace, old: Document) -> dict[str, Any]:
    """What is checked out, and with it the config's repository if that is the same one."""
    ref, before = source_ref(args), old.get("sourceToBuild", {})
    given = {
        name: value
        for name, value in (("uri", args.repo), ("ref", ref), ("repoType", args.repo_type))
        if value
    }
    if not given:
        return {}
    if not (before or args.repo):
        flags = (flag for flag in ("repo_type", "branch", "tag") if getattr(args, flag) is not None)
        raise UsageError(f"{shown_flags(*flags)} needs --repo: this trigger has no source yet")
    if not (before.get("ref") or ref):
        raise UsageError("--repo needs one of --branch and --tag")
    fields: dict[str, Any] = {f"sourceToBuild.{name}": value for name, value in given.items()}
    if args.repo:
        fields["sourceToBuild.repository"] = None
    file = old.get("gitFileSource", {})
    if file.get("uri") and file["uri"] == before.get("uri"):
        shared = ("uri", "repoType")
        fields |= {f"gitFileSource.{name}": given[name] for name in shared if name in given}
    return fields


def _template(args: argparse.Namespace, old: Document) -> dict[str, Any]:
    build = build_template(args)
    if build is not None:
        return {name: build if name == "build" else None for name in TEMPLATES}
    if args.build_config is None:
        return {}
    if "gitFileSource" in old:
        return {"gitFileSource.path": args.build_config}
    return {name: args.build_config if name == "filename" else None for name in TEMPLATES}


def _substitutions(args: argparse.Namespace, old: Document) -> dict[str, Any]:
    values = dict(old.get("substitutions", {}))
    if args.substitutions is not None:
        values = args.substitutions
    elif args.update_substitutions is not None:
        values |= args.update_substitutions
    elif args.remove_substitutions is not None:
        missing = [key for key in args.remove_substitutions if key not in values]
        if missing:
            raise UsageError(f"this trigger has no substitution {', '.join(missing)}")
        values = {key: one for key, one in values.items() if key not in args.remove_substitutions}
    elif args.clear_substitutions:
        values = {}
    else:
        return {}
    return {"substitutions": values}
