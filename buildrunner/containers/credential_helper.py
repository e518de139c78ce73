"""Asks a credential helper (``docker-credential-NAME``) for as long as somebody waits for it."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from docker.credentials import Store
from docker.credentials.errors import process_store_error

from buildrunner.containers.http_connection import Stopped
from buildrunner.errors import CredentialsError

if TYPE_CHECKING:
    import threading

_LIMIT_S = 60.0
_LOOK_S = 0.1


class PatientStore(Store):
    """docker-py's helper, which docker-py itself would wait for without end.

    Args:
        program: the helper's name.
        cancel: ends the helper when set, with `Stopped`.
    """

    def __init__(self, program: str, cancel: threading.Event | None) -> None:
        super().__init__(program)
        self._cancel = cancel

    def _execute(self, subcmd: str, data_input: bytes) -> bytes:
        """See `docker.credentials.Store`: what the helper prints."""
        argv = [str(self.exe), subcmd]
        with subprocess.Popen(
            argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
        ) as process:
            try:
                output = self._output(process, data_input)
            except BaseException:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                raise
        if process.returncode:
            error = subprocess.CalledProcessError(process.returncode, argv, output)
            raise process_store_error(error, self.program)
        return output

    def _output(self, process: Any, data_input: bytes) -> bytes:
        until = time.monotonic() + _LIMIT_S
        waiting: bytes | None = data_input
        while True:
            try:
                output: bytes = process.communicate(waiting, timeout=_LOOK_S)[0]
            except subprocess.TimeoutExpired:
                waiting = None  # it is on its way
            else:
                return output
            if self._cancel is not None and self._cancel.is_set():
                raise Stopped
            if time.monotonic() > until:
                raise CredentialsError(
                    f"the credential helper {self.program} did not answer in {_LIMIT_S:g} s",
                    hint=f"try it by hand: {self.program} get",
                )
