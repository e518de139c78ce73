"""Sources of secret values, and their order.

A *mapping* of the user names the source of a secret: ``NAME -> env:VARIABLE`` or ``NAME ->
file:PATH``. NAME is the version name in the config, or that name without ``/versions/...``, or the
secret's id alone, or the name of the step's variable. The most specific name wins. For a ciphertext
of KMS, only the variable's name can be mapped.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from buildrunner.errors import SecretError, SecretNotFound, UsageError
from buildrunner.plan.build_plan import BuildPlan, SecretReference
from buildrunner.secrets.secret_name import names_of, suggested_name

SECRET_LIMIT = 65536
"""The most bytes of a value. Source: size limit of a secret version's payload in Secret Manager."""


class SecretProvider(Protocol):
    """One source of secret values. Used by one thread at a time."""

    def find(self, reference: SecretReference, misses: list[str]) -> str | None:
        """Return the value, unmodified; or None, with the reason added to ``misses``.

        A reason is a clause such as ``no --secret names it``. A provider resolves ``latest``
        once, so it is fixed for a build.

        Raises:
            SecretError: the secret is known here, and can't be read. No other provider is tried
                then: its value would not be the one that the user means.
        """
        ...


class NamedSecrets(Protocol):
    """A `SecretProvider` on this machine, which may have a secret under several names."""

    def find(
        self, reference: SecretReference, misses: list[str], names: Sequence[str] | None = None
    ) -> str | None:
        """See `SecretProvider.find`.

        Args:
            reference: the secret.
            misses: takes the reason.
            names: the names of `names_of` to use, the most specific first; None for all.
        """
        ...


class DisabledSecrets:
    """A `SecretProvider` that the user has not turned on. It only reports that.

    Args:
        reason: a clause.
    """

    def __init__(self, reason: str) -> None:
        self._reason = reason

    def find(self, reference: SecretReference, misses: list[str]) -> str | None:  # noqa: ARG002
        """See `SecretProvider.find`."""
        misses.append(self._reason)
        return None


class ProviderChain:
    """A `SecretResolver` of the user's own builds: the first provider with the secret counts.

    Args:
        named: the providers that look up a secret by its names.
        others: the providers after them, which apply the user's own rights.
    """

    def __init__(
        self, named: Sequence[NamedSecrets], others: Sequence[SecretProvider] = ()
    ) -> None:
        self._named = named
        self._others = others

    def resolve(self, reference: SecretReference, plan: BuildPlan | None = None) -> str:  # noqa: ARG002
        """See `SecretResolver.resolve`."""
        misses: list[str] = []
        value = self.find(reference, misses, names_of(reference), with_others=True)
        if value is not None:
            return value
        name = suggested_name(reference)
        raise SecretNotFound(
            f"{subject_of(reference)} was not found: {'; '.join(misses)}",
            hint=f"run `buildrunner secrets set {name}`, or say where it is: "
            f"--secret {name}=env:VARIABLE or --secret {name}=file:PATH",
        )

    def find(
        self,
        reference: SecretReference,
        misses: list[str],
        names: Sequence[str],
        *,
        with_others: bool,
    ) -> str | None:
        """Return the value; None, with reasons in ``misses``, if no provider has the secret.

        Args:
            reference: the secret.
            misses: takes reasons.
            names: the names of `names_of` to use.
            with_others: also try the providers that don't use names of this machine.

        Raises:
            SecretError: a provider has the secret, and can't read it.
        """
        for named in self._named:
            value = named.find(reference, misses, names)
            if value is not None:
                return _without_zero(value, reference)
        for other in self._others if with_others else ():
            value = other.find(reference, misses)
            if value is not None:
                return _without_zero(value, reference)
        return None


def _without_zero(value: str, reference: SecretReference) -> str:
    if "\0" in value:
        raise SecretError(
            f"{subject_of(reference)} holds a zero byte, which no environment variable can"
        )
    return value


def subject_of(reference: SecretReference) -> str:
    """Return a secret's name for messages: its own name, and that of its variable if it has one."""
    kind = "ciphertext of the key" if reference.kind == "kms" else "secret"
    subject = f'the {kind} "{reference.name}"'
    return f"{subject} for ${reference.env}" if reference.env else subject


def as_text(value: bytes, subject: str) -> str:
    """Return a value's bytes as text.

    Args:
        value: the bytes.
        subject: the secret's name, for the message.

    Raises:
        SecretError: the value is too large, or not UTF-8.
    """
    if len(value) > SECRET_LIMIT:
        raise SecretError(f"{subject} is larger than {SECRET_LIMIT} bytes")
    try:
        return value.decode()
    except UnicodeDecodeError:
        # The error quotes the value: it must not be chained into a message or a crash report.
        raise SecretError(f"{subject} is not UTF-8 text") from None


def ciphertext_of(reference: SecretReference) -> bytes:
    """Return the bytes of a reference's ciphertext.

    Raises:
        SecretError: the ciphertext is not base64.
    """
    import base64
    import binascii

    try:
        return base64.b64decode(reference.ciphertext, validate=True)
    except (binascii.Error, ValueError) as error:
        raise SecretError(f"{subject_of(reference)} is not base64") from error


class MappedSecrets:
    """`NamedSecrets` of a mapping.

    Args:
        mapping: secret name -> ``env:VARIABLE`` or ``file:PATH``.
        environ: the variables of ``env:``.
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
        UsageError: the kind of a source is unknown.
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
