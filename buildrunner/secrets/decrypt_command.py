"""Ciphertexts of KMS, decrypted by a command of the user's choice."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import threading
from collections.abc import Sequence
from contextlib import suppress
from typing import BinaryIO

from buildrunner.errors import SecretError
from buildrunner.plan.build_plan import SecretReference
from buildrunner.secrets.provider import SECRET_LIMIT, as_text, ciphertext_of, subject_of

LIMIT_S = 60.0
_GRACE_S = 1.0
_PIECE_BYTES = 4096
KEY_PLACE = "{key}"

# The name, from the config, becomes an argument of the user's program.
_PART = r"[A-Za-z0-9_](?:[A-Za-z0-9_.:-]*[A-Za-z0-9_])?"
_KEY_NAME = re.compile(
    rf"projects/{_PART}/locations/{_PART}/keyRings/{_PART}/cryptoKeys/{_PART}"
    rf"(?:/cryptoKeyVersions/{_PART})?"
)


class CommandSecrets:
    """A `SecretProvider` that runs a command: ciphertext on its stdin, value on its stdout.

    Args:
        command: program and arguments, run without a shell; ``{key}`` in an argument becomes the
            key's name.
        limit_s: the most seconds that it may take.
    """

    def __init__(self, command: Sequence[str], limit_s: float = LIMIT_S) -> None:
        self._command = command
        self._limit_s = limit_s

    def find(self, reference: SecretReference, misses: list[str]) -> str | None:  # noqa: ARG002
        """See `SecretProvider.find`."""
        if reference.kind != "kms":
            return None
        if not _KEY_NAME.fullmatch(reference.name):
            raise SecretError(
                f'"{reference.name}" is not the name of a KMS key',
                hint="write projects/P/locations/L/keyRings/R/cryptoKeys/K",
            )
        argv = [argument.replace(KEY_PLACE, reference.name) for argument in self._command]
        subject = f"the decrypt command {argv[0]}, for {subject_of(reference)},"
        call = _Call(argv, subject)
        code = call.run(ciphertext_of(reference), self._limit_s)
        if code:
            # After the first byte of the value, the message on stderr may quote the value.
            said = "" if call.value else _last_line(bytes(call.words))
            raise SecretError(f"{subject} failed with exit code {code}{said}")
        return as_text(bytes(call.value), f"what {subject} gives")


class _Call:
    """One run of the command. It keeps a limited part of the command's output."""

    def __init__(self, argv: Sequence[str], subject: str) -> None:
        self._argv = argv
        self._subject = subject
        self._ended = threading.Event()
        self.value = bytearray()
        self.words = bytearray()

    def run(self, ciphertext: bytes, limit_s: float) -> int:
        """Run the command.

        Returns its exit code. Kills all its processes if it does not end by itself.

        Raises:
            SecretError: the command can't be run, takes too long or writes too much.
        """
        try:
            process = subprocess.Popen(
                self._argv,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                start_new_session=True,
            )
        except OSError as error:
            raise SecretError(f"{self._subject} can't be run: {error.strerror}") from error
        try:
            threads = [
                threading.Thread(target=work, args=arguments, daemon=True)
                for work, *arguments in (
                    (_write, process.stdin, ciphertext),
                    (self._take_words, process.stderr),
                    (self._take_value, process.stdout),
                )
            ]
            for thread in threads:
                thread.start()
            if not self._ended.wait(limit_s):
                raise SecretError(f"{self._subject} took longer than {limit_s:g}s")
            if len(self.value) > SECRET_LIMIT:
                raise SecretError(f"what {self._subject} gives is larger than {SECRET_LIMIT} bytes")
            return self._code(process, threads[1], limit_s)
        finally:
            if process.returncode is None:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()

    def _code(
        self, process: subprocess.Popen[bytes], words: threading.Thread, limit_s: float
    ) -> int:
        try:
            code = process.wait(limit_s)
        except subprocess.TimeoutExpired:
            raise SecretError(f"{self._subject} took longer than {limit_s:g}s") from None
        words.join(_GRACE_S)
        return code

    def _take_value(self, output: BinaryIO) -> None:
        with output:
            while len(self.value) <= SECRET_LIMIT and (data := output.read(_PIECE_BYTES)):
                self.value += data
            self._ended.set()

    def _take_words(self, output: BinaryIO) -> None:
        with output:
            while data := output.read(_PIECE_BYTES):
                self.words += data
                del self.words[:-_PIECE_BYTES]


def _write(place: BinaryIO, data: bytes) -> None:
    with suppress(OSError), place:  # the command need not read its input
        place.write(data)


def _last_line(output: bytes) -> str:
    lines = output.decode("utf-8", "replace").split("\n")
    last = next((line.strip() for line in reversed(lines) if line.strip()), "")
    shown = "".join(char for char in last if char.isprintable())[:200]
    return f": {shown}" if shown else ""
