"""The ``buildrunner`` command: finds a command's module, runs it, turns errors into exit codes.

A command is a module with ``configure(parser)`` and ``run(args) -> int``, and a line in `COMMANDS`.
This module imports only what ``--help`` and ``--version`` need, so that both are as fast as a bare
Python. A test checks this.
"""

from __future__ import annotations

import gc
import os
import sys

from buildrunner import __version__
from buildrunner.cli.terminal.streams import OutputLost, drop_output, prepare_streams

# name -> (module, its line in `--help`), in the order in which users need the commands
COMMANDS: dict[str, tuple[str, str]] = {
    "submit": ("buildrunner.cli.submit.command", "build a folder, an archive or a Git repository"),
    "validate": (
        "buildrunner.cli.validate",
        "check configs, and print every problem with its line",
    ),
    "graph": ("buildrunner.cli.graph", "draw the step graph of a config: text, SVG or Mermaid"),
    "schema": ("buildrunner.cli.schema", "print the JSON Schema of configs, for editors"),
    "builds": (
        "buildrunner.cli.builds.command",
        "list, describe, cancel, retry and approve builds, and read their logs",
    ),
    "deployments": (
        "buildrunner.cli.deployments",
        "list what builds deployed where, and roll back to an earlier deployment",
    ),
    "verify": ("buildrunner.cli.verify", "check who built an image or a file, and from what"),
    "trust": ("buildrunner.cli.trust", "trust the settings file of a project"),
    "secrets": ("buildrunner.cli.secrets", "set, list and delete encrypted secrets for builds"),
    "builders": ("buildrunner.cli.builders", "make the builder images (docker, git, python, ...)"),
    "serve": ("buildrunner.cli.serve.command", "run a build server: queue, API, pages, triggers"),
    "worker": (
        "buildrunner.cli.serve.remote_worker",
        "run builds of a server on another host",
    ),
    "schedules": (
        "buildrunner.cli.triggers.schedules",
        "show schedules of triggers, their next times and their history",
    ),
    "triggers": (
        "buildrunner.cli.triggers.command",
        "create, import, test and run triggers of a server",
    ),
    "hooks": ("buildrunner.cli.hooks", "bind webhooks of forges to their repositories"),
    "deliveries": (
        "buildrunner.cli.triggers.deliveries",
        "show and replay the webhooks that a server received",
    ),
    "notifications": (
        "buildrunner.cli.notifications",
        "create and test notifiers, and show sent messages",
    ),
    "tokens": ("buildrunner.cli.serve.tokens", "create, list and revoke access tokens of a server"),
    "login": ("buildrunner.cli.server.login", "store the address of a server and your token"),
    "logout": ("buildrunner.cli.server.logout", "delete the stored address and token of a server"),
    "whoami": ("buildrunner.cli.server.whoami", "show the server in use, and your name and scopes"),
    "backup": ("buildrunner.cli.serve.backup", "create and restore copies of a server's database"),
    "audit": ("buildrunner.cli.serve.audit", "show the audit log of a server"),
    "doctor": ("buildrunner.cli.doctor", "check this machine, and say how to fix problems"),
}

# Commands for buildrunner's own processes: `--help` does not list them.
_HIDDEN: dict[str, tuple[str, str]] = {
    "execute": ("buildrunner.cli.serve.execute", "run one build of a server"),
    "spare": ("buildrunner.cli.serve.spare", "wait for a build of a server, to run it at once"),
}

_HELP = """\
buildrunner runs Google Cloud Build configs (cloudbuild.yaml) unchanged on your own machine.
Every step runs in its own container and shares /workspace, as on the hosted service.

Start with:
  buildrunner doctor                    check this machine
  buildrunner submit --dry-run .        show what would run
  buildrunner submit .                  build this folder with its cloudbuild.yaml

Commands:
{commands}

For the flags of a command: `buildrunner COMMAND --help`. For the version: `buildrunner --version`.
Exit codes: 0 success, 1 build failed, 2 bad config or usage, 3 infrastructure, 4 timeout,
130 interrupted. Documentation: docs/index.md of the source.
"""


def main(argv: list[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: arguments without the program's name; None takes the process's, and ends it.

    Returns:
        The process's exit code (see `buildrunner.errors`).
    """
    if argv is not None:
        return _run(argv)
    # A command makes hardly any garbage, so collect seldom: never while it imports its modules.
    gc.set_threshold(100_000, 50, 50)
    sys.setswitchinterval(0.0005)
    prepare_streams()
    code = _run(sys.argv[1:])
    try:  # noqa: SIM105  (contextlib would be the slowest import of --help)
        sys.stderr.flush()
    except OSError:
        pass  # the terminal is closed
    # Commands close their own resources. A normal exit of the interpreter costs 10 ms and more.
    os._exit(code)


def _run(arguments: list[str]) -> int:
    try:
        code = _dispatch(arguments)
        sys.stdout.flush()
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        drop_output()
        return 0
    except OutputLost as error:
        from buildrunner.cli.terminal.failure import report_lost_output

        drop_output()
        return report_lost_output(error)
    except Exception as error:  # noqa: BLE001  (every error becomes an exit code here)
        from buildrunner.cli.terminal.failure import report_failure

        try:
            sys.stdout.flush()  # the output of the command before it failed
        except OSError:
            drop_output()
        return report_failure(error, arguments)
    return code


# The flags that choose a server, and how many words each takes.
_SERVER_FLAGS = {"--server": 2, "--ca-file": 2, "--local": 1}


def _server_behind_command(arguments: list[str]) -> list[str]:
    """Rewrite ``--server URL submit ...`` as ``submit ... --server URL``."""
    at = 0
    while at < len(arguments) and (size := _SERVER_FLAGS.get(arguments[at].partition("=")[0])):
        at += 1 if "=" in arguments[at] else size
    server, command = arguments[:at], arguments[at:]
    # everything after ``--`` is an argument
    end = command.index("--") if "--" in command else len(command)
    return [*command[:end], *server, *command[end:]]


def _dispatch(arguments: list[str]) -> int:
    arguments = _server_behind_command(arguments)
    if not arguments or arguments[0] in ("--help", "-h", "help"):
        if len(arguments) > 1 and arguments[0] == "help":
            return _run_command(arguments[1], ["--help"])
        width = max(len(name) for name in COMMANDS)
        lines = (f"  {name:<{width}}  {summary}" for name, (_, summary) in COMMANDS.items())
        sys.stdout.write(_HELP.format(commands="\n".join(lines)))
        return 0
    if arguments[0] in ("--version", "-V", "version"):
        sys.stdout.write(f"buildrunner {__version__}\n")
        return 0
    return _run_command(arguments[0], arguments[1:])


def _run_command(name: str, arguments: list[str]) -> int:
    command = COMMANDS.get(name) or _HIDDEN.get(name)
    if command is None:
        from buildrunner.cli.terminal.failure import unknown_command

        raise unknown_command(name, COMMANDS)
    from importlib import import_module

    from buildrunner.cli.arguments import CommandParser

    module_name, summary = command
    module = import_module(module_name)
    parser = CommandParser(
        prog=f"buildrunner {name}", description=f"{summary[:1].upper()}{summary[1:]}."
    )
    module.configure(parser)
    try:
        parsed = parser.parse_args(arguments)
    except SystemExit as stop:  # argparse ends the process after --help
        return int(stop.code or 0)
    code: int = module.run(parsed)
    return code


if __name__ == "__main__":
    sys.exit(main())
