"""``buildrunner spare``: waits, ready to run one build of a server. Not for people.

See `worker.spare_process`: the order comes as one line on standard input.
"""

from __future__ import annotations

import argparse
import gc
import os
import sys
from importlib import import_module
from typing import Any

from buildrunner.settings import WorkerSettings, worker_settings
from buildrunner.worker.processes import SpareOrder

# Modules that a build's process imports at some time; a spare imports them ahead.
_MODULES = (
    "buildrunner.cli.serve.execute",
    "buildrunner.worker.program",
    "buildrunner.containers.docker.engine",
    "buildrunner.containers.docker.transport",
    "docker",
    "buildrunner.engine.build_loop",
    "buildrunner.workspace.volume",
    "buildrunner.logs.files.events",
    "buildrunner.worker.execution",
    "buildrunner.sandboxes.host",
)
_OF_DATABASE = ("buildrunner.store.sql.store", "sqlalchemy.dialects.sqlite")
_OF_SERVER = (
    "buildrunner.worker.remote.credentials",
    "buildrunner.worker.remote.log_sender",
    "buildrunner.worker.remote.materials",
    "buildrunner.worker.remote.queue",
)
_OF_SANDBOX = {
    "nested": ("buildrunner.sandboxes.nested.sandbox",),
    "pod": ("buildrunner.sandboxes.pod", "buildrunner.sandboxes.pod_engine"),
}


def configure(parser: argparse.ArgumentParser) -> None:
    """Add no arguments: the command has none."""


def run(_: argparse.Namespace) -> int:
    """Get ready, wait for a build, run it to its end.

    Returns:
        0 when the build has ended, or when the server ended without sending a build.
    """
    worker = worker_settings()
    for name in _modules(worker):
        import_module(name)
    _rehearse()
    _rehearse_requests(worker)
    gc.collect()
    gc.freeze()  # objects that exist now stay: later collections skip them
    line = sys.stdin.buffer.readline()
    if not line.endswith(b"\n"):
        return 0  # the server has ended
    import msgspec

    return _execute(msgspec.json.decode(line, type=SpareOrder))


def _modules(worker: WorkerSettings) -> tuple[str, ...]:
    """Return the modules to import: the queue of the worker is in a database or at a server."""
    of_queue = _OF_SERVER if worker.server else _OF_DATABASE
    return (*_MODULES, *of_queue, *_OF_SANDBOX.get(worker.sandbox, ()))


def _rehearse() -> None:
    """Plan a small build, so that lazy imports and caches are ready before the real one."""
    from buildrunner.plan.compile import compile_build
    from buildrunner.plan.resolve import PlanContext
    from buildrunner.spec.model.build import Build
    from buildrunner.spec.reading.decode import decode_message
    from buildrunner.spec.substitutions.variables import BuiltIns
    from buildrunner.spec.writing import encode_message

    request: dict[str, Any] = {
        "steps": [{"name": "a", "args": ["$_X"], "env": ["A=$PROJECT_ID"]}],
        "substitutions": {"_X": "1"},
        "source": {"storageSource": {"bucket": "bucket", "object": "source.tgz"}},
        "createTime": "2024-05-31T12:00:00Z",
        "timeout": "600s",
        "options": {"logging": "LEGACY"},
    }
    build = decode_message(Build, request).value
    context = PlanContext(built_ins=BuiltIns(project_id="p", build_id="b"))
    encode_message(compile_build(build, context).build)


def _rehearse_requests(worker: WorkerSettings) -> None:
    """Read the certificates to trust, and ask the engine of this Pod, as each build does first."""
    from contextlib import suppress

    from buildrunner import wiring
    from buildrunner.errors import BuildrunnerError

    with suppress(BuildrunnerError):  # the build reports it
        if worker.server:
            from buildrunner.worker.remote.queue import connect

            connect(worker.server, worker.token_file, worker.ca_file).close()
        if worker.sandbox == "pod":
            engine = wiring.pod_engine()
            engine.info()
            engine.close()


def _execute(order: SpareOrder) -> int:

    from buildrunner.cli.serve import execute

    os.chdir(order.folder)
    log = os.open(order.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    nothing = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
    for target, source in ((0, nothing), (1, log), (2, log)):
        os.dup2(source, target)
    os.close(log)
    os.close(nothing)
    return execute.run(
        argparse.Namespace(build_id=order.build_id, fence=order.fence, resume=order.resume)
    )
