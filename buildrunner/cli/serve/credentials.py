"""The credentials that a server makes for builds of workers, from its own keys and logins."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime
from functools import partial
from typing import Any

from buildrunner import wiring
from buildrunner.engine.outcome import BuildOutcome
from buildrunner.identity.tokens import TokenKey
from buildrunner.plan.build_plan import BuildOrigin, BuildPlan
from buildrunner.settings import Settings
from buildrunner.spec.model.build import Build
from buildrunner.store.model.builds import StoredBuild
from buildrunner.store.model.remote import Provenance
from buildrunner.worker.identity import BuildIdentities


class ServerCredentials:
    """Implements `BuildCredentials`. Thread-safe.

    Args:
        settings: the server's, with its data folder.
        issuer: URL of the server.
        trigger_settings: returns the stored settings of a trigger, by project and id.
        key: returns the key that signs identity tokens now.
        clock: returns the time, aware UTC.
    """

    def __init__(
        self,
        settings: Settings,
        issuer: str,
        trigger_settings: Callable[[str, str], Mapping[str, Any]],
        key: Callable[[], TokenKey],
        clock: Callable[[], datetime],
    ) -> None:
        self._settings = settings
        self._identities = BuildIdentities(issuer, settings, trigger_settings, key, clock)

    def audiences(self, stored: StoredBuild) -> tuple[str, ...]:
        """See `BuildCredentials.audiences`."""
        return self._identities.audiences(stored)

    def identity_token(self, stored: StoredBuild, origin: BuildOrigin, audience: str) -> str:
        """See `BuildCredentials.identity_token`."""
        return self._identities.of_build(stored, origin).identity_token(audience)

    def has_logins(self, project: str) -> bool:
        """See `BuildCredentials.has_logins`."""
        return bool(self._settings.of_project(project).logins_folder)

    def login_files(self, project: str, plan: BuildPlan) -> dict[str, str]:
        """See `BuildCredentials.login_files`."""
        settings = self._settings.of_project(project)
        return wiring.login_files(plan, settings) if settings.logins_folder else {}

    def provenance(self, project: str) -> Provenance:
        """See `BuildCredentials.provenance`."""
        settings = self._settings.of_project(project)
        return Provenance(
            enabled=settings.provenance,
            push=settings.provenance_push,
            sbom=bool(settings.provenance_sbom),
        )

    def attestation(
        self,
        stored: StoredBuild,
        build: Build,
        plan: BuildPlan,
        outcome: BuildOutcome,
        masked: Callable[[str], str],
    ) -> str:
        """See `BuildCredentials.attestation`."""
        settings = self._settings.of_project(build.project_id)
        token = partial(self._identities.signing_token, stored, plan.origin)
        return wiring.attestation(build, plan, outcome, settings, masked, token)
