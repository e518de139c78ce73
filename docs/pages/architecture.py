"""The page on the architecture: the layers, each package by its docstring, a build's way."""

from __future__ import annotations

import ast
import re
import tomllib
from typing import TYPE_CHECKING

from pages.layers import layers, rooms
from pages.markdown import code, table

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_HEAD = """\
# Architecture

buildrunner is one engine that runs compiled builds, with three ways to start it: `buildrunner submit`, a server's
queue, and a server's triggers.

```text
 cloudbuild.yaml ──► spec ──► Build ──► plan ──► BuildPlan  (final commands, environment, mounts, edges)
                                                   │
 folder, Git, bucket ──► sources ──► workspace ◄───┤ engine: step graph, steps, log, push
                                                   │     │ events          │ log lines
                                                   ▼     ▼                 ▼
                                             containers  store (SQL)    logs (files, console)

 webhook, schedule, manual ──► triggers ──► Build ──► store: queue ──► worker ──► a process per build: all of the above
                                                        ▲             └──► changes ──► outbox ──► forges, chats, mail
                                    server: API, pages, webhooks
```

## Layers

![The packages of buildrunner in their layers](../images/layers.svg)

A package imports from the layers below its own, and packages of one layer import nothing from each other. `make lint`
checks this with import-linter; the picture is drawn from the same table in `pyproject.toml`. The server has layers of its
own:

![The packages of the server in their layers](../images/layers-server.svg)

[Decision 0032](../decisions/0032-packages.md) says why the code is divided in this way.

## One build, from command to exit code

`buildrunner submit .` runs a build in its own process:

1. `cli/submit/command.py` parses the flags. `cli/submit/build_input.py` finds the config and the source, and
   `cli/submit/request.py` makes a `BuildRequest` (`build_run/request.py`).
2. `build_run/compile.py` compiles the request. `spec/reading/decode.py` parses the YAML to nodes that keep line and column.
   `spec/validation/check.py` returns every problem at once, or none.
3. `spec/substitutions/variables.py` fills in values. `plan/compile.py` turns the Build into a `BuildPlan`: final commands,
   environment, mounts and edges. `--dry-run` prints the plan and stops.
4. Meanwhile `cli/submit/engine_setup.py` creates the build's network in a thread.
5. `build_run/execution.py` chooses the workspace for the source and calls `run_build` of `engine/build_loop.py`.
6. The loop there owns all state of the running build (`engine/running_build.py`). Its threads do the blocking work and report to
   `engine/inbox.py`.
7. `BuildSetup` in the same module prepares volumes, workspace and secrets at the same time. `engine/image_pulls.py` pulls each
   missing image once.
8. `plan/step_graph.py` decides which steps may run; `engine/step_runs.py` starts them. `engine/step_run.py` runs one
   step: image, container, output, exit code.
9. `engine/log/pipeline.py` splits the output into lines, masks secrets, and passes each line to the log file
   (`logs/files/log_file.py`) and the terminal (`logs/console/console.py`).
10. `engine/publishing.py` pushes images and uploads artifacts. `engine/build_loop.py` removes containers, volumes and the
    network.
11. `store/records.py` turns the events and the `BuildOutcome` (`engine/outcome.py`) into the finished Build, which
    `store/local.py` stores. The command exits with the code of its status.

## One build on a server

1. `server/api/builds.py` receives the request. `server/services/queueing.py` checks it, and
   `server/services/queueing.py` puts it into the queue (`store/sql/queue.py`).
2. `worker/supervisor.py` claims the build under a lease and starts a process for it (`worker/processes.py`).
3. `worker/execution.py` runs in that process. It stores each state before the act that the state announces.
   `worker/program.py` makes a `BuildRequest` of the stored build, which is compiled and run as above, in a sandbox
   (`sandboxes/protocol.py`).
4. After a crash, `worker/recovery.py` decides what becomes of the build ([crash safety](crash-safety.md)).
5. The API, the pages (`server/pages/builds/page.py`) and the log viewers read the store and the log files, never the running
   process.

A push starts a build in this way:

1. `server/api/hooks.py` takes the request; `server/events/intake.py` verifies the signature, and stores the delivery before
   it is answered.
2. `server/events/loop.py` claims the delivery. `server/events/handling.py` reads it with the module of its forge
   (`triggers/forges/catalog.py`) and compares it with the triggers of its repository (`triggers/matching.py`).
3. `triggers/build.py` makes the Build, and `server/services/queueing.py` puts it into the queue.
4. Each change of the build goes to an outbox in the same transaction. `server/outbox/sender.py` delivers commit statuses
   and notifications.

## Where to start reading

Read the protocols first: `plan/build_plan.py`, `containers/protocol.py`, `workspace/protocol.py`, `engine/events.py`,
`engine/log/pipeline.py`; on the server `store/sql/store.py` and `sandboxes/protocol.py`. Then follow a build from
`cli/submit/command.py`.

Two rules explain most signatures:

- A failing step is a value (`engine/outcome.py`). An exception means that buildrunner itself could not do its job.
- Pure code decides, thin code acts. `spec`, `plan` and `triggers` do no input or output.

## Where a change belongs

| change | start with |
| --- | --- |
| a flag or its help text | `cli/submit/flags.py`, `cli/serve/settings.py`, or the module of the command |
| a column of `builds list` | `cli/builds/local.py`, for this machine and for a server |
| a setting | `settings/settings_file.py` |
| a field of the config | `spec/model/build.py` and its neighbours; its rules in `spec/validation/check.py` |
| what runs: command, environment, mounts | `plan/compile.py`; rights of steps in `plan/privilege.py` |
| the order of steps | `plan/step_graph.py` |
| the error of a step, such as its timeout | `StepVerdict` in `engine/step_run.py`; its line on the terminal in `logs/console/summary.py` |
| the error of a build | `engine/outcome.py` |
| pulls and pushes of images | `engine/image_pulls.py`, `engine/publishing.py`; the engine's requests in `containers/docker/transfers.py` |
| the form of the log | `engine/log/pipeline.py`; on the terminal `logs/console/outputs.py` |
| a route of the API | `server/api/builds.py` and its neighbours; the operation itself in `server/services/builds.py` |
| a page of the dashboard | `server/pages/builds/page.py` and its neighbours |
| a forge | `triggers/forges/forge.py`, whose docstring lists the parts |
| which events fire a trigger | `triggers/matching.py` |
| a commit status | `triggers/status_report.py` |
| a kind of notifier | `server/notifications/notifier.py`, `server/notifications/messages.py` |
| a column of the server's database | `store/sql/schema.py`, with a revision in `store/sql/migrations/` |

[CONTRIBUTING.md](../../CONTRIBUTING.md) lists the steps and tests of common changes.

## Packages

The texts are the packages' own docstrings, from the top layer to the bottom.
"""


def page(root: Path, types: Path) -> str:
    """The page.

    Args:
        root: the repository.
        types: the file that names the main types of packages.
    """
    package = root / "buildrunner"
    main = tomllib.loads(types.read_text())["types"]
    names = [name for layer in layers(root / "pyproject.toml") for name in layer]
    parts = [_HEAD]
    for name in names:
        if (package / name).is_dir() or name in main:
            parts += ["\n", *_package(package, name, main.get(name, []))]
    return "".join(parts)


def _package(package: Path, name: str, types: list[str]) -> Iterator[str]:
    yield f"### {name}\n\n{_prose(package / name)}\n"
    if types:
        yield f"\nMain types: {'; '.join(_type(package, one) for one in types)}.\n"
    inside = [
        (code(f"{name}/{room}/"), _prose(package / name / room)) for room in _tree(package, name)
    ]
    if inside:
        yield "\n" + table(("package", "contents"), inside)


def _tree(package: Path, name: str) -> Iterator[str]:
    for room in rooms(package / name):
        yield room
        yield from (f"{room}/{below}" for below in _tree(package, f"{name}/{room}"))


def _type(package: Path, path: str) -> str:
    """A type and its module, as Markdown.

    Raises:
        ValueError: the type does not exist.
    """
    *parts, name = path.split(".")
    module = "/".join(parts) + ".py"
    file = package / module
    if not file.is_file() or not re.search(rf"^(class )?{name}\b", file.read_text(), re.MULTILINE):
        raise ValueError(f"docs/architecture.toml names {path}, which does not exist")
    return f"{code(name)} ({code(module)})"


def _prose(package: Path) -> str:
    """The docstring of a package, or of a module in its place, as Markdown."""
    module = package / "__init__.py" if package.is_dir() else package.with_suffix(".py")
    text = ast.get_docstring(ast.parse(module.read_text())) or ""
    return text.replace("``", "`")
