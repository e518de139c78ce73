"""Secrets whose values the user has at hand: in an environment variable or in a file.

A *mapping* says which secret is where: ``NAME -> env:VARIABLE`` or ``NAME -> file:PATH``. NAME is
the version name as the config has it; or shorter: without ``/versions/...``, or the secret's id
alone; or the variable that the step gets it in. The most exact name wins. Ciphertexts of KMS are
never decrypted: only the variable's name can map them.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from buildrunner.errors import SecretError, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from buildrunner.plan.build_plan import SecretReference

_MAX_BYTES = 65536  # Source: size limit of a secret version's payload in Secret Manager


class MappedSecrets:
    """A `SecretResolver` over a mapping.

    Args:
        mapping: secret name -> ``env:VARIABLE`` or ``file:PATH``.
        environ: where ``env:`` looks.
    """

    def __init__(self, mapping: Mapping[str, str], environ: Mapping[str, str]) -> None:
        self._mapping = mapping
        self._environ = environ

    def resolve(self, reference: SecretReference) -> str:
        """See `SecretResolver.resolve`."""
        for name in names_of(reference):
            if name in self._mapping:
                return self._read(reference, self._mapping[name])
        raise SecretError(
            f'the secret "{reference.name}" for ${reference.env} is not mapped to anything here',
            hint=f"add --secret {_suggested(reference)}=env:VARIABLE (or =file:PATH), or an entry "
            "below [secrets] in .buildrunner.toml",
        )

    def _read(self, reference: SecretReference, source: str) -> str:
        kind, _, place = source.partition(":")
        return PROVIDERS[kind](reference, place, self._environ)


def names_of(reference: SecretReference) -> tuple[str, ...]:
    """The names under which a mapping may know a secret, most exact first."""
    if reference.kind == "kms":
        # One key encrypts many values: its name says nothing about which.
        return (reference.env,)
    secret = reference.name.partition("/versions/")[0]
    return (reference.name, secret, secret.rpartition("/")[2], reference.env)


def parse_mapping(entries: Mapping[str, str]) -> dict[str, str]:
    """Check ``NAME=env:X|file:Y`` of ``--secret``; paths become absolute.

    Raises:
        UsageError: a source is of no known kind.
    """
    result = {}
    for name, source in entries.items():
        kind, colon, place = source.partition(":")
        if not colon or not place or kind not in PROVIDERS:
            raise UsageError(
                f"--secret {name}=... must say where the value is: env:VARIABLE or file:PATH",
                hint="never the value itself: command lines can be read by every user",
            )
        if kind == "file":
            place = os.path.abspath(os.path.expanduser(place))
        result[name] = f"{kind}:{place}"
    return result


def _from_environment(reference: SecretReference, variable: str, environ: Mapping[str, str]) -> str:
    if variable not in environ:
        raise SecretError(
            f'the secret "{reference.name}" for ${reference.env} comes from the environment '
            f"variable {variable}, which is not set",
            hint=f"export {variable} before the build",
        )
    return environ[variable]


def _from_file(reference: SecretReference, path: str, _environ: Mapping[str, str]) -> str:
    subject = f'the secret "{reference.name}" for ${reference.env} comes from {path}'
    try:
        with open(path, "rb") as file:
            value = file.read(_MAX_BYTES + 1)
    except OSError as error:
        raise SecretError(f"{subject}, which can't be read: {error.strerror}") from error
    if len(value) > _MAX_BYTES:
        raise SecretError(f"{subject}, which is larger than {_MAX_BYTES} bytes")
    try:
        return value.decode()
    except UnicodeDecodeError:
        # The error quotes the value: it must not be chained into a message or a log.
        raise SecretError(f"{subject}, which is not UTF-8 text") from None


PROVIDERS: dict[str, Callable[[SecretReference, str, Mapping[str, str]], str]] = {
    "env": _from_environment,
    "file": _from_file,
}


def _suggested(reference: SecretReference) -> str:
    return reference.env if reference.kind == "kms" else names_of(reference)[2]
