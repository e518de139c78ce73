"""The door to git: GitPython starts it, with an environment that leaves nothing to chance."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

from buildrunner.errors import SourceError
from buildrunner.sources.git_errors import GitFailed, explain
from buildrunner.sources.git_process import GitProcess, end_process
from buildrunner.sources.git_url import parse_git_url

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from buildrunner.sources.git_url import GitUrl

Progress = Callable[[str, "int | None"], None]
"""Called with what git is doing and how much of it is done, in percent (0: unknown); or with a
sentence for the log and None."""

_KEPT = ("GIT_CONFIG_", "GIT_SSL_", "GIT_PROXY_SSL_", "GIT_HTTP_", "GIT_PYTHON_", "GIT_EXEC_PATH")

# A repository is data: nothing in it, and nothing meant for interactive work, may run here.
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
    # A server that sends less than this for so long is gone.
    "http.lowSpeedLimit": "1000",
    "http.lowSpeedTime": "60",
    "protocol.allow": "never",
    "protocol.https.allow": "always",
    "protocol.http.allow": "always",
    "protocol.ssh.allow": "always",
    "protocol.git.allow": "always",
    # What could harm us is refused; what is only untidy (and common in old repositories) is not.
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


class LineReader(Protocol):
    """Reads git's output line by line, in a thread of its own; false stops git."""

    def __call__(self, line: str) -> bool:
        """Take one line, its newline included."""
        ...


class GitCommand:
    """Runs git on behalf of one repository. May be used by one thread at a time.

    Args:
        url: the repository, for messages and for the protocols that are allowed.
        environment: added to the environment of every command (see git_credentials.py).
        config: Git settings that win over the user's own.
        secrets: what must never be in a message.
        cancel: kills the running command within a second when set.
        progress: see `Progress`.
        allow_host: says whether a host may be talked to (empty: this machine's files); None: all.
        pin: the ``http.curloptResolve`` of an allowed URL, empty for none (see `SourceGate`).
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
        pin: Callable[[str], str] | None = None,
    ) -> None:
        self.url = url
        self._allow_host = allow_host
        self._pin = pin
        self._secrets = secrets
        self._cancel = cancel or threading.Event()
        self._progress = progress
        self._config = [
            *_CONFIG.items(),
            ("checkout.workers", str(len(os.sched_getaffinity(0)))),
            ("protocol.file.allow", "always" if url.transport == "file" else "never"),
            # A host that is allowed must not send us to one that is not.
            *([("http.followRedirects", "false")] if allow_host is not None else []),
            *config,
        ]
        self._environment = {
            "GIT_TERMINAL_PROMPT": "0",
            "GIT_ASKPASS": "false",
            "GIT_OPTIONAL_LOCKS": "0",
            "GIT_LFS_SKIP_SMUDGE": "1",
            **(environment or {}),
        }

    @property
    def cancel(self) -> threading.Event:
        """The event that stops everything."""
        return self._cancel

    def report(self, text: str, percent: int | None = None) -> None:
        """Tell whoever watches what goes on."""
        if self._progress is not None:
            self._progress(text, percent)

    def check_host(self, url: str) -> None:
        """Refuse a repository or LFS server on a host that policy does not allow.

        Raises:
            SourceError: it is not allowed, or the URL is none.
        """
        host = parse_git_url(url).host
        if self._allow_host is not None and not self._allow_host(host):
            raise SourceError(
                f"Git sources on {host or 'this machine'} are not allowed here",
                hint="ask whoever runs this server",
            )
        pinned = self._pin(parse_git_url(url).text) if self._pin is not None else ""
        if pinned:
            self._config.append(("http.curloptResolve", pinned))

    def with_settings(
        self, config: Sequence[tuple[str, str]], environment: Mapping[str, str]
    ) -> GitCommand:
        """The same door with more settings, which win over the present ones."""
        door = GitCommand(
            self.url,
            secrets=self._secrets,
            cancel=self._cancel,
            progress=self._progress,
            allow_host=self._allow_host,
            pin=self._pin,
        )
        door._config = [*self._config, *config]
        door._environment = {**self._environment, **environment}
        return door

    def run(
        self,
        *arguments: str,
        folder: str = "/",
        timeout_s: float | None = None,
        silent_s: float | None = None,
        each_line: LineReader | None = None,
    ) -> str:
        """Run one git command to its end; its output, undecodable bytes as surrogates.

        Args:
            arguments: what follows ``git``.
            folder: where it runs. No repository above this folder is ever taken for it.
            timeout_s: the longest it may take.
            silent_s: the longest it may say nothing.
            each_line: takes the output instead, which then is empty.

        Raises:
            GitFailed: it failed, took too long or was cancelled; nothing of it runs any more.
            SourceError: git is not installed.
        """
        if self._cancel.is_set():
            raise self._cancelled()
        process = self._start(arguments, folder)
        call = GitProcess(each_line, self._progress)
        try:
            reason = call.follow(process, self._cancel, timeout_s, silent_s)
        finally:
            end_process(process)
        if reason == "cancelled":
            raise self._cancelled()
        if reason:
            raise GitFailed(
                f"fetching {self.url.text} was given up: {reason}",
                kind="stalled",
                hint="check the network, or give the fetch more time",
            )
        if process.returncode and not call.stopped.is_set():
            raise explain(
                call.errors(), url=self.url.text, host=self.url.host, secrets=self._secrets
            )
        return call.output()

    def _cancelled(self) -> GitFailed:
        return GitFailed(f"fetching {self.url.text} was cancelled", kind="cancelled")

    def _start(self, arguments: Sequence[str], folder: str) -> Any:
        # GitPython looks for git when it is imported: what it says then is a page long.
        os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")
        from git import Git
        from git.exc import GitCommandNotFound

        environment = {
            **self._environment,
            **self._numbered_config(),
            "GIT_CEILING_DIRECTORIES": os.path.dirname(os.path.realpath(folder)),
        }
        # GitPython adds variables but takes none away: GIT_DIR is set when a hook runs us.
        unset = [
            part
            for name in os.environ
            if name.startswith("GIT_") and not name.startswith(_KEPT) and name not in environment
            for part in ("-u", name)
        ]
        command = ["env", *unset] if unset else []
        try:
            return Git(folder).execute(
                # Without -C, a folder that is gone would mean the current one.
                [*command, "git", "-C", folder, *arguments],
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

    def _numbered_config(self) -> dict[str, str]:
        """Settings in git's own environment form: never in argv, never in a file."""
        try:
            first = int(os.environ.get("GIT_CONFIG_COUNT", "0"))
        except ValueError:
            first = 0
        numbered = {"GIT_CONFIG_COUNT": str(first + len(self._config))}
        for number, (key, value) in enumerate(self._config, first):
            numbered[f"GIT_CONFIG_KEY_{number}"] = key
            numbered[f"GIT_CONFIG_VALUE_{number}"] = value
        return numbered
