"""Every error buildrunner raises on purpose, in one tree.

    BuildrunnerError
    ├── ConfigError            the config or a flag is wrong; carries every Problem found
    ├── UsageError             the command line requests something impossible
    ├── SourceError            the source can't be fetched or packed
    ├── SecretError            a secret can't be resolved
    │   └── SecretNotFound     the secret does not exist, or is not allowed
    ├── PackageError           a package can't be published
    ├── StorageError           an object in a bucket can't be read or written
    ├── UploadError            a file of ``artifacts.objects`` can't be uploaded
    ├── AttestationError       provenance can't be made, signed or attached
    ├── IdentityError          an identity token can't be made
    │   └── IdentityRefused    the build may not have this token
    ├── VerificationError      an artifact is not what its provenance or a policy says
    ├── RegistryError          a registry refused or broke
    ├── EngineError            the container engine refused or broke
    │   ├── EngineUnavailable  no engine answers
    │   ├── ContainerNameTaken   another container has that name
    │   ├── ContainerStartError  a container was created and can't start
    │   ├── GateRefused        a pre-started container did not run its program
    │   ├── CredentialsError   the Docker config or a credential helper is broken
    │   ├── ImagePullError     an image can't be pulled
    │   └── ImagePushError     an image can't be pushed
    ├── KubernetesError        a cluster refused or does not answer
    ├── ServerError            a buildrunner server refused or broke
    │   ├── ServerUnavailable  it does not answer
    │   └── AuthError          the token is unknown, or has no right to do this
    └── StoreError             the store of builds refused or broke
        ├── StoreUnavailable   it does not answer now
        ├── InvalidRecord      a record breaks the rules for its kind
        ├── NotFound
        ├── Conflict
        ├── LeaseLost
        ├── QuotaExceeded      a project has reached a limit
        ├── FilterError        the filter of a list is wrong
        └── PageTokenError     the page token of a list is invalid

A failing step is never an exception: it is a value (`StepOutcome`). The module that
calls a library translates its exceptions there with ``raise ... from``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from buildrunner.problem import Problem

EXIT_SUCCESS = 0
EXIT_BUILD_FAILED = 1
EXIT_BAD_CONFIG = 2
EXIT_INFRASTRUCTURE = 3
EXIT_TIMEOUT = 4
EXIT_INTERRUPTED = 130


class BuildrunnerError(Exception):
    """Base of all our errors. ``str(error)`` is one clear sentence for the user.

    Attributes:
        exit_code: exit code of a command that ends with this error.
        http_status: HTTP status of the API's answer.
        hint: advice in one sentence, or empty.
    """

    exit_code: ClassVar[int] = EXIT_INFRASTRUCTURE
    http_status: ClassVar[int] = 500

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


class ConfigError(BuildrunnerError):
    """The build config is invalid. ``problems`` holds all its problems, in file order."""

    exit_code = EXIT_BAD_CONFIG
    http_status = 400

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(problem.text() for problem in self.problems))


class UsageError(BuildrunnerError):
    """The command line requests something impossible."""

    exit_code = EXIT_BAD_CONFIG
    http_status = 400


class SourceError(BuildrunnerError):
    """The source can't be fetched, read or unpacked (FailureType ``FETCH_SOURCE_FAILED``)."""

    exit_code = EXIT_BUILD_FAILED


class SecretError(BuildrunnerError):
    """A secret can't be resolved. The message names the secret, never its value."""

    exit_code = EXIT_BUILD_FAILED


class SecretNotFound(SecretError):
    """The secret does not exist, or the caller may not read it. A retry does not help."""


class PackageError(BuildrunnerError):
    """A package of ``artifacts`` can't be published.

    Attributes:
        unauthorized: the repository refused our credentials (FailureType ``PUSH_NOT_AUTHORIZED``).
    """

    exit_code = EXIT_BUILD_FAILED

    def __init__(self, message: str, *, unauthorized: bool = False, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.unauthorized = unauthorized


class StorageError(BuildrunnerError):
    """An object in a bucket can't be read or written.

    Attributes:
        transient: another try may succeed (network, 5xx, rate limit).
        unauthorized: access is denied.
        missing: the object, its generation or the bucket does not exist.
        corrupt: the received bytes are not the stored ones.
        unreachable: no server has answered.
        retry_after_s: seconds to wait that the server requests; 0 if it requests no wait.
    """

    exit_code = EXIT_BUILD_FAILED

    def __init__(
        self,
        message: str,
        *,
        transient: bool = False,
        unauthorized: bool = False,
        missing: bool = False,
        corrupt: bool = False,
        unreachable: bool = False,
        retry_after_s: float = 0.0,
        hint: str = "",
    ) -> None:
        super().__init__(message, hint=hint)
        self.transient = transient
        self.unauthorized = unauthorized
        self.missing = missing
        self.corrupt = corrupt
        self.unreachable = unreachable
        self.retry_after_s = retry_after_s


class AttestationError(BuildrunnerError):
    """Provenance can't be made, signed, or attached to its subject."""

    exit_code = EXIT_BUILD_FAILED


class IdentityError(BuildrunnerError):
    """An identity token of a build can't be made."""


class IdentityRefused(IdentityError):
    """A build may not have the token that it requests."""

    http_status = 403


class VerificationError(BuildrunnerError):
    """An artifact is not what its provenance or a policy says."""

    exit_code = EXIT_BUILD_FAILED


class RegistryError(BuildrunnerError):
    """A registry refused a request, broke, or did not answer."""

    exit_code = EXIT_INFRASTRUCTURE


class UploadError(BuildrunnerError):
    """A file of ``artifacts.objects`` can't be uploaded.

    Attributes:
        unauthorized: access is denied (FailureType ``PUSH_NOT_AUTHORIZED``).
    """

    exit_code = EXIT_BUILD_FAILED

    def __init__(self, message: str, *, unauthorized: bool = False, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.unauthorized = unauthorized


class EngineError(BuildrunnerError):
    """The container engine refused a request or broke."""


class EngineUnavailable(EngineError):
    """No container engine answers."""

    http_status = 503


class ContainerNameTaken(EngineError):
    """A container can't be created: another one has that name, or is being created with it."""


class ContainerStartError(EngineError):
    """A container can't start, mostly because of the build's own settings.

    Attributes:
        container_code: the exit code of ``docker run``: 127 the program does not exist,
            126 it can't be executed, 125 anything else.
    """

    exit_code = EXIT_BUILD_FAILED

    def __init__(self, message: str, *, container_code: int = 125, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.container_code = container_code


class GateRefused(EngineError):
    """A pre-started container ended without running its program.

    Nothing of the step has run: start a new container without a gate.
    """


class CredentialsError(EngineError):
    """Registry credentials can't be read. The message holds no secret."""


class ImagePullError(EngineError):
    """An image can't be pulled.

    Attributes:
        transient: another try may succeed (network, 5xx, rate limit), as opposed to
            "no such image" or "access denied".
        unresolved: the name of the registry's host has no address, as on a machine without a
            network.
        retry_after_s: how long the registry asks to wait; 0 when it does not say.
    """

    exit_code = EXIT_BUILD_FAILED

    def __init__(
        self,
        message: str,
        *,
        transient: bool = False,
        unresolved: bool = False,
        retry_after_s: float = 0.0,
        hint: str = "",
    ) -> None:
        super().__init__(message, hint=hint)
        self.transient = transient
        self.unresolved = unresolved
        self.retry_after_s = retry_after_s


class ImagePushError(EngineError):
    """An image can't be pushed.

    Attributes:
        transient: another try may succeed.
        unauthorized: the registry refused our credentials (FailureType ``PUSH_NOT_AUTHORIZED``).
        retry_after_s: how long the registry asks to wait; 0 when it does not say.
    """

    exit_code = EXIT_BUILD_FAILED

    def __init__(
        self,
        message: str,
        *,
        transient: bool = False,
        unauthorized: bool = False,
        retry_after_s: float = 0.0,
        hint: str = "",
    ) -> None:
        super().__init__(message, hint=hint)
        self.transient = transient
        self.unauthorized = unauthorized
        self.retry_after_s = retry_after_s


class KubernetesError(BuildrunnerError):
    """A Kubernetes cluster refused a request, or does not answer.

    Attributes:
        reason: the cluster's own term (``Forbidden``, ``NotFound``), or ours: ``Quota``,
            ``NoNamespace``, ``Unavailable``. Empty if there is none.
    """

    http_status = 503

    def __init__(self, message: str, *, reason: str = "", hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.reason = reason


class ServerError(BuildrunnerError):
    """A buildrunner server refused a request, or broke.

    Attributes:
        code: the HTTP status of the server's answer; 0 without an answer.
        details: the machine-readable parts of the answer.
    """

    http_status = 502

    def __init__(
        self, message: str, *, code: int = 0, details: Sequence[object] = (), hint: str = ""
    ) -> None:
        super().__init__(message, hint=hint)
        self.code = code
        self.details = tuple(details)


class ServerUnavailable(ServerError):
    """The server does not answer, or its answer can't be understood."""

    http_status = 503


class AuthError(ServerError):
    """The request lacks a token, or its token is unknown or has no right to do this."""

    exit_code = EXIT_BAD_CONFIG
    http_status = 403


class StoreError(BuildrunnerError):
    """The store of builds refused a request or broke."""

    @property
    def is_refusal(self) -> bool:
        """Return whether the store works, and refuses this record or finds none."""
        return self.http_status < 500


class StoreUnavailable(StoreError):
    """The store does not answer now; a retry may help."""

    http_status = 503


class InvalidRecord(StoreError):
    """A record breaks the rules for its kind."""

    http_status = 400


class NotFound(StoreError):
    """The store has no record of that name."""

    exit_code = EXIT_BAD_CONFIG
    http_status = 404


class Conflict(StoreError):
    """The stored state does not allow the change (a finished build can't be cancelled, ...)."""

    exit_code = EXIT_BAD_CONFIG
    http_status = 409


class LeaseLost(StoreError):
    """Another process owns the build now; the caller must stop working on it."""

    http_status = 409


class QuotaExceeded(StoreError):
    """A project has reached its limit of triggers, notifiers, ..."""

    http_status = 429


class FilterError(StoreError):
    """The filter of a list has a syntax error, or names an unknown field.

    Attributes:
        position: index of the wrong character of the filter, from 0.
    """

    exit_code = EXIT_BAD_CONFIG
    http_status = 400

    def __init__(self, message: str, *, position: int = 0, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.position = position


class PageTokenError(StoreError):
    """The page token is invalid, or belongs to another list."""

    exit_code = EXIT_BAD_CONFIG
    http_status = 400
