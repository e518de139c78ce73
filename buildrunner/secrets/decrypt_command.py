"""Ciphertexts of KMS, decrypted by a command of the user's choice."""

from __future__ import annotations

from typing import TYPE_CHECKING

from buildrunner.errors import SecretError
from buildrunner.secrets.provider import as_text, ciphertext_of, subject_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from buildrunner.plan.build_plan import SecretReference

LIMIT_S = 60.0
KEY_PLACE = "{key}"


class CommandSecrets:
    """A `SecretProvider` that runs a command: ciphertext on its stdin, value on its stdout.

    Args:
        command: program and arguments, run without a shell; ``{key}`` in an argument becomes the
            key's name.
        limit_s: how long it may take.
    """

    def __init__(self, command: Sequence[str], limit_s: float = LIMIT_S) -> None:
        self._command = command
        self._limit_s = limit_s

    def find(self, reference: SecretReference, misses: list[str]) -> str | None:  # noqa: ARG002
        """See `SecretProvider.find`."""
        import subprocess

        if reference.kind != "kms":
            return None
        argv = [argument.replace(KEY_PLACE, reference.name) for argument in self._command]
        subject = f"the decrypt command {argv[0]}, for {subject_of(reference)},"
        try:
            done = subprocess.run(
                argv,
                input=ciphertext_of(reference),
                capture_output=True,
                timeout=self._limit_s,
                check=False,
            )
        except subprocess.TimeoutExpired:  # it holds what the command wrote so far: not chained
            raise SecretError(f"{subject} took longer than {self._limit_s:g}s") from None
        except OSError as error:
            raise SecretError(f"{subject} can't be run: {error.strerror}") from error
        if done.returncode:
            # What it says may quote the value once it has begun to write one.
            said = "" if done.stdout else _last_line(done.stderr)
            raise SecretError(f"{subject} failed with exit code {done.returncode}{said}")
        return as_text(done.stdout, f"what {subject} gives")


def _last_line(output: bytes) -> str:
    lines = output.decode("utf-8", "replace").split("\n")
    last = next((line.strip() for line in reversed(lines) if line.strip()), "")
    shown = "".join(char for char in last if char.isprintable())[:200]
    return f": {shown}" if shown else ""
