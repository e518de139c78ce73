"""The attester of a running build: it makes the provenance after the build has published all."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, Final

from msgspec.structs import replace
from securesystemslib.signer import Signer

from buildrunner.addresses import Egress
from buildrunner.containers.image_name import ImageName
from buildrunner.containers.protocol import RegistryLogin
from buildrunner.deadline import Deadline
from buildrunner.engine.outcome import BuildOutcome
from buildrunner.engine.protocols import Attested
from buildrunner.errors import (
    AttestationError,
    BuildrunnerError,
    CredentialsError,
    RegistryError,
)
from buildrunner.plan.build_plan import BuildPlan
from buildrunner.provenance.attachment import attach, attach_signature
from buildrunner.provenance.sbom import SbomImage
from buildrunner.provenance.statement import provenance_statement
from buildrunner.registries.distribution import Manifest, Repository
from buildrunner.registries.logins import DockerLogins
from buildrunner.spec.model.build import Build

_LONGEST_S: Final = 300.0  # attaching provenance to all images of a build


class ProvenanceAttester:
    """Implements `Attester`.

    Args:
        build: the build, with its substitutions applied.
        plan: the plan of the build.
        builder_id: URI of the server that runs the build.
        sign: returns the attestation of a statement: a DSSE envelope or a Sigstore bundle.
        open_signer: opens the key that also signs images; None: sign no images.
        required: the build fails without provenance (``requestedVerifyOption: VERIFIED``).
        user_login: returns the user's own login at a registry.
        push: attach attestations to images in their registry.
        egress: networks that requests for a build must not reach.
        start_sbom: starts to make the SBOMs of images, until the build is cancelled, and returns
            the failures until now; None: make no SBOMs.
    """

    def __init__(
        self,
        build: Build,
        plan: BuildPlan,
        *,
        builder_id: str,
        sign: Callable[[dict[str, Any], threading.Event], bytes],
        open_signer: Callable[[], Signer] | None,
        required: bool,
        user_login: Callable[[str], RegistryLogin | None] = lambda _: None,
        push: bool = False,
        egress: Egress | None = None,
        start_sbom: Callable[[tuple[SbomImage, ...], threading.Event], list[str]] | None = None,
    ) -> None:
        self._build = build
        self._plan = plan
        self._builder_id = builder_id
        self._sign = sign
        self._open_signer = open_signer
        self._required = required
        self._user_login = user_login
        self._push = push
        self._egress = egress
        self._start_sbom = start_sbom

    def attest(
        self,
        outcome: BuildOutcome,
        *,
        logins: DockerLogins,
        masked: Callable[[str], str],
        log: Callable[[str], None],  # noqa: ARG002
        cancel: threading.Event,
    ) -> Attested:
        """See `Attester.attest`."""
        try:
            statement = provenance_statement(
                self._build,
                self._plan,
                outcome,
                builder_id=self._builder_id,
                masked=masked,
            )
            if statement is None:
                return Attested()
            attestation = self._sign(statement, cancel)
        except AttestationError as error:
            if self._required:
                raise
            return Attested(warnings=(f"the build has no provenance: {_text(error)}",))
        images = _images(outcome)
        warnings = self._attach_all(images, attestation, logins, cancel) if self._push else []
        if self._start_sbom is not None and images:
            warnings += self._sbom_failures(images, logins, cancel)
        return Attested((attestation,), tuple(warnings))

    def _sbom_failures(
        self, images: list[ImageName], logins: DockerLogins, cancel: threading.Event
    ) -> list[str]:
        assert self._start_sbom is not None  # noqa: S101  (the caller knows)
        try:
            named = tuple(SbomImage(str(one), self._login(one, logins)) for one in images)
            return [f"no SBOM of {one}" for one in self._start_sbom(named, cancel)]
        except (AttestationError, CredentialsError) as error:
            return [_text(error)]

    def _login(self, image: ImageName, logins: DockerLogins) -> RegistryLogin | None:
        return logins.login_for(str(image)) or self._user_login(image.registry)

    def _attach_all(
        self,
        images: list[ImageName],
        attestation: bytes,
        logins: DockerLogins,
        cancel: threading.Event,
    ) -> list[str]:
        """Sign all images and attach the provenance, within `_LONGEST_S`; return the failures."""
        warnings = []
        with Deadline(_LONGEST_S) as deadline:
            for image in images:
                if cancel.is_set():
                    break
                try:
                    with self._opened(image, logins, deadline) as repository:
                        manifest = _manifest(repository, image)
                        attach(repository, manifest, attestation)
                        if self._open_signer is not None:
                            attach_signature(repository, manifest, self._open_signer())
                except (AttestationError, CredentialsError, RegistryError) as error:
                    text = f"the provenance of {image} is not in its registry: {_text(error)}"
                    if self._required:
                        raise AttestationError(text) from error
                    warnings.append(text)
        return warnings

    def _opened(self, image: ImageName, logins: DockerLogins, deadline: Deadline) -> Repository:
        login = self._login(image, logins)
        return Repository(image, login, self._egress, deadline=deadline)


def _manifest(repository: Repository, image: ImageName) -> Manifest:
    manifest = repository.manifest(image.digest)
    if manifest is None:
        raise RegistryError("the registry no longer has the image")
    return manifest


def _images(outcome: BuildOutcome) -> list[ImageName]:
    """Return the pushed images, each digest of a repository once."""
    images = (
        replace(ImageName.parse(image.name), tag="", digest=image.digest)
        for image in outcome.images
        if image.digest
    )
    return list(dict.fromkeys(images))


def _text(error: BuildrunnerError) -> str:
    return f"{error}: {error.hint}" if error.hint else str(error)
