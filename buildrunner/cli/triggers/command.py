"""``buildrunner triggers``: manages the triggers of a server, with gcloud's commands and more."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable

from buildrunner.cli.server.choice import add_server_flags
from buildrunner.cli.triggers import flags as trigger_flags
from buildrunner.cli.triggers.calls import connected, trigger_path, trigger_url
from buildrunner.client.client import Document, ServerClient
from buildrunner.errors import EXIT_SUCCESS, NotFound, UsageError

_EPILOG = """\
examples:
  buildrunner triggers import --source triggers.yaml
  buildrunner triggers create github --name ci --repo-owner acme --repo-name app \\
      --branch-pattern '^main$' --build-config cloudbuild.yaml
  buildrunner triggers test ci --ref main --files src/a.py
  buildrunner triggers run ci --branch main
  buildrunner triggers install-hook /srv/git/app.git
"""
_COLUMNS = ("NAME", "CREATE_TIME", "STATUS")


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the commands below ``triggers`` and their flags."""
    from argparse import RawDescriptionHelpFormatter

    parser.epilog = _EPILOG
    parser.formatter_class = RawDescriptionHelpFormatter
    actions = parser.add_subparsers(dest="action", required=True, metavar="COMMAND")
    listing = actions.add_parser("list", help="list the triggers of a project")
    listing.add_argument(
        "--format",
        choices=("table", "json", "yaml"),
        default="table",
        help="format of the output (default: table)",
    )
    describing = actions.add_parser("describe", help="print a trigger as it is stored")
    describing.add_argument(
        "--format",
        choices=("yaml", "json"),
        default="yaml",
        help="format of the output (default: yaml)",
    )
    exporting = actions.add_parser("export", help="write a trigger to a file for import")
    exporting.add_argument(
        "--destination",
        metavar="FILE",
        default="-",
        help="file to write; -: standard output (default: -)",
    )
    importing = actions.add_parser("import", help="create or update the triggers of a file")
    importing.add_argument(
        "--source",
        metavar="FILE",
        required=True,
        help="file of triggers, YAML or JSON; -: standard input",
    )
    trigger_flags.add_forge_flags(importing)
    creating = actions.add_parser("create", help="create a trigger from flags")
    updating = actions.add_parser("update", help="change the fields that flags name")
    trigger_flags.add_create_flags(creating)
    trigger_flags.add_update_flags(updating)
    deleting = actions.add_parser("delete", help="delete a trigger and keep its builds")
    deleting.add_argument("-q", "--quiet", action="store_true", help="do not ask for confirmation")
    running = actions.add_parser("run", help="start a build now, even if the trigger is disabled")
    revision = running.add_mutually_exclusive_group()
    for flag, name in (("branch", "branch"), ("tag", "tag"), ("sha", "commit")):
        revision.add_argument(f"--{flag}", default="", help=f"{name} to build")
    running.add_argument(
        "--substitutions",
        action=trigger_flags.Pairs,
        default={},
        metavar="KEY=VALUE,...",
        help="values for this build alone",
    )
    enabling = actions.add_parser("enable", help="enable a trigger")
    disabling = actions.add_parser("disable", help="disable a trigger")
    testing = actions.add_parser(
        "test", help="test whether an event would fire a trigger, rule by rule"
    )
    _add_test_flags(testing)
    installing = actions.add_parser(
        "install-hook", help="install a hook that reports pushes to a bare repository to the server"
    )
    removing = actions.add_parser(
        "remove-hook", help="remove the hook of install-hook from a bare repository"
    )
    for one in (describing, exporting, updating, deleting, running, enabling, disabling, testing):
        one.add_argument("trigger", metavar="TRIGGER", help="name or id")
    for one in (installing, removing):
        one.add_argument("repository", metavar="REPO", help="folder of the repository")
    _add_hook_flags(installing)
    from buildrunner.cli.triggers.schedules import configure_next

    coming = actions.add_parser("next", help="show the next scheduled times")
    configure_next(coming)
    for one in actions.choices.values():
        if one in (removing, coming):
            continue
        one.add_argument("--project", metavar="ID", default="", help="project of the triggers")
        add_server_flags(one)


def run(args: argparse.Namespace) -> int:
    """Run one of the commands.

    Raises:
        UsageError: no server is chosen, or flags are invalid.
        ConfigError: a file of triggers is invalid.
        NotFound: the trigger does not exist.
    """
    if args.action in ("install-hook", "remove-hook"):
        from buildrunner.cli.triggers import hook as trigger_hook

        if args.action == "remove-hook":
            return trigger_hook.remove(args)
        return trigger_hook.install(args)
    if args.action == "next":
        from buildrunner.cli.triggers.schedules import run_next

        return run_next(args)
    client = connected(args)
    try:
        return _ACTIONS[args.action](args, client)
    except NotFound as error:
        name = getattr(args, "trigger", "")
        if not name:
            raise
        raise NotFound(
            f'there is no trigger "{name}" in {client.project} on {client.url}',
            hint="`buildrunner triggers list` shows all",
        ) from error
    finally:
        client.close()


def _add_test_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--event", metavar="FILE", default="", help="test with this payload of a forge (JSON)"
    )
    parser.add_argument(
        "--hook",
        default="",
        metavar="FORGE",
        help="with --event: kind of the payload: github, gitlab, webhook, ...",
    )
    parser.add_argument(
        "--header",
        action="append",
        default=[],
        metavar="NAME:VALUE",
        help="with --event: a header of its request; may be repeated",
    )
    parser.add_argument("--ref", default="", help="test a push to this ref: main, refs/tags/v1")
    parser.add_argument("--base", default="", help="test a pull request of --ref into this branch")
    parser.add_argument("--files", nargs="*", metavar="PATH", help="changed files")
    parser.add_argument("--message", default="", help="message of the head commit")
    parser.add_argument("--comment", default="", help="test this comment on the pull request")
    parser.add_argument("--fork", action="store_true", help="the pull request is from a fork")
    parser.add_argument(
        "--outsider",
        action="store_true",
        help="the pull request's author has no write access to the repository",
    )
    parser.add_argument(
        "--format",
        choices=("text", "json"),
        default="text",
        help="format of the output (default: text)",
    )


def _add_hook_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--name", default="", help="name of the repository on the server")
    parser.add_argument(
        "--clone-url",
        default="",
        metavar="URL",
        help="address from which the server fetches it (default: its folder)",
    )


def _list(args: argparse.Namespace, client: ServerClient) -> int:
    from buildrunner.cli.terminal.listing import formatted, table

    found = list(client.list_triggers())
    if args.format != "table":
        sys.stdout.write(formatted(found, args.format))
        return EXIT_SUCCESS
    sys.stdout.write(table(_COLUMNS, [_row(one) for one in found]))
    if not found:
        sys.stderr.write("Listed 0 items.\n")
    return EXIT_SUCCESS


def _row(trigger: Document) -> tuple[str, ...]:
    status = "DISABLED" if trigger.get("disabled") else "ENABLED"
    created = str(trigger.get("createTime", "")).partition(".")[0].removesuffix("Z")
    return str(trigger.get("name", "")), f"{created}+00:00", status


def _describe(args: argparse.Namespace, client: ServerClient) -> int:
    from buildrunner.cli.terminal.listing import formatted

    found = client.call("GET", trigger_path(args.trigger))
    sys.stdout.write(formatted(found, args.format))
    return EXIT_SUCCESS


def _export(args: argparse.Namespace, client: ServerClient) -> int:
    from buildrunner.cli.triggers.files import write_trigger

    write_trigger(client.call("GET", trigger_path(args.trigger)), args.destination)
    if args.destination != "-":
        sys.stderr.write(f"Exported [{args.trigger}] to [{args.destination}].\n")
    return EXIT_SUCCESS


def _import(args: argparse.Namespace, client: ServerClient) -> int:
    from buildrunner.cli.triggers.files import import_trigger, read_triggers

    forge = _forge(args)
    for document in read_triggers(args.source):
        made, is_new = import_trigger(client, document, forge)
        if not is_new:
            _set_forge(args, client, made["id"])
        word = "Created" if is_new else "Updated"
        sys.stderr.write(f"{word} [{made.get('name', '')}].\n")
    return EXIT_SUCCESS


def _create(args: argparse.Namespace, client: ServerClient) -> int:
    from buildrunner.cli.terminal.listing import table

    document = trigger_flags.created(args)
    made = client.call(
        "POST", "/v1/{parent}/triggers", query=_forge(args), body=document, once=True
    )
    sys.stderr.write(f"Created [{client.url}{trigger_url(client, made)}].\n")
    sys.stdout.write(table(_COLUMNS, [_row(made)]))
    return EXIT_SUCCESS


def _update(args: argparse.Namespace, client: ServerClient) -> int:
    from buildrunner.cli.triggers.flags import trigger_change

    path = trigger_path(args.trigger)
    made = client.call("GET", path)
    if args.trigger_config is not None:
        made = client.call(
            "PATCH", path, body={"name": made.get("name", ""), **trigger_flags.from_file(args)}
        )
    else:
        change, mask = trigger_change(args, made)
        if mask:
            query = {"updateMask": mask}
            made = client.call("PATCH", path, query=query, body=change)
    _set_forge(args, client, made["id"])
    sys.stderr.write(f"Updated [{made['name']}].\n")
    return EXIT_SUCCESS


def _forge(args: argparse.Namespace) -> dict[str, str]:
    """Return the query of a call that makes a trigger."""
    if args.forge is None and args.forge_host is not None:
        raise UsageError("--forge-host needs --forge: the kind of that forge")
    given = {"forge": args.forge, "forgeHost": args.forge_host}
    return {name: value for name, value in given.items() if value is not None}


def _set_forge(args: argparse.Namespace, client: ServerClient, trigger_id: str) -> None:
    """Set the forge of an existing trigger, if the flags name one."""
    from buildrunner.cli.triggers.flags import forge_change

    path = f"/buildrunner{trigger_path(trigger_id)}/settings"
    settings = forge_change(args, client.call("GET", path))
    if settings is not None:
        client.call("PUT", path, body=settings)


def _delete(args: argparse.Namespace, client: ServerClient) -> int:
    from buildrunner.cli.secrets import confirmed

    found = client.call("GET", trigger_path(args.trigger))
    if not args.quiet and not confirmed(f"Delete trigger [{found['name']}]?", "--quiet"):
        sys.stderr.write("Nothing was deleted.\n")
        return EXIT_SUCCESS
    client.call("DELETE", trigger_path(found["id"]))
    sys.stderr.write(f"Deleted [{found['name']}].\n")
    return EXIT_SUCCESS


def _run(args: argparse.Namespace, client: ServerClient) -> int:
    from buildrunner.cli.builds.local import build_table

    source: Document = {
        name: value
        for name, value in (
            ("branchName", args.branch),
            ("tagName", args.tag),
            ("commitSha", args.sha),
            ("substitutions", args.substitutions),
        )
        if value
    }
    operation = client.call(
        "POST", f"{trigger_path(args.trigger)}:run", body={"source": source}, once=True
    )
    build = operation["metadata"]["build"]
    sys.stderr.write(f"Created [{client.build_url(build['id'])}].\n")
    sys.stdout.write(build_table([build]))
    return EXIT_SUCCESS


def _enable(args: argparse.Namespace, client: ServerClient) -> int:
    disabled = args.action == "disable"
    made = client.call(
        "PATCH",
        trigger_path(args.trigger),
        query={"updateMask": "disabled"},
        body={"disabled": disabled},
    )
    sys.stderr.write(f"{'Disabled' if disabled else 'Enabled'} [{made['name']}].\n")
    return EXIT_SUCCESS


def _test(args: argparse.Namespace, client: ServerClient) -> int:
    from buildrunner.cli.triggers.calls import verdict_text, wanted_event

    requested = wanted_event(args)
    path = trigger_path(args.trigger).removeprefix("/v1")
    answer = client.call("POST", f"/buildrunner/v1{path}:test", body=requested)
    if args.format == "json":
        from buildrunner.cli.terminal.listing import formatted

        sys.stdout.write(formatted(answer, "json"))
    else:
        sys.stdout.write("\n".join(verdict_text(args.trigger, one) for one in answer["verdicts"]))
    return EXIT_SUCCESS


_ACTIONS: dict[str, Callable[[argparse.Namespace, ServerClient], int]] = {
    "list": _list,
    "describe": _describe,
    "export": _export,
    "import": _import,
    "create": _create,
    "update": _update,
    "delete": _delete,
    "run": _run,
    "enable": _enable,
    "disable": _enable,
    "test": _test,
}
