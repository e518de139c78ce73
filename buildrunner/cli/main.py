"""The ``buildrunner`` command: finds a command's module, runs it, turns errors into exit codes.

A command is a module with ``configure(parser)`` and ``run(args) -> int`` and a line in `COMMANDS`.
Nothing is imported here that ``--help`` and ``--version`` don't need: they answer in the time of a
bare Python, and a test keeps it so.
"""

from __future__ import annotations

import gc
import os
import sys

from buildrunner import __version__
from buildrunner.cli.terminal.streams import OutputLost, drop_output, prepare_streams

# name -> (module, one line for the root help), in the order in which people meet them
COMMANDS: dict[str, tuple[str, str]] = {
    "submit": ("buildrunner.cli.submit.command", "build a folder with a Cloud Build config"),
    "validate": ("buildrunner.cli.validate", "check configs: every problem, with line and column"),
    "graph": ("buildrunner.cli.graph", "draw a config's steps: text, SVG or Mermaid"),
    "schema": ("buildrunner.cli.schema", "print the JSON Schema of configs, for editors"),
    "builds": (
        "buildrunner.cli.builds.command",
        "list, describe, log, cancel: what ran, or still runs",
    ),
    "trust": ("buildrunner.cli.trust", "let a project's settings file do more than lower rights"),
    "secrets": ("buildrunner.cli.secrets", "set, list, rm: values for builds, encrypted here"),
    "builders": ("buildrunner.cli.builders", "make the builder images (docker, git, python, ...)"),
    "serve": ("buildrunner.cli.serve.command", "be a build service: queue, API, logs"),
    "schedules": ("buildrunner.cli.triggers.schedules", "when triggers fire by the clock"),
    "triggers": (
        "buildrunner.cli.triggers.command",
        "what starts builds on a server, and why it did not",
    ),
    "hooks": ("buildrunner.cli.hooks", "what webhooks of forges may fire: list, set, delete"),
    "deliveries": (
        "buildrunner.cli.triggers.deliveries",
        "what forges told the server; show, replay",
    ),
    "notifications": (
        "buildrunner.cli.notifications.command",
        "who is told of builds; what went out",
    ),
    "tokens": ("buildrunner.cli.serve.tokens", "create, list, revoke: who may use the server"),
    "login": ("buildrunner.cli.server.login", "use a server: remember its address and your token"),
    "logout": ("buildrunner.cli.server.logout", "forget a server and its token"),
    "whoami": ("buildrunner.cli.server.whoami", "which server is used, and whom its token names"),
    "backup": ("buildrunner.cli.serve.backup", "create, restore: copies of the server's database"),
    "audit": ("buildrunner.cli.serve.audit", "who did what on the server"),
    "doctor": ("buildrunner.cli.doctor", "check that this machine is fit to build"),
}

# Commands for our own processes, not for people: `--help` does not list them.
_HIDDEN: dict[str, tuple[str, str]] = {
    "execute": ("buildrunner.cli.serve.execute", "run one build of a server"),
    "spare": ("buildrunner.cli.serve.spare", "wait for a build of a server, to run it at once"),
}

_HELP = """\
buildrunner runs Google Cloud Build configs (cloudbuild.yaml) unchanged, on your own machine.
Every step runs in its own container, over a shared /workspace, as on the hosted service.

Start with:
  buildrunner doctor                    is this machine fit, and what to do if it isn't
  buildrunner submit --dry-run .        what would run, without running it
  buildrunner submit .                  build this folder with its cloudbuild.yaml

Commands:
{commands}

`buildrunner COMMAND --help` tells all flags of a command. `buildrunner --version` the version.
Exit codes: 0 success, 1 build failed, 2 bad config or usage, 3 infrastructure, 4 timeout,
130 interrupted. Documentation: the docs/ folder of the source, from docs/index.md on.
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
    # Hardly anything that a command makes is garbage: look for it seldom.
    gc.set_threshold(50_000, 50, 50)
    sys.setswitchinterval(0.0005)
    prepare_streams()
    code = _run(sys.argv[1:])
    try:  # noqa: SIM105  (contextlib would be the dearest import of --help)
        sys.stderr.flush()
    except OSError:
        pass  # the terminal is gone: nobody reads the rest
    # Commands close what they open. Taking the interpreter down as well costs 10 ms and more.
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
    except Exception as error:  # noqa: BLE001  (the last border: everything becomes an exit code)
        from buildrunner.cli.terminal.failure import report_failure

        return report_failure(error, arguments)
    return code


def _server_behind_command(arguments: list[str]) -> list[str]:
    """``--server URL submit ...`` as ``submit ... --server URL``; also behind a second word."""
    size = {"--server": 2, "--local": 1}.get(arguments[0].partition("=")[0], 0) if arguments else 0
    size = 1 if size and "=" in arguments[0] else size
    server, command = arguments[:size], arguments[size:]
    end = command.index("--") if "--" in command else len(command)  # no flags from there on
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
