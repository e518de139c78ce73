"""The credentials of a build that its server creates: identity tokens, logins, signatures."""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Callable

import msgspec
from msgspec.structs import replace

from buildrunner.engine.outcome import BuildOutcome
from buildrunner.engine.protocols import Attested
from buildrunner.errors import (
    AttestationError,
    ConfigError,
    CredentialsError,
    IdentityError,
    IdentityRefused,
    StoreError,
)
from buildrunner.metadata import AccessToken
from buildrunner.plan.build_plan import BuildOrigin, BuildPlan
from buildrunner.problem import Problem
from buildrunner.registries.logins import DockerLogins
from buildrunner.spec.model.build import Build, VerifyOption
from buildrunner.store.model.builds import Lease, StoredBuild
from buildrunner.store.model.remote import MadeForBuild, Provenance
from buildrunner.worker.leases import until_available
from buildrunner.worker.remote.queue import RemoteQueue, decoded

_SIGN_S = 60.0
_ANSWER_S = 20.0


class RemoteIdentities:
    """Implements `Identities` for one build, and `Credentials` of its metadata server.

    Args:
        queue: the queue of the server.
        lease: the lease of the build.
    """

    email = ""

    def __init__(self, queue: RemoteQueue, lease: Lease) -> None:
        self._queue = queue
        self._lease = lease

    def audiences(self, stored: StoredBuild) -> tuple[str, ...]:  # noqa: ARG002
        """See `Identities.audiences`. The server decides on each token."""
        return ("*",)

    def of_build(self, stored: StoredBuild, origin: BuildOrigin) -> RemoteIdentities:  # noqa: ARG002
        """See `Identities.of_build`."""
        return self

    def access_token(self, scopes: tuple[str, ...]) -> AccessToken:  # noqa: ARG002
        """See `Credentials.access_token`: this account has none."""
        raise IdentityRefused(
            "no access token: exchange an identity token for one, as docs/how-to/keyless.md shows"
        )

    def identity_token(self, audience: str) -> str:
        """See `Credentials.identity_token`.

        Raises:
            IdentityRefused: the trigger does not allow the audience.
            IdentityError: the token can't be signed.
            StoreError: the server does not answer.
        """
        answer = self._queue.call(
            "POST",
            self._lease,
            ":identityToken",
            query={"audience": audience},
            answer_s=_ANSWER_S,
        )
        made = decoded(answer, MadeForBuild)
        if made.refused:
            raise IdentityRefused(made.error, hint=made.hint)
        if made.error:
            raise IdentityError(made.error, hint=made.hint)
        return made.value


def fetch_logins(queue: RemoteQueue, lease: Lease, folder: str) -> None:
    """Write the logins of the build's project that its stored plan needs into a separate folder.

    Raises:
        CredentialsError: the server does not send them, or they can't be written.
    """
    try:
        answer = until_available(lambda: queue.call("GET", lease, "/logins"))
        files = decoded(answer, dict[str, dict[str, str]])["files"]
        shutil.rmtree(folder, ignore_errors=True)
        os.makedirs(folder, mode=0o700)
        for name, text in files.items():
            path = os.path.join(folder, name)
            if os.path.relpath(path, folder).startswith(".."):
                raise CredentialsError(f"the server names a login outside of the folder: {name}")
            os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
            with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
                file.write(text)
    except (OSError, StoreError) as error:
        raise CredentialsError(f"the project's logins can't be had: {error}") from error


def remote_attester(
    queue: RemoteQueue,
    lease: Lease,
    provenance: Provenance,
    build: Build,
    plan: BuildPlan,
) -> RemoteAttester | None:
    """Return the attester of a build; None if the build publishes nothing.

    Raises:
        ConfigError: the build requires provenance, and the server makes none.
    """
    options = build.options
    verified = options is not None and options.requested_verify_option is VerifyOption.VERIFIED
    if not provenance.enabled:
        if verified:
            text = "VERIFIED needs provenance, and the server makes none for this project"
            raise ConfigError([Problem(text, "options.requestedVerifyOption")])
        return None
    if not (plan.images or plan.packages or plan.object_paths):
        return None
    return RemoteAttester(queue, lease, provenance, required=verified)


class RemoteAttester:
    """Implements `Attester`: the server makes, signs and keeps the provenance.

    Args:
        queue: the queue of the server.
        lease: the lease of the build.
        provenance: the server's settings for provenance.
        required: whether the build fails without provenance.
    """

    def __init__(
        self, queue: RemoteQueue, lease: Lease, provenance: Provenance, *, required: bool
    ) -> None:
        self._queue = queue
        self._lease = lease
        self._provenance = provenance
        self._required = required

    def attest(
        self,
        outcome: BuildOutcome,
        *,
        logins: DockerLogins,  # noqa: ARG002
        masked: Callable[[str], str],  # noqa: ARG002  (the server knows the secrets)
        log: Callable[[str], None],  # noqa: ARG002
        cancel: threading.Event,  # noqa: ARG002
    ) -> Attested:
        """See `Attester.attest`."""
        error = self._attest(outcome)
        if error and self._required:
            raise AttestationError(error)
        warnings = [f"the build has no provenance: {error}"] if error else []
        if self._provenance.push and outcome.images:
            warnings.append("the provenance is not in the registry: the build ran on a worker")
        if self._provenance.sbom and outcome.images:
            warnings.append("the images have no SBOM: the build ran on a worker")
        return Attested((), tuple(warnings))

    def _attest(self, outcome: BuildOutcome) -> str:
        """Request the attestation of an outcome; return the error, empty if there is none."""
        steps = tuple(
            type(step)(index=step.index, image_digest=step.image_digest) for step in outcome.steps
        )
        sent = replace(outcome, steps=steps, attestations=(), warnings=())
        content = msgspec.json.encode(sent)
        try:
            answer = until_available(
                lambda: self._queue.call("POST", self._lease, ":attest", content=content),
                wait_limit_s=_SIGN_S,
            )
            made = decoded(answer, MadeForBuild)
        except StoreError as error:
            return str(error)
        return f"{made.error}: {made.hint}" if made.error and made.hint else made.error
