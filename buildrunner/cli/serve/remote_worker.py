"""``buildrunner worker``: runs builds of a server on another host."""

from __future__ import annotations

import argparse
import ipaddress
import logging
import os
import signal
import sys
import threading
from functools import partial

from buildrunner.cli.serve.worker import ServerWorker, WorkerOptions, spare_sandboxes
from buildrunner.errors import EXIT_SUCCESS, AuthError, ServerUnavailable, UsageError
from buildrunner.sandboxes.protocol import ISOLATIONS
from buildrunner.settings import WorkerSettings, data_folder, server_variables
from buildrunner.spec.model.build import Build
from buildrunner.store.model.builds import Lease, StoredBuild
from buildrunner.store.model.remote import BegunBuild, ClaimRequest
from buildrunner.worker.data_folder import DataFolder
from buildrunner.worker.remote.log_sender import send_rest
from buildrunner.worker.remote.materials import store_log
from buildrunner.worker.remote.queue import Claims, RemoteQueue, connect

_EPILOG = """\
The worker needs a container engine and a token, and no database. On the server:

  buildrunner tokens create builder-1 --worker > token

examples:
  buildrunner worker --server https://ci.example.com --token-file token
  buildrunner worker --server https://ci.example.com --token-file token --once

After SIGTERM or Ctrl-C the worker claims no more builds. Running builds continue in their own
processes, and the next worker on the folder adopts them. With --once or --build, the worker waits
for its build first.
"""
_DRAIN_S = 86_400.0


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the flags of ``worker``."""
    parser.epilog = _EPILOG
    parser.add_argument("--server", metavar="URL", default="", help="address of the server")
    parser.add_argument(
        "--token-file", metavar="FILE", required=True, help="file with the token of the worker"
    )
    parser.add_argument(
        "--ca-file",
        metavar="FILE",
        default="",
        help="certificates to trust (default: those of the system)",
    )
    parser.add_argument(
        "--pool",
        metavar="NAME",
        default="",
        help="expected pool of the token; fail on another",
    )
    parser.add_argument("--build", metavar="ID", default="", help="run this build only, then end")
    parser.add_argument("--once", action="store_true", help="run one build, then end")
    parser.add_argument(
        "--sandbox",
        choices=("nested", "host", "pod"),
        default="nested",
        help="nested: each build gets a container engine of its own; host: builds share this"
        " machine's engine; pod: this is a Pod whose engine shares /workspace (default: nested)",
    )
    parser.add_argument(
        "--pod-isolation",
        choices=ISOLATIONS,
        default="host",
        help="with --sandbox pod: how the Pod isolates its builds (default: host)",
    )
    for name, what in (
        ("deny", "networks that its engine keeps steps from, as EGRESS_DENY of the engine"),
        ("allow", "exceptions from them, as EGRESS_ALLOW of the engine"),
    ):
        parser.add_argument(
            f"--pod-egress-{name}",
            metavar="NETWORKS",
            type=_networks,
            default="",
            help=f"with --sandbox pod: {what} has them, with spaces between them",
        )
    parser.add_argument(
        "--max-builds",
        type=int,
        default=1,
        metavar="N",
        help="maximum number of running builds (default: 1)",
    )
    parser.add_argument(
        "--max-build-disk-gib",
        type=int,
        default=100,
        metavar="N",
        help="fail a build whose nested sandbox, or source, uses more disk space; 0 sets no limit,"
        " and a source then has the server's (default: 100)",
    )
    parser.add_argument(
        "--data",
        metavar="DIR",
        default="",
        help="folder of running builds (default: buildrunner/worker in your data folder)",
    )


def _networks(text: str) -> str:
    for network in text.split():
        ipaddress.IPv4Network(network)
    return text


def run(args: argparse.Namespace) -> int:
    """Run builds until SIGTERM or Ctrl-C; with ``--once`` or ``--build``, until one has ended.

    Raises:
        UsageError: invalid flags, or a token file that can't be read.
        AuthError: the server refuses the token.
        StoreError: the folder can't be used, or another worker uses it.
        EngineError: the engine can't run the requested sandboxes.
    """
    variables = server_variables()
    url = args.server or variables.url
    if not url:
        raise UsageError("a worker needs a server", hint="name it with --server URL")
    if args.max_builds < 1:
        raise UsageError(f"--max-builds takes a number from 1 on, not {args.max_builds}")
    is_pod = args.sandbox == "pod"
    if is_pod and args.max_builds > 1:
        raise UsageError("--sandbox pod runs one build at a time: builds would share /workspace")
    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s")
    folder = DataFolder(os.path.abspath(args.data or os.path.join(data_folder(), "worker")))
    ca_file = args.ca_file or variables.ca_file
    settings = WorkerSettings(
        data=folder.path,
        database="",
        sandbox=args.sandbox,
        isolation=args.pod_isolation if is_pod else "",
        pod_egress_deny=args.pod_egress_deny,
        pod_egress_allow=args.pod_egress_allow,
        disk_gib=args.max_build_disk_gib,
        server=url,
        token_file=os.path.abspath(args.token_file),
        ca_file=os.path.abspath(ca_file) if ca_file else "",
    )
    with folder.lock():
        _Worker(args, settings, folder).run()
    return EXIT_SUCCESS


class _Worker:
    """The parts of a running worker."""

    def __init__(
        self, args: argparse.Namespace, settings: WorkerSettings, folder: DataFolder
    ) -> None:
        self._is_of_one_build = bool(args.once or args.build)
        self._folder = folder
        self._over = threading.Event()
        self._refusal = ""
        self._server = connect(settings.server, settings.token_file, settings.ca_file)
        self._request = ClaimRequest(
            worker=folder.worker_name(), pool=args.pool, build_id=args.build
        )
        self._claims = Claims(
            self._server,
            self._request,
            isolation=lambda: self._worker.isolation(),
            arrived=lambda: self._worker.wake(),
            refused=self._refused,
            most=1 if self._is_of_one_build else 0,
        )
        self._queue = RemoteQueue(self._server, send_log=self._send_rest, claims=self._claims)
        self._worker = ServerWorker(
            settings,
            self._queue,
            self._queue.find,
            folder,
            WorkerOptions(
                max_builds=1 if self._is_of_one_build else args.max_builds,
                spare_sandboxes=0 if self._is_of_one_build else spare_sandboxes(args.sandbox, None),
                store_log=self._store_log,
                on_started=lambda stored: _say(f"Build {stored.id} begins."),
                on_gone=self._gone,
            ),
            environ=os.environ,
        )

    def run(self) -> None:
        """Claim and run builds.

        Raises:
            AuthError: the server refuses the token.
            EngineError: the engine can't run the requested sandboxes.
        """
        self._check_token()
        self._worker.check_engine()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)
        self._worker.start()
        _say(f"buildrunner works for {self._server.url} (data in {self._folder.path})")
        try:
            self._over.wait()
            self._claims.close()
            if self._is_of_one_build and self._worker.running():
                _say("Stopping: the build ends first. A second signal leaves it to another worker.")
                self._over.clear()
                threading.Thread(target=self._drain, daemon=True).start()
                self._over.wait()
        finally:
            self._worker.stop()
            self._server.close()
        if self._refusal and not self._request.build_id:
            raise AuthError(self._refusal, code=403)
        if self._refusal:
            _say(f"Nothing to do: {self._refusal}.")

    def _check_token(self) -> None:
        try:
            self._server.answer(
                "GET", "/worker/v1/builds", query={"worker": self._request.worker}, tries=1
            )
        except ServerUnavailable as error:
            _say(f"warning: {error}; the worker asks again")

    def _drain(self) -> None:
        self._worker.drain(_DRAIN_S)
        self._over.set()

    def _on_signal(self, _number: int, _frame: object) -> None:
        self._over.set()

    def _refused(self, reason: str) -> None:
        self._refusal = reason
        self._over.set()

    def _gone(self, build_id: str) -> None:
        self._folder.remove_build(build_id)
        _say(f"Build {build_id} has ended.")
        if self._is_of_one_build:
            self._over.set()

    def _send_rest(self, lease: Lease, begun: BegunBuild) -> None:
        send_rest(self._queue, self._folder.log_folder(lease.build_id), lease, begun)

    def _store_log(self, lease: Lease, stored: StoredBuild, build: Build) -> Build:
        rest = partial(self._send_rest, lease, self._queue.begun(lease))
        return store_log(self._queue, lease, rest, stored, build)


def _say(text: str) -> None:
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()
