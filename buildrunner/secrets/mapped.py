"""Secrets whose values the user has at hand: in an environment variable or in a file.

A *mapping* says which secret is where: ``NAME -> env:VARIABLE`` or ``NAME -> file:PATH``. NAME is
the version name as the config has it; or shorter: without ``/versions/...``, or the secret's id
alone; or the variable that the step gets it in. The most exact name wins. Ciphertexts of KMS are
not decrypted here: only the variable's name can map them.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence

from buildrunner.errors import SecretError, UsageError
from buildrunner.plan.build_plan import SecretReference
from buildrunner.secrets.provider import SECRET_LIMIT, as_text, subject_of
from buildrunner.secrets.secret_name import names_of


class MappedSecrets:
    """`NamedSecrets` of a mapping.

    Args:
        mapping: secret name -> ``env:VARIABLE`` or ``file:PATH``.
        environ: where ``env:`` looks.
    """

    def __init__(self, mapping: Mapping[str, str], environ: Mapping[str, str]) -> None:
        self._mapping = mapping
        self._environ = environ

    def find(
        self, reference: SecretReference, misses: list[str], names: Sequence[str] | None = None
    ) -> str | None:
        """See `NamedSecrets.find`."""
        for name in names_of(reference) if names is None else names:
            if name in self._mapping:
                return self._read(reference, self._mapping[name])
        misses.append("no --secret and no [secrets] setting names it")
        return None

    def _read(self, reference: SecretReference, source: str) -> str:
        kind, _, place = source.partition(":")
        return SOURCES[kind](reference, place, self._environ)


def parse_mapping(entries: Mapping[str, str]) -> dict[str, str]:
    """Check ``NAME=env:X|file:Y`` of ``--secret``; paths become absolute.

    Raises:
        UsageError: a source is of no known kind.
    """
    result = {}
    for name, source in entries.items():
        kind, colon, place = source.partition(":")
        if not colon or not place or kind not in SOURCES:
            raise UsageError(
                f"--secret {name}=... must say where the value is: env:VARIABLE or file:PATH",
                hint="never the value itself: command lines can be read by every user",
            )
        if kind == "file":
            place = os.path.abspath(os.path.expanduser(place))
        result[name] = f"{kind}:{place}"
    return result


def _from_environment(reference: SecretReference, variable: str, environ: Mapping[str, str]) -> str:
    subject = f"{subject_of(reference)} comes from the environment variable {variable}, which"
    if variable not in environ:
        raise SecretError(f"{subject} is not set", hint=f"export {variable} before the build")
    return as_text(environ[variable].encode("utf-8", "surrogateescape"), subject)


def _from_file(reference: SecretReference, path: str, _environ: Mapping[str, str]) -> str:
    subject = f"{subject_of(reference)} comes from {path}, which"
    try:
        with open(path, "rb") as file:
            value = file.read(SECRET_LIMIT + 1)
    except OSError as error:
        raise SecretError(f"{subject} can't be read: {error.strerror}") from error
    return as_text(value, subject)


SOURCES: dict[str, Callable[[SecretReference, str, Mapping[str, str]], str]] = {
    "env": _from_environment,
    "file": _from_file,
}
