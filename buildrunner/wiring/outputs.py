"""The outputs of a build: objects, packages, and the logins for them."""

from __future__ import annotations

import os
import threading
from contextlib import suppress
from datetime import UTC, datetime
from functools import cache, partial
from typing import TYPE_CHECKING, Any

from buildrunner.errors import AttestationError, ConfigError, IdentityError, StoreError
from buildrunner.logs.files.log_file import log_folder
from buildrunner.problem import Problem
from buildrunner.settings import Settings, data_folder
from buildrunner.spec.model.build import Build, VerifyOption
from buildrunner.wiring.engines import build_labels
from buildrunner.wiring.secrets import google_token

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from securesystemslib.signer import Signer

    from buildrunner.containers.protocol import ContainerEngine, RegistryLogin
    from buildrunner.engine.outcome import BuildOutcome
    from buildrunner.engine.protocols import Attester, ObjectUploader, PackagePublisher
    from buildrunner.identity.keys import IdentityKeys
    from buildrunner.plan.build_plan import BuildPlan
    from buildrunner.provenance.keyless import Keyless
    from buildrunner.provenance.sbom import SbomImage
    from buildrunner.sandboxes.protocol import OpenSandbox
    from buildrunner.storage.stores import Stores
    from buildrunner.store.sql.store import ServerStore

_NO_PROVENANCE = (
    "VERIFIED needs provenance, and [provenance] enabled = false in the settings turns it off",
    "options.requestedVerifyOption",
)


def stores(settings: Settings) -> Stores:
    """Return the stores of buckets.

    Raises:
        UsageError: the setting of a folder that replaces a bucket is invalid.
    """
    from buildrunner.storage.stores import Stores

    return Stores(settings.storage_folders, settings.storage_buckets)


def uploader(plan: BuildPlan, stores: Stores) -> ObjectUploader | None:
    """Return the uploader of the plan's ``artifacts.objects``; None without any."""
    if not plan.object_paths:
        return None
    from buildrunner.artifacts.objects import GcsUploader

    return GcsUploader(stores)


def publisher(
    plan: BuildPlan,
    settings: Settings,
    engine: ContainerEngine,
    place: OpenSandbox | None,
    limit_bytes: int | None,
) -> PackagePublisher | None:
    """Return the publisher of the plan's packages; None without any.

    Args:
        plan: the plan of the build.
        settings: settings of the user, or of the server for the build's project.
        engine: the engine that runs the steps.
        place: sandbox of the build; None if the steps run on the engine of the machine.
        limit_bytes: maximum number of bytes that the build may write to the disk; None: no limit.

    Raises:
        ConfigError: a package can't be published from here.
        EngineError: the engine does not list its images.
    """
    if not plan.packages:
        return None
    machine = place.machine if place else engine
    if machine is None:
        raise ConfigError(
            [
                Problem(
                    "packages can't be published from a Pod: its steps control the engine, and"
                    " would see the login for the repository",
                    path=f"artifacts ({package.label})",
                    rule="package",
                    hint="run the build on a worker with --sandbox nested",
                )
                for package in plan.packages
            ]
        )
    from buildrunner.artifacts.packages import LARGEST_BYTES, ContainerPublisher, PublishingPlace
    from buildrunner.registries.logins import trusted_authorities
    from buildrunner.registries.package_logins import PackageLogins

    made = ContainerPublisher(
        PublishingPlace(
            engine=engine,
            machine=machine,
            network=place.machine_network if place else "host",
            labels=build_labels(plan.build_id),
            limit_bytes=min(limit_bytes or LARGEST_BYTES, LARGEST_BYTES),
        ),
        settings.package_repositories,
        PackageLogins(
            settings.logins_environ(os.environ),
            None if settings.logins_folder else google_token(),
            settings.package_repositories.values(),
        ),
        trusted_authorities(os.environ),
    )
    made.check(plan.packages)
    return made


def attester(
    build: Build,
    plan: BuildPlan,
    settings: Settings,
    limit_bytes: int | None,
    identity_token: Callable[[str], str] | None = None,
) -> Attester | None:
    """Return the attester of a build; None for a build that publishes nothing.

    Args:
        build: the Build with its substitutions made.
        plan: the plan of the build.
        settings: settings of the user or the server.
        limit_bytes: maximum number of bytes that the build may write to the disk; None: no limit.
        identity_token: returns a token of the build for an audience; None if it has none.

    Raises:
        ConfigError: the build requires provenance, and the settings turn it off.
    """
    options = build.options
    verified = options is not None and options.requested_verify_option is VerifyOption.VERIFIED
    if not settings.provenance:
        if verified:
            raise ConfigError([Problem(*_NO_PROVENANCE)])
        return None
    if not (plan.images or plan.packages or plan.object_paths):
        return None
    from buildrunner.provenance.attester import ProvenanceAttester
    from buildrunner.provenance.statement import LOCAL_BUILDER

    open_signer = cache(partial(_signer, settings))
    return ProvenanceAttester(
        build,
        plan,
        builder_id=settings.provenance_builder or LOCAL_BUILDER,
        sign=partial(_signed, settings, identity_token, open_signer),
        open_signer=None if settings.provenance_sigstore else open_signer,
        required=verified,
        user_login=partial(_user_login, environ=settings.logins_environ(os.environ)),
        push=settings.provenance_push,
        egress=settings.egress,
        start_sbom=(
            partial(_start_sbom, build.id, build.project_id, settings, limit_bytes, identity_token)
            if settings.provenance_sbom
            else None
        ),
    )


def attestation(
    build: Build,
    plan: BuildPlan,
    outcome: BuildOutcome,
    settings: Settings,
    masked: Callable[[str], str],
    identity_token: Callable[[str], str],
) -> str:
    """Return the signed provenance of a worker's build; empty if it published nothing.

    Raises:
        AttestationError: the provenance can't be signed.
    """
    from buildrunner.provenance.statement import LOCAL_BUILDER, provenance_statement

    builder = settings.provenance_builder or LOCAL_BUILDER
    statement = provenance_statement(build, plan, outcome, builder_id=builder, masked=masked)
    if statement is None:
        return ""
    open_signer = partial(_signer, settings)
    cancel = threading.Event()
    return _signed(settings, identity_token, open_signer, statement, cancel).decode()


def _signed(
    settings: Settings,
    identity_token: Callable[[str], str] | None,
    open_signer: Callable[[], Signer],
    statement: dict[str, Any],
    cancel: threading.Event,
) -> bytes:
    """Return a statement, signed as the settings say."""
    if settings.provenance_sigstore:
        from buildrunner.provenance.keyless import keyless_bundle

        return keyless_bundle(statement, _keyless(settings, identity_token), cancel)
    from buildrunner.provenance.signing import signed_envelope

    certificates = _certificates(settings.provenance_certificate)
    return signed_envelope(statement, open_signer(), certificates)


def _start_sbom(
    build_id: str,
    project: str,
    settings: Settings,
    limit_bytes: int | None,
    identity_token: Callable[[str], str] | None,
    images: tuple[SbomImage, ...],
    cancel: threading.Event,
) -> list[str]:
    from buildrunner.provenance.sbom import LARGEST_BYTES, SbomJob, start, wait

    folder = settings.provenance_folder or data_folder()
    job = SbomJob(
        folder=os.path.abspath(log_folder(folder, build_id)),
        images=images,
        formats=settings.provenance_sbom,
        project=project,
        key=settings.provenance_key,
        key_folder=os.path.abspath(folder),
        keyless=_keyless(settings, identity_token) if settings.provenance_sigstore else None,
        push=settings.provenance_push,
        egress=settings.egress,
        limit_bytes=min(limit_bytes or LARGEST_BYTES, LARGEST_BYTES),
    )
    process = start(job, cancel)
    return wait(process, job.folder, cancel) if settings.provenance_sbom_wait else []


def _keyless(settings: Settings, identity_token: Callable[[str], str] | None) -> Keyless:
    from buildrunner.provenance.keyless import AUDIENCE, Keyless

    token = ""
    if identity_token is not None and not settings.provenance_identity_token:
        try:
            token = identity_token(AUDIENCE)
        except (IdentityError, StoreError) as error:
            raise AttestationError(
                f"the server gives the build no identity token: {error}", hint=error.hint
            ) from error
    return Keyless(
        sigstore=settings.provenance_sigstore,
        token=token,
        token_file=settings.provenance_identity_token,
    )


def _certificates(path: str) -> str:
    if not path:
        return ""
    from buildrunner.provenance.signing import read_certificates

    try:
        with open(path, "rb") as file:
            pem = file.read()
    except OSError as error:
        raise AttestationError(
            f"the certificate {path} can't be read: {error.strerror or error}",
            hint="correct [provenance] certificate in the settings",
        ) from error
    read_certificates(pem, path)
    return pem.decode("ascii")


def _user_login(registry: str, environ: Mapping[str, str]) -> RegistryLogin | None:
    from buildrunner.containers.registry_auth import user_login

    return user_login(registry, environ)


def public_key(settings: Settings) -> str:
    """Return the public key of provenance as PEM text; the first call creates a missing key.

    Raises:
        AttestationError: the signing key can't be used.
    """
    from buildrunner.provenance.signing import public_key_pem

    return public_key_pem(_signer(settings))


def _signer(settings: Settings) -> Signer:
    from buildrunner.provenance.signing import open_signer

    return open_signer(settings.provenance_key, settings.provenance_folder or data_folder())


def identity_keys(data: str, owner: str, store: ServerStore, settings: Settings) -> IdentityKeys:
    """Return the keys with which a server signs identity tokens.

    Args:
        data: the server's data folder.
        owner: the server's name in the database.
        store: the database.
        settings: settings of the server.
    """
    from buildrunner.identity.keys import IdentityKeys

    return IdentityKeys(
        data,
        owner,
        store.identity_keys,
        clock=lambda: datetime.now(UTC),
        kms=settings.identity_key,
    )


def login_files(plan: BuildPlan, settings: Settings) -> dict[str, str]:
    """Return the files with the logins that a plan may need, by path below a home folder."""
    from buildrunner.containers.registry_auth import step_docker_config

    files = {}
    images = {*plan.images, *(step.image for step in plan.steps)}
    if config := step_docker_config(settings.logins_environ(os.environ), images):
        files[".docker/config.json"] = config.decode()
    for name in (".netrc", ".npmrc", ".pypirc") if plan.packages else ():
        with suppress(FileNotFoundError), open(os.path.join(settings.logins_folder, name)) as file:
            files[name] = file.read()
    return files


def home_files(plan: BuildPlan, settings: Settings) -> dict[str, bytes]:
    """Return the files of ``/builder/home``: registry logins for steps, if the user allows it."""
    if not settings.share_registry_logins:
        return {}
    from buildrunner.containers.registry_auth import step_docker_config

    images = {*plan.images, *(step.image for step in plan.steps)}
    config = step_docker_config(settings.logins_environ(os.environ), images)
    return {} if config is None else {".docker/config.json": config}
