"""Runs git through GitPython, in a controlled environment. The only module that does so."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import signal
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final, Protocol, TextIO

import msgspec
from git import RemoteProgress

from buildrunner.errors import SourceError
from buildrunner.sources.git.credentials import SSH_ADDRESSES
from buildrunner.sources.git.errors import GitFailed, explain
from buildrunner.sources.git.room import FetchRoom, too_large
from buildrunner.sources.git.url import GitUrl, parse_git_url

Progress = Callable[[str, "int | None"], None]
"""Called with git's current activity and its percentage (0: unknown), or with a sentence for the
log and None."""

_KEPT = ("GIT_CONFIG_", "GIT_SSL_", "GIT_PROXY_SSL_", "GIT_HTTP_", "GIT_PYTHON_", "GIT_EXEC_PATH")

# A repository is data: no program that it names, and no interactive program, may run here.
_CONFIG: dict[str, str] = {
    "core.hooksPath": os.devnull,
    "core.fsmonitor": "false",
    "core.untrackedCache": "false",
    "core.autocrlf": "false",
    "core.attributesFile": os.devnull,
    "core.logAllRefUpdates": "false",
    "core.fsync": "none",
    "credential.interactive": "false",
    "gc.auto": "0",
    "maintenance.auto": "false",
    "fetch.unpackLimit": "1",
    "fetch.recurseSubmodules": "false",
    "submodule.recurse": "false",
    "checkout.thresholdForParallelism": "100",
    # A server that sends less than this for that long counts as dead.
    "http.lowSpeedLimit": "1000",
    "http.lowSpeedTime": "60",
    # Harmful objects are refused; objects with minor flaws (common in old repositories) are not.
    "fetch.fsckObjects": "true",
    "fetch.fsck.badDate": "warn",
    "fetch.fsck.badDateOverflow": "warn",
    "fetch.fsck.badEmail": "warn",
    "fetch.fsck.badName": "warn",
    "fetch.fsck.badTimezone": "warn",
    "fetch.fsck.missingEmail": "warn",
    "fetch.fsck.missingNameBeforeEmail": "warn",
    "fetch.fsck.missingSpaceBeforeDate": "warn",
    "fetch.fsck.missingSpaceBeforeEmail": "warn",
    "fetch.fsck.multipleAuthors": "warn",
    "fetch.fsck.treeNotSorted": "warn",
    "fetch.fsck.zeroPaddedDate": "warn",
    "fetch.fsck.zeroPaddedFilemode": "warn",
}


class GitLimits(msgspec.Struct, frozen=True, kw_only=True):
    """Limits of each command; 0 sets none.

    Attributes:
        output_bytes: the most bytes that git may print.
        memory_bytes: the most memory of each of its processes, where the system can limit it.
        file_bytes: the largest file that it may write, where the system can limit it.
    """

    output_bytes: int = 0
    memory_bytes: int = 0
    file_bytes: int = 0

    def command(self) -> list[str]:
        """Return the beginning of a command line that sets the limits of the program after it."""
        kinds = {"-d": self.memory_bytes // 1024, "-f": self.file_bytes // 512}  # POSIX's units
        # A limit that is lower already stays.
        limits = "".join(f"ulimit {kind} {n} 2>/dev/null; " for kind, n in kinds.items() if n)
        return ["sh", "-c", f'{limits}exec "$@"', "sh"] if limits else []


NO_LIMITS: Final = GitLimits()


class LineReader(Protocol):
    """Reads git's output line by line, in a separate thread. Returning false stops git."""

    def __call__(self, line: str) -> bool:
        """Take one line, its newline included."""
        ...


class GitCommand:
    """Runs git for one repository. For one thread at a time.

    Args:
        url: the repository, for messages and for the allowed protocols.
        environment: further environment of every command (see credentials.py).
        config: Git settings that override the user's own.
        secrets: values that must never be in a message.
        cancel: when set, kills the running command within a second.
        progress: see `Progress`.
        allow_host: returns whether a host is allowed (empty: this machine's files); None: all.
        pin: returns the setting that ties an allowed URL to checked addresses; None for no setting
            (see `SourceGate`).
        limits: the limits of each command.
        room: limits the folders that commands fill (`filling`); None sets no limit.
    """

    def __init__(
        self,
        url: GitUrl,
        *,
        environment: Mapping[str, str] | None = None,
        config: Sequence[tuple[str, str]] = (),
        secrets: tuple[str, ...] = (),
        cancel: threading.Event | None = None,
        progress: Progress | None = None,
        allow_host: Callable[[str], bool] | None = None,
        pin: Callable[[str], tuple[str, str] | None] | None = None,
        limits: GitLimits = NO_LIMITS,
        room: FetchRoom | None = None,
    ) -> None:
        self.url = url
        self._limits = limits
        self._room = room
        self._allow_host = allow_host
        self._pin = pin
        self._secrets = secrets
        self._cancel = cancel or threading.Event()
        self._progress = progress
        self._config = [
            *_CONFIG.items(),
            ("checkout.workers", str(len(os.sched_getaffinity(0)))),
            # An allowed host must not redirect to a host that is not allowed.
            *([("http.followRedirects", "false")] if allow_host is not None else []),
            *config,
        ]
        self._pins: list[tuple[str, str]] = []
        self._ssh_addresses: dict[str, str] = {}
        self._environment = {
            # Overrides any protocol.NAME.allow of a configuration.
            "GIT_ALLOW_PROTOCOL": "https:http:ssh:git"
            + (":file" if url.transport == "file" else ""),
            "GIT_TERMINAL_PROMPT": "0",
            "GIT_ASKPASS": "false",
            "GIT_OPTIONAL_LOCKS": "0",
            "GIT_LFS_SKIP_SMUDGE": "1",
            **(environment or {}),
        }

    @property
    def cancel(self) -> threading.Event:
        """The event that cancels every command."""
        return self._cancel

    def report(self, text: str, percent: int | None = None) -> None:
        """Report the progress."""
        if self._progress is not None:
            self._progress(text, percent)

    def check_host(self, url: str) -> None:
        """Refuse a repository or LFS server on a host that the policy does not allow.

        Raises:
            SourceError: the host is not allowed, or the URL is invalid.
        """
        pinned = self._judged(url)
        parsed = parse_git_url(url)
        if parsed.transport == "ssh":
            name, _, address = pinned[1].partition("=") if pinned else (parsed.host, "", "")
            self._ssh_addresses[name] = address
        elif pinned is not None:
            self._pins.append(pinned)

    @property
    def is_limited(self) -> bool:
        """Return whether some hosts are not allowed."""
        return self._allow_host is not None

    def addresses_of(self, url: str) -> list[str]:
        """Return the allowed addresses of an HTTP URL's host; its name if any address is allowed.

        Raises:
            SourceError: the host is not allowed, or the URL is invalid.
        """
        pinned = self._judged(url)
        host = parse_git_url(url).host
        if pinned is None or ":" in host:
            return [host]
        resolve = pinned[1].split(":", 2)[2]  # HOST:PORT:ADDRESS,...
        return [address.strip("[]") for address in resolve.split(",")]

    def _judged(self, url: str) -> tuple[str, str] | None:
        host = parse_git_url(url).host
        if self._allow_host is not None and not self._allow_host(host):
            raise SourceError(
                f"Git sources on {host or 'this machine'} are not allowed here",
                hint="the server's administrator can allow it: serve "
                + (f"--allow-source-host {host}" if host else "--allow-private-sources"),
            )
        return self._pin(url) if self._pin is not None else None

    def with_settings(
        self, config: Sequence[tuple[str, str]], environment: Mapping[str, str]
    ) -> GitCommand:
        """Return a copy with more settings, which override the present ones."""
        door = GitCommand(
            self.url,
            secrets=self._secrets,
            cancel=self._cancel,
            progress=self._progress,
            allow_host=self._allow_host,
            pin=self._pin,
            limits=self._limits,
            room=self._room,
        )
        door._config = [*self._config, *config]
        door._pins, door._ssh_addresses = self._pins, self._ssh_addresses
        door._environment = {**self._environment, **environment}
        return door

    @contextmanager
    def filling(self, folder: str) -> Iterator[None]:
        """Limit what the commands of the block, and of copies of this object, write to a folder.

        Raises:
            GitFailed: ``too_large``.
        """
        if self._room is None:
            yield
            return
        with self._room.filled(folder, self.url.text):
            yield

    def run(
        self,
        *arguments: str,
        folder: str = "/",
        timeout_s: float | None = None,
        silent_s: float | None = None,
        each_line: LineReader | None = None,
        text: str = "",
    ) -> str:
        """Run one git command to its end. Returns its output, undecodable bytes as surrogates.

        Args:
            arguments: arguments of ``git``.
            folder: the working folder. git never uses a repository above this folder.
            timeout_s: the most seconds that it may take.
            silent_s: the most seconds without output.
            each_line: takes the output instead; the returned string is then empty.
            text: the standard input.

        Raises:
            GitFailed: the command failed, took too long or was cancelled. None of its processes
                runs any more.
            SourceError: git is not installed.
        """
        if self._cancel.is_set():
            raise self._cancelled()
        process = self._start(arguments, folder, text)
        call = GitProcess(each_line, self._progress, self._limits.output_bytes, self._room)
        try:
            reason = call.follow(process, self._cancel, timeout_s, silent_s, folder)
        finally:
            end_process(process)
        if reason == "cancelled":
            raise self._cancelled()
        if reason == _TOO_LARGE:
            raise too_large(self.url.text)
        if reason == _FULL:
            raise GitFailed(
                f"there is no space left on the disk for {self.url.text}",
                kind="disk",
                hint=f"make room: a fetch leaves {_LEAST_FREE >> 20} MiB of it free",
            )
        if reason:
            raise GitFailed(
                f"fetching {self.url.text} was given up: {reason}",
                kind="stalled",
                hint="check the network, or give the fetch more time",
            )
        if call.too_long:
            raise GitFailed(
                f"{self.url.text} answers with more than is allowed here",
                kind="refused",
                hint="the server reads 32 MiB of an answer",
            )
        if self._was_too_large(process, call):
            raise too_large(self.url.text)
        if process.returncode and not call.stopped.is_set():
            raise explain(
                call.errors(), url=self.url.text, host=self.url.host, secrets=self._secrets
            )
        return call.output()

    def _cancelled(self) -> GitFailed:
        return GitFailed(f"fetching {self.url.text} was cancelled", kind="cancelled")

    def _start(self, arguments: Sequence[str], folder: str, text: str) -> Any:
        # GitPython searches for git on import, and its error message is a page long.
        os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")
        from git import Git
        from git.exc import GitCommandNotFound

        environment = {
            **self._environment,
            **self._numbered_config(),
            **self._allowed_by_ssh(),
            "GIT_CEILING_DIRECTORIES": os.path.dirname(os.path.realpath(folder)),
        }
        # GitPython adds variables but removes none: in a hook, GIT_DIR is set.
        unset = [
            part
            for name in os.environ
            if name.startswith("GIT_") and not name.startswith(_KEPT) and name not in environment
            for part in ("-u", name)
        ]
        command = [*self._limits.command(), *(["env", *unset] if unset else [])]
        try:
            with tempfile.TemporaryFile() as given:
                given.write(text.encode())
                given.seek(0)
                return Git(folder).execute(
                    # Without -C, a deleted folder would mean the current one.
                    [*command, "git", "-C", folder, *arguments],
                    istream=given if text else None,
                    as_process=True,
                    env=environment,
                    universal_newlines=True,
                    errors="surrogateescape",
                    start_new_session=True,
                    umask=0o022,
                )
        except GitCommandNotFound as error:
            raise SourceError("git is not installed", hint="install git 2.36 or newer") from error
        except OSError as error:
            raise SourceError(f"git can't be started: {error}") from error

    def _was_too_large(self, process: Any, call: GitProcess) -> bool:
        """Return whether a file of git, or of its helpers, exceeded its limit."""
        if not self._limits.file_bytes or not process.returncode:
            return False
        signs = (
            f"died of signal {signal.SIGXFSZ:d}",
            os.strerror(errno.EFBIG),
            "fatal: Out of memory",
        )
        said = call.errors()
        errors = [one for one in said.splitlines() if one.startswith(("error:", "fatal:"))]
        return (
            process.returncode == -signal.SIGXFSZ
            or any(one in said for one in signs)
            or errors == [_KILLED_IN_SILENCE]
        )

    def _allowed_by_ssh(self) -> dict[str, str]:
        if self._allow_host is None:
            return {}
        allowed = (f"{host}={address}" for host, address in self._ssh_addresses.items())
        return {SSH_ADDRESSES: " ".join(allowed)}

    def _numbered_config(self) -> dict[str, str]:
        """Return settings in git's environment form, so that they are in no argv and no file."""
        try:
            first = int(os.environ.get("GIT_CONFIG_COUNT", "0"))
        except ValueError:
            first = 0
        config = [*self._config, *self._pins]
        numbered = {"GIT_CONFIG_COUNT": str(first + len(config))}
        for number, (key, value) in enumerate(config, first):
            numbered[f"GIT_CONFIG_KEY_{number}"] = key
            numbered[f"GIT_CONFIG_VALUE_{number}"] = value
        return numbered


_TICK_S = 0.05
_GRACE_S = 0.5
_HELD_S = 60.0
_KILLED_IN_SILENCE = "fatal: fetch-pack: invalid index-pack output"
_FULL = "full"
_TOO_LARGE = "too large"
_LEAST_FREE = 200 << 20  # of a server's disk, which others need, too
_LEAST_SHARE = 20  # on a small disk, a twentieth of it instead
_PIECE = 1 << 20  # characters of a line that are read at once


class GitProcess:
    """One running command: its output and its limits.

    Attributes:
        stopped: set when no more output is needed.
        too_long: the output exceeded its limit.

    Args:
        each_line: takes the output, a very long line in several pieces.
        progress: see `Progress`.
        most: the most characters of output; 0 for any number.
        room: limits the folder that is being filled; None sets no limit.
    """

    def __init__(
        self,
        each_line: LineReader | None,
        progress: Progress | None,
        most: int = 0,
        room: FetchRoom | None = None,
    ) -> None:
        self.stopped = threading.Event()
        self.too_long = False
        self._each_line = each_line
        self._most = most
        self._room = room
        self._taken = 0
        self._counting = threading.Lock()
        self._lines: list[str] = []
        self._errors = GitProgress(progress)
        self._heard_s = time.monotonic()

    def output(self) -> str:
        """The process's standard output, unless a `LineReader` took it."""
        return "".join(self._lines)

    def errors(self) -> str:
        """The process's standard error, without its progress."""
        return self._errors.text()

    def follow(
        self,
        process: Any,
        cancel: threading.Event,
        timeout_s: float | None,
        silent_s: float | None,
        folder: str,
    ) -> str:
        """Wait for the end of the process. Returns why it must be killed, or an empty string."""
        drained = threading.Event()
        threading.Thread(target=self._pump, args=(process, drained), daemon=True).start()
        started_s = time.monotonic()
        while process.poll() is None:
            drained.wait(_TICK_S)
            if drained.is_set():
                cancel.wait(0.001)  # it has closed its output, and ends soon
            if cancel.is_set():
                return "cancelled"
            if self.stopped.is_set():
                return ""
            now_s = time.monotonic()
            if timeout_s is not None and now_s - started_s > timeout_s:
                return f"it took more than {timeout_s:g} s"
            if silent_s is not None and now_s - self._heard_s > silent_s:
                return f"nothing came for {silent_s:g} s"
            if self._room is not None and self._room.is_over:
                return _TOO_LARGE
            if folder != "/" and _is_full(folder):  # nothing is written to /
                return _FULL
        return self._await_output(process, drained, cancel)

    @staticmethod
    def _await_output(process: Any, drained: threading.Event, cancel: threading.Event) -> str:
        """Wait until all output is read.

        A helper that stays (a connection kept open) may hold standard error open, so standard error
        gets only a moment. Standard output must end: a partial answer must never count as complete.
        """
        ended_s = time.monotonic()
        while not drained.wait(_TICK_S):
            if cancel.is_set():
                return "cancelled"
            waited_s = time.monotonic() - ended_s
            if process.proc.stdout.closed and waited_s > _GRACE_S:
                return ""
            if waited_s > _HELD_S:
                return "a program that git has started does not end"
        return ""

    def _pump(self, process: Any, drained: threading.Event) -> None:
        try:
            errors = threading.Thread(
                target=self._read, args=(process.proc.stderr, self._take_error), daemon=True
            )
            errors.start()
            self._read(process.proc.stdout, self._take_output)
            errors.join()
        finally:
            drained.set()

    @staticmethod
    def _read(stream: TextIO, take: Callable[[str], None]) -> None:
        """Read a stream to its end. GitPython's own reader takes lines of any length whole."""
        with stream, contextlib.suppress(ValueError, OSError):  # closed, since git was killed
            while line := stream.readline(_PIECE):
                take(line)

    def _take_output(self, line: str) -> None:
        self._heard_s = time.monotonic()
        if self._is_too_long(line):
            return
        if self._each_line is None:
            self._lines.append(line)
        elif not self.stopped.is_set() and not self._each_line(line):
            self.stopped.set()

    def _take_error(self, line: str) -> None:
        self._heard_s = time.monotonic()
        if not self._is_too_long(line):
            self._errors.take(line)

    def _is_too_long(self, line: str) -> bool:
        """Count output and errors, and stop git beyond the limit."""
        with self._counting:
            self._taken += len(line)
        if self._most and self._taken > self._most:
            self.too_long = True
            self.stopped.set()
        return self.too_long


def _is_full(folder: str) -> bool:
    try:
        disk = os.statvfs(folder)
    except OSError:
        return False
    least = min(_LEAST_FREE, disk.f_blocks * disk.f_frsize // _LEAST_SHARE)
    return disk.f_bavail * disk.f_frsize < least


def end_process(process: Any) -> None:
    """Kill all processes of the command, which leads its own process group."""
    process.poll()
    if process.returncode is not None:
        return
    for signal_number in (signal.SIGTERM, signal.SIGKILL):  # SIGTERM lets git remove its locks
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal_number)
        deadline_s = time.monotonic() + _GRACE_S
        while process.poll() is None and time.monotonic() < deadline_s:
            threading.Event().wait(0.01)
        if process.returncode is not None:
            return


_KEPT_LINES = 200
_LONGEST_ERROR = 4096
_PERCENT = re.compile(r"(?:remote: )?([A-Z][a-z]+ [a-z ]+):\s+(\d+)% ")


class GitProgress(RemoteProgress):
    """Reads the standard error of one command."""

    def __init__(self, watcher: Progress | None) -> None:
        super().__init__()
        self._watcher = watcher
        self._handle = self.new_message_handler()
        self._words: deque[str] = deque(maxlen=_KEPT_LINES)
        self._shown = ("", -1)

    def take(self, line: str) -> None:
        """Take one line, or one state of a line that git overwrites."""
        line = line[:_LONGEST_ERROR].rstrip()
        if not line:
            return
        if _PERCENT.match(line) is None:
            self._words.append(line)
        self._handle(line)
        # GitPython keeps all of them, and nobody reads them there.
        self.other_lines.clear()
        self.error_lines.clear()

    def text(self) -> str:
        """Return the last lines of standard error that are not progress."""
        return "\n".join(self._words)

    def update(
        self,
        op_code: int,
        cur_count: str | float,
        max_count: str | float | None = None,
        message: str = "",  # noqa: ARG002  (the signature is GitPython's)
    ) -> None:
        """Take progress that GitPython parsed. See `RemoteProgress.update`."""
        del op_code
        name = (self._cur_line or "").removeprefix("remote: ").partition(":")[0]
        self._show(name, int(100 * float(cur_count) / float(max_count)) if max_count else 0)

    def line_dropped(self, line: str) -> None:
        """Take a line that GitPython can't parse, such as "Updating files".

        See `RemoteProgress`.
        """
        found = _PERCENT.match(line)
        if found:
            self._show(found[1], int(found[2]))

    def _show(self, name: str, percent: int) -> None:
        shown = (name, percent)
        if self._watcher is not None and shown != self._shown:
            self._shown = shown
            self._watcher(name, percent)


_TIMEOUT_S = 60.0
_SHA256_LENGTH = 64
# Protocol version 2; older servers announce "filter" in the line of the first ref.
_FILTER_OFFERED = re.compile(rb"< fetch=(?:\S+ )*filter\b")


def filter_arguments(git: GitCommand, wanted: str, folder: str) -> tuple[str, ...]:
    """Return ``--filter=WANTED`` if the server supports partial clones, else an empty tuple.

    The filter can't simply be tried. With a server that ignores it, git starts another git that
    requests the missing objects, which does the same, and so on without end. Servers that speak
    only the first version of the protocol are not trusted: some of them omit too many objects,
    with the same effect.

    Args:
        git: runs git for the repository's URL.
        wanted: ``tree:0``, ``blob:none``.
        folder: folder for a temporary file.

    Raises:
        GitFailed: the server does not answer, or refuses.
    """
    trace = os.path.join(os.path.abspath(folder), "capabilities")
    traced = git.with_settings([], {"GIT_TRACE_PACKET": trace})
    try:
        traced.run("ls-remote", "--", git.url.text, "HEAD", timeout_s=_TIMEOUT_S)
        with open(trace, "rb") as file:
            offered = any(_FILTER_OFFERED.search(line) for line in file)
    except FileNotFoundError:  # a plain web server sends no packets
        return ()
    finally:
        if os.path.exists(trace):
            os.unlink(trace)
    return (f"--filter={wanted}",) if offered else ()


def format_argument(sha: str) -> str:
    """Return the object format of a full SHA, as an argument of ``git init``."""
    return f"--object-format={'sha256' if len(sha) == _SHA256_LENGTH else 'sha1'}"


def fetch_history(
    git: GitCommand,
    folder: str,
    commits: tuple[str, ...],
    *,
    filters: tuple[str, ...],
    depth: int,
    timeout_s: float,
) -> None:
    """Fetch commits into a bare repository, in a way that the server supports.

    From a server that serves no commit by SHA, or no partial history, everything that its
    refs point to is fetched.

    Args:
        git: runs git.
        folder: the repository.
        commits: full SHAs.
        filters: see `filter_arguments`.
        depth: commits of history; 0 for the whole history.
        timeout_s: the most seconds of one try.

    Raises:
        GitFailed: see `GitCommand.run`.
    """
    common = ("fetch", "--quiet", "--no-tags", *filters)
    shallow = (f"--depth={depth}",) if depth else ()
    try:
        git.run(*common, *shallow, "--", git.url.text, *commits, folder=folder, timeout_s=timeout_s)
    except GitFailed as failed:
        if failed.kind in ("auth", "network", "cancelled", "refused", "disk", "too_large"):
            raise
        half = ("--unshallow",) if os.path.exists(os.path.join(folder, "shallow")) else ()
        everything = "+refs/*:refs/buildrunner/*"
        git.run(*common, *half, "--", git.url.text, everything, folder=folder, timeout_s=timeout_s)
