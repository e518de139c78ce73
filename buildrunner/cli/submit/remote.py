"""``buildrunner submit`` to a server: uploads the source, posts the Build, follows it.

A build that is followed is shown as if it ran here: log, status line, summary, Ctrl-C.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import signal
import stat
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

import msgspec
from msgspec.structs import replace

from buildrunner.cli.server.choice import ChosenServer
from buildrunner.cli.submit.build_input import BuildInput, object_place
from buildrunner.cli.submit.request import Submission
from buildrunner.cli.submit.session import EXIT_CODES, JsonOutput, TextOutput
from buildrunner.client.client import Document, MissingBlobs, QueueOptions, ServerClient
from buildrunner.client.stream import EventPiece, LogPiece, StateChange, StreamEnd, StreamItem
from buildrunner.engine.events import BuildEvent, BuildFinished, StepStarted
from buildrunner.engine.log.pipeline import LogChunk, TeeSink
from buildrunner.errors import (
    EXIT_INFRASTRUCTURE,
    EXIT_INTERRUPTED,
    EXIT_SUCCESS,
    EXIT_TIMEOUT,
    Conflict,
    NotFound,
    ServerError,
    ServerUnavailable,
    SourceError,
    UsageError,
)
from buildrunner.logs.console.wording import printable
from buildrunner.logs.files.log_file import LogFileSink
from buildrunner.plan.build_plan import BuildPlan
from buildrunner.settings import Settings
from buildrunner.sources.local_folder import LocalFolder, format_size
from buildrunner.spec.model.build import Build, Status
from buildrunner.spec.model.source import Source

# A bar that disappears before a user can read it only flickers.
_BAR_FROM_BYTES = 4 << 20


@contextmanager
def upload_bar(total: int) -> Iterator[Callable[[int], object]]:
    """Show a progress bar on standard error, if that is a terminal and the upload is large."""
    if total < _BAR_FROM_BYTES or not sys.stderr.isatty():
        yield lambda _: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    with Progress(
        TextColumn("Uploading"),
        BarColumn(),
        DownloadColumn(binary_units=True),
        TransferSpeedColumn(),
        console=Console(stderr=True),
        transient=True,
    ) as progress:
        task = progress.add_task("source", total=total)
        yield lambda count: progress.advance(task, count)


Say = Callable[[str], object]


# Flags of builds on this machine only. The server decides how it runs builds.
_LOCAL_ONLY = {
    "step": "--step",
    "from_": "--from",
    "until": "--until",
    "skip": "--skip",
    "secret": "--secret",
    "google_secrets": "--google-secrets",
    "storage": "--storage",
    "image_alias": "--image-alias",
    "no_docker_socket": "--no-docker-socket",
    "privileged": "--privileged",
    "share_registry_logins": "--share-registry-logins",
    "metadata_server": "--metadata-server",
    "metadata_credentials": "--metadata-credentials",
    "git_submodules": "--git-submodules",
    "git_lfs": "--git-lfs",
    "no_git_cache": "--no-git-cache",
    "sandbox": "--sandbox",
    "write_workspace": "--write-workspace",
}


def submit_remote(
    server: ChosenServer, input_: BuildInput, settings: Settings, args: argparse.Namespace
) -> int:
    """Build on a server.

    All local checks come before the first upload.

    Returns:
        The exit code that a build on this machine would have.

    Raises:
        ConfigError: the config is wrong; holds all problems.
        UsageError: the flags request something impossible, or the server refuses the build.
        SourceError: the source can't be read or uploaded.
        ServerUnavailable: the server does not answer.
    """
    from buildrunner.cli.submit.request import read_submission
    from buildrunner.plan.build_plan import new_build_id
    from buildrunner.plan.privilege import Privilege

    _refuse_local_flags(args)
    project = args.project or server.project or settings.project_id
    settings = replace(settings, project_id=project)
    # the server decides, not this machine
    anything = Privilege(docker_socket=True, privileged=True)
    submission = read_submission(input_, settings, args, new_build_id(), anything)
    _refuse_what_stays_here(submission)
    plan = _checked_plan(submission)
    client = server.connect(project)
    try:
        client.whoami()  # a caller without the right to build is refused before the upload
        body = _body(client, submission)
        build = client.create_build(
            body,
            request_id=submission.request.build.id,
            location=args.region,
            options=QueueOptions(
                push=not args.no_push,
                priority=args.priority,
                group=args.group,
                supersede=args.supersede,
            ),
        )
        return _after_creation(client, build, submission, plan)
    finally:
        client.close()


def _after_creation(
    client: ServerClient, build: Document, submission: Submission, plan: BuildPlan | None
) -> int:
    args = submission.args
    _say(f"Created [{client.build_url(build['id'], args.region)}].")
    _say(f"Logs are available at [ {build.get('logUrl') or client.log_url(build['id'])} ].")
    if getattr(args, "async"):
        print_created(build, as_json=args.output == "json")
        return EXIT_SUCCESS

    # If the number of steps differs, the server has another plan, and the session requests it.
    ours = plan if plan and len(plan.steps) == len(build.get("steps", ())) else None
    session = RemoteSession(
        client,
        build,
        plan=replace(ours, build_id=build["id"])
        if ours is not None
        else BuildPlan(build_id=build["id"], project_id=client.project, steps=()),
        planned=ours is not None,
        quiet=args.quiet,
        as_json=args.output == "json",
    )
    return session.run()


def print_created(build: Document, *, as_json: bool) -> None:
    """Print the id of a build that is not followed, or the whole build as JSON."""
    if as_json:
        from buildrunner.cli.terminal.listing import formatted

        sys.stdout.write(formatted(build, "json"))
    else:
        sys.stdout.write(f"{build['id']}\n")


def _refuse_local_flags(args: argparse.Namespace) -> None:
    for name, flag in _LOCAL_ONLY.items():
        if getattr(args, name) not in (None, False, "", "host", []):
            raise UsageError(
                f"{flag} is for builds on this machine: the server decides how it runs builds",
                hint="--local builds here",
            )


def _refuse_what_stays_here(submission: Submission) -> None:
    if submission.input.in_repository:
        raise UsageError(
            "a server reads the config of a repository only when a trigger says so",
            hint="name a config of this machine with --config FILE",
        )
    triggered = submission.input.triggered
    if triggered is not None and triggered.source_dir:
        raise UsageError(
            "triggerTemplate.dir can't be had with an uploaded folder",
            hint="--local builds here, or import the trigger and run it there (triggers run)",
        )


def _checked_plan(submission: Submission) -> BuildPlan | None:
    """Return the plan, as far as this machine can know it. None if the commit decides.

    Raises:
        ConfigError: the config is wrong.
    """
    from buildrunner.cli.submit.request import compile_submission

    if submission.request.git_source is not None:
        return None
    made, warnings = compile_submission(submission)
    for text in warnings:
        _say(f"warning: {text}")
    return made.compiled.plan


def _body(client: ServerClient, submission: Submission) -> Document:
    """Return the Build for the API, with its source uploaded."""
    from buildrunner.spec.writing import encode_message

    request = submission.request
    build, context = request.build, request.context
    substitutions = {**build.substitutions, **context.substitutions}
    if context.triggered:
        from buildrunner.cli.submit.build_input import substitutions_of
        from buildrunner.spec.validation.build import effective_options

        substitutions = {**substitutions_of(context.built_ins), **substitutions}
        build = replace(build, options=effective_options(build.options, triggered=True))
    body = encode_message(replace(build, id="", project_id="", substitutions=substitutions))
    source = _uploaded(client, submission) if request.local else None
    if source is not None:
        body["source"] = source
    return body


def _uploaded(client: ServerClient, submission: Submission) -> Document:
    args, input_ = submission.args, submission.input
    if args.gcs_source_staging_dir:
        from buildrunner.spec.writing import encode_message

        build = staged(submission, submission.request.build)
        staged_source: Document = encode_message(build)["source"]
        return staged_source

    if input_.archive:
        return upload_archive(client, input_.archive, say=_say)
    return upload_folder(client, input_.folder or ".", ignore_file=args.ignore_file, say=_say)


def _say(text: str) -> None:
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()


def staged(submission: Submission, build: Build) -> Build:
    """Upload the submitted folder or archive to the staging folder of ``submit``.

    Args:
        submission: its source is a folder or an archive of this machine.
        build: the build.

    Returns:
        The build on the uploaded source.

    Raises:
        UsageError: ``--gcs-source-staging-dir`` is no URL in a bucket.
        SourceError: the source can't be read or uploaded.
    """
    import uuid

    from buildrunner import wiring
    from buildrunner.sources.bucket.staging import Staging

    args, input_ = submission.args, submission.input
    staging = Staging(
        wiring.stores(submission.settings),
        object_place(args.gcs_source_staging_dir),
        now=datetime.now(UTC),
        token=uuid.uuid4().hex,
        say=lambda text: print(text, file=sys.stderr),
        bar=upload_bar,
    )
    if input_.archive:
        source = staging.stage_file(input_.archive)
    else:
        shown = input_.folder or "."
        source = staging.stage_folder(LocalFolder(shown, ignore_file=args.ignore_file), shown)
    return replace(build, source=Source(storage_source=source))


_AT_ONCE = 8
_TRIES = 3


def upload_folder(client: ServerClient, folder: str, *, ignore_file: str, say: Say) -> Document:
    """Upload a folder. Returns the ``source`` for the Build.

    Modes, times, symbolic links and empty folders are uploaded, too; ignored files are not.

    Raises:
        UsageError: no such folder, or no such ``ignore_file``.
        SourceError: a file can't be read, or keeps changing.
    """
    local = LocalFolder(folder, ignore_file=ignore_file)
    for line in local.describe(local.scan()):
        say(line)
    entries = list(_entries(local))
    paths = {
        entry["sha256"]: os.path.join(local.root, path)
        for path, entry in entries
        if "sha256" in entry
    }
    return _upload(client, paths, {"files": [entry for _, entry in entries]}, say)


def upload_archive(client: ServerClient, path: str, *, say: Say) -> Document:
    """Upload an archive unchanged. Returns the ``source`` for the Build.

    Raises:
        SourceError: it can't be read.
    """
    with _readable(path):
        sha256 = _sum(path)
    body = {"archive": {"sha256": sha256, "name": os.path.basename(path)}}
    return _upload(client, {sha256: path}, body, say)


def _entries(local: LocalFolder) -> Iterator[tuple[str, Document]]:
    """Yield paths and entries of the manifest in walk order. Hashes several files at a time."""
    from concurrent.futures import ThreadPoolExecutor

    found = [(path, status) for path, status in local.entries() if path != "."]
    files = [path for path, status in found if stat.S_ISREG(status.st_mode)]
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        sums = dict(
            zip(files, pool.map(lambda path: _hashed(local.root, path), files), strict=True)
        )
    for path, status in found:
        entry: dict[str, Any] = {
            **_named("path", path),
            "mode": stat.S_IMODE(status.st_mode),
            "mtimeNs": status.st_mtime_ns,
        }
        if stat.S_ISDIR(status.st_mode):
            entry["directory"] = True
        elif stat.S_ISLNK(status.st_mode):
            with _readable(path):
                entry |= _named("link", os.readlink(os.path.join(local.root, path)))
        elif (hashed := sums[path]) is None:
            continue  # the file was deleted meanwhile
        else:
            entry["sha256"], entry["size"] = hashed
        yield path, entry


def _hashed(root: str, path: str) -> tuple[str, int] | None:
    try:
        with _readable(path):
            return _sum_and_size(os.path.join(root, path))
    except SourceError as error:
        if isinstance(error.__cause__, FileNotFoundError):
            return None
        raise


def _upload(client: ServerClient, paths: dict[str, str], body: Document, say: Say) -> Document:
    missing = client.sources.missing_blobs(paths)
    for _ in range(_TRIES - 1):
        _upload_blobs(client, {sha256: paths[sha256] for sha256 in missing}, len(paths), say)
        try:
            return client.sources.make_source(body)
        except MissingBlobs as error:
            missing = set(error.sha256s)  # the server deleted some contents meanwhile
    return client.sources.make_source(body)


def _upload_blobs(client: ServerClient, paths: dict[str, str], of: int, say: Say) -> None:
    from concurrent.futures import CancelledError, ThreadPoolExecutor, as_completed

    sizes = {}
    for sha256, path in paths.items():
        with _readable(path):
            sizes[sha256] = os.stat(path).st_size
    total = sum(sizes.values())
    if not paths:
        say(f"Uploading nothing: [{client.url}] has all of it")
        return
    noun = "file" if of == 1 else "files"
    say(f"Uploading {len(paths)} of {of} {noun} ({format_size(total)}) to [{client.url}]")
    pool = ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="upload")
    stopped = threading.Event()
    with upload_bar(total) as moved:

        def sent(count: int) -> None:
            if stopped.is_set():
                raise CancelledError
            moved(count)

        jobs = [
            pool.submit(_upload_blob, client, sha256, path, sizes[sha256], sent)
            for sha256, path in sorted(paths.items(), key=lambda item: -sizes[item[0]])
        ]
        try:
            for job in as_completed(jobs):
                job.result()
        except Exception:
            # The caller may close the client next, so wait for the other threads. They end at their
            # next piece.
            stopped.set()
            pool.shutdown(cancel_futures=True)
            raise
        finally:  # Ctrl-C does not wait for the other threads
            stopped.set()
            pool.shutdown(wait=False, cancel_futures=True)


def _upload_blob(
    client: ServerClient, sha256: str, path: str, size: int, moved: Callable[[int], object]
) -> None:
    with _readable(path), open(path, "rb") as file:
        try:
            client.sources.upload_blob(sha256, file, size, moved)
        except UsageError as error:
            if _sum(path) != sha256:
                raise SourceError(
                    f"{path} changed while it was uploaded", hint="submit again"
                ) from error
            raise


@contextmanager
def _readable(path: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise SourceError(f"{path} can't be read: {error.strerror or error}") from error


def _sum(path: str) -> str:
    return _sum_and_size(path)[0]


def _sum_and_size(path: str) -> tuple[str, int]:
    with open(path, "rb", opener=_careful) as file:
        return hashlib.file_digest(file, "sha256").hexdigest(), file.tell()


def _careful(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK)  # a pipe that replaced the file must not block


def _named(field: str, name: str) -> Document:
    """Return a file name for a manifest: JSON holds only UTF-8."""
    from base64 import b64encode

    try:
        name.encode()
    except UnicodeEncodeError:
        raw = os.fsencode(name)
        return {field: raw.decode(errors="replace"), f"{field}Bytes": b64encode(raw).decode()}
    return {field: name}


_PLAN_TRIES = 50
_PLAN_PAUSE_S = 0.1
_NEXT = "turn"  # the build begins in a moment: not worth a line


class RemoteSession:
    """Follows one build on a server to its end.

    Args:
        client: where it runs.
        build: as it was created.
        plan: the plan, or a plan without steps while it is unknown.
        planned: whether the plan is known.
        quiet: don't show the log.
        as_json: events as JSON lines instead of text.
    """

    def __init__(
        self,
        client: ServerClient,
        build: Document,
        *,
        plan: BuildPlan,
        planned: bool,
        quiet: bool,
        as_json: bool,
    ) -> None:
        self._client = client
        self._id: str = build["id"]
        self._plan = plan
        self._planned = planned
        self._quiet = quiet
        self._as_json = as_json
        self._said = ""
        self._is_lost = False
        self._finished = False
        self._decoder = msgspec.json.Decoder(BuildEvent)

    def run(self) -> int:
        """Follow the build.

        Returns:
            The exit code of the command.

        Raises:
            ServerUnavailable: the server was away for ten minutes. The build is not cancelled.
        """
        with tempfile.TemporaryDirectory(prefix="buildrunner-log-") as folder:
            log = LogFileSink(folder)
            self._output = self._make_output(folder)
            self._sink = TeeSink(log, self._output.sink)
            with _RemoteInterruption(self._cancel) as interruption:
                try:
                    return self._finish(self._follow(), interruption)
                except ServerUnavailable as error:
                    again = f"{self._command('log')} --follow {self._id}"
                    raise ServerUnavailable(
                        str(error), hint=f"the build was not cancelled: `{again}`"
                    ) from error
                finally:
                    self._output.close()
                    log.close()

    def _make_output(self, folder: str) -> TextOutput | JsonOutput:
        if self._as_json:
            return JsonOutput()
        return TextOutput(
            self._plan,
            folder,
            quiet=self._quiet,
            log_command=self._command("log"),
            retry_command=self._command("retry"),
        )

    def _command(self, action: str) -> str:
        """Return a command for this build that works in any folder, whatever its settings."""
        where = f"--server {self._client.url} --project {self._client.project}"
        return f"buildrunner builds {action} {where}"

    def _follow(self) -> str:
        status = ""
        stream = self._client.follow(self._id, events=0, chunks=self._as_json, on_lost=self._lost)
        for item in stream:
            status = self._take(item) or status
        return status

    def _take(self, item: StreamItem) -> str:
        """Show an item. Returns the final status with the last item."""
        if self._is_lost:
            self._is_lost = False
            self._notice(self._said)
        match item:
            case LogPiece():
                self._write(item)
            case EventPiece():
                self._take_event(item.line)
            case StateChange():
                self._report_wait(item)
            case StreamEnd():
                return item.status
        return ""

    def _write(self, piece: LogPiece) -> None:
        begin = 0
        for size, at_us, step in piece.chunks:
            at = datetime.fromtimestamp(at_us / 1_000_000, UTC)
            data = piece.data[begin : begin + size]
            self._sink.write(LogChunk(data, None if step < 0 else step, at))
            begin += size
        if begin < len(piece.data):
            self._sink.write(LogChunk(piece.data[begin:], None, datetime.now(UTC)))

    def _take_event(self, line: bytes) -> None:
        try:
            event = self._decoder.decode(line)
        except msgspec.ValidationError:
            return  # an event of a newer server
        if isinstance(event, StepStarted) and not self._planned:
            self._learn_plan()
        if isinstance(event, BuildFinished):
            self._finished = True
        self._output.on_event(event)

    def _learn_plan(self) -> None:
        """Request the plan, which the server has once the first step begins, or soon after.

        Raises:
            ServerError: the server has no plan.
        """
        for left in range(_PLAN_TRIES, 0, -1):
            try:
                text = self._client.read_plan(self._id)
            except NotFound as error:
                if left == 1:
                    raise ServerError(f"the server has no plan of build {self._id}") from error
                time.sleep(_PLAN_PAUSE_S)
            else:
                self._planned = True
                self._output.planned(msgspec.json.decode(text, type=BuildPlan))
                return

    def _report_wait(self, state: StateChange) -> None:
        text = ""
        waiting: dict[str, Any] = state.waiting or {}
        if waiting and waiting.get("kind") != _NEXT:
            text = f"Waiting: {printable(waiting['text'])}"
        if text != self._said:
            self._said = text
            self._notice(text)

    def _notice(self, text: str) -> None:
        if text or not self._as_json:  # without a status line there is nothing to erase
            self._output.notice(text)

    def _lost(self, _: ServerError) -> None:
        self._is_lost = True
        self._notice(f"The connection to {self._client.url} was lost; trying again ...")

    def _cancel(self) -> None:
        """Request the cancellation. Called in a thread of its own."""
        try:
            self._output.notice("Cancelling ...")
            self._client.cancel_build(self._id)
        except (Conflict, NotFound):
            return  # the build has ended meanwhile
        except ServerError as error:
            self._output.notice(f"the build can't be cancelled: {error}")

    def _finish(self, status: str, interruption: _RemoteInterruption) -> int:
        from buildrunner.spec.reading.decode import decode_message

        document = self._client.get_build(self._id)
        build = decode_message(Build, document).value
        code = exit_code(status)
        if interruption.caught and status != "SUCCESS":
            code = EXIT_INTERRUPTED
        self._output.finish(build, code, lambda: interruption.caught)
        if not self._finished and not self._as_json:
            self._say_end(document)
        if interruption.caught and status == "CANCELLED":
            sys.stderr.write(f"Cancelled [{self._client.build_url(self._id)}].\n")
        return code

    def _say_end(self, document: Document) -> None:
        """Print the result of a build that ended without a summary."""
        detail = document.get("statusDetail") or document.get("failureInfo", {}).get("detail", "")
        text = f"Build {self._id} {document['status']}"
        sys.stderr.write(f"{text}: {printable(detail)}\n" if detail else f"{text}\n")


def exit_code(status: str) -> int:
    """Return a command's exit code for a build with that final status."""
    if status == "EXPIRED":
        return EXIT_TIMEOUT
    try:
        return EXIT_CODES[Status[status]]
    except KeyError:
        return EXIT_INFRASTRUCTURE


class _RemoteInterruption:
    """Ctrl-C cancels the build, as gcloud's does; the third leaves it to the server.

    Other signals end this process only: the build continues.
    """

    def __init__(self, cancel: Any) -> None:
        self._cancel = cancel
        self._count = 0
        self._before: Any = None

    @property
    def caught(self) -> bool:
        """Whether Ctrl-C was pressed."""
        return self._count > 0

    def __enter__(self) -> _RemoteInterruption:
        if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
            self._before = signal.signal(signal.SIGINT, self._on_signal)
        return self

    def __exit__(self, *_: object) -> None:
        if self._before is not None:
            signal.signal(signal.SIGINT, self._before)

    def _on_signal(self, _number: int, _frame: object) -> None:
        self._count += 1
        if self._count == 1:
            # In a thread: the handler interrupts code that may hold the client's locks.
            threading.Thread(target=self._cancel, name="cancel", daemon=True).start()
        elif self._count == 2:
            os.write(2, b"Already cancelling; once more leaves the build to the server.\n")
        else:
            raise KeyboardInterrupt
