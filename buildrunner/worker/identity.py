"""Identity tokens for builds of a server, from the metadata server of each build's sandbox."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any, Final, Protocol

from buildrunner.errors import ConfigError, NotFound
from buildrunner.identity.tokens import BuildFacts, BuildIdentity, TokenKey
from buildrunner.metadata import HOST_NAMES, Credentials, ProjectFacts
from buildrunner.plan.build_plan import BuildOrigin, project_number
from buildrunner.provenance.keyless import AUDIENCE
from buildrunner.settings import Settings
from buildrunner.store.model.builds import StoredBuild
from buildrunner.triggers.settings import IdentityPolicy, read_settings

URL_VARIABLE: Final = "BUILDRUNNER_IDENTITY_URL"
URL: Final = (
    f"http://{HOST_NAMES[-1]}/computeMetadata/v1/instance/service-accounts/default/identity"
)


class Identities(Protocol):
    """The source of identity tokens of builds."""

    def audiences(self, stored: StoredBuild) -> tuple[str, ...]:
        """Return the audiences that the build's trigger allows; none without a trigger."""
        ...

    def of_build(self, stored: StoredBuild, origin: BuildOrigin) -> Credentials:
        """Return the credentials of one build, whose source is known."""
        ...


class BuildIdentities:
    """Implements `Identities`: gives builds the tokens that their triggers allow. Thread-safe.

    Args:
        issuer: URL of the server.
        settings: settings of the server. If Sigstore signs a project's provenance, it is signed
            with such tokens, and its steps get no tokens for that audience.
        trigger_settings: returns the stored settings of a trigger, by project and id.
        key: returns the current signing key.
        clock: returns the current time, in aware UTC.
    """

    def __init__(
        self,
        issuer: str,
        settings: Settings,
        trigger_settings: Callable[[str, str], Mapping[str, Any]],
        key: Callable[[], TokenKey],
        clock: Callable[[], datetime],
    ) -> None:
        self._issuer = issuer
        self._settings = settings
        self._trigger_settings = trigger_settings
        self._key = key
        self._clock = clock

    def audiences(self, stored: StoredBuild) -> tuple[str, ...]:
        """Return the audiences that the build's trigger allows now; none without a trigger.

        Raises:
            StoreError: the database does not answer.
        """
        policy = self._policy(stored)
        return () if stored.untrusted and not policy.forks else policy.audiences

    def _policy(self, stored: StoredBuild) -> IdentityPolicy:
        project, trigger = _names(stored)
        if not trigger:
            return IdentityPolicy()
        try:
            return read_settings(self._trigger_settings(project, trigger)).identity
        except (NotFound, ConfigError):  # the trigger was deleted, or another version stored it
            return IdentityPolicy()

    def of_build(self, stored: StoredBuild, origin: BuildOrigin) -> BuildIdentity:
        """Return the credentials of one build.

        Args:
            stored: the build.
            origin: the source that the server fetched.
        """
        return BuildIdentity(
            self._issuer,
            _facts(stored, origin),
            lambda: self.audiences(stored),
            self._key,
            self._clock,
            reserved=(AUDIENCE,) if self._settings.signs_by_sigstore else (),
        )

    def signing_token(self, stored: StoredBuild, origin: BuildOrigin, audience: str) -> str:
        """Return a token with which the build's own process signs provenance.

        Raises:
            IdentityError: the token can't be signed.
            StoreError: the database does not answer.
        """
        return self.of_build(stored, origin).signing_token(audience)


def _facts(stored: StoredBuild, origin: BuildOrigin) -> BuildFacts:
    project, trigger = _names(stored)
    return BuildFacts(
        project=project,
        build=stored.id,
        trigger=trigger,
        trigger_name=origin.trigger_name,
        repository=origin.repository,
        ref=origin.ref,
        commit=origin.commit,
        fork=stored.untrusted,
    )


def project_facts(stored: StoredBuild) -> ProjectFacts:
    """Return the facts about a build's project for the metadata server."""
    project, _ = _names(stored)
    return ProjectFacts(
        project_id=project,
        project_number=project_number(project),
        service_account=str(stored.document.get("serviceAccount", "")).rpartition("/")[2],
        location=stored.location,
    )


def _names(stored: StoredBuild) -> tuple[str, str]:
    document = stored.document
    return str(document.get("projectId", "")), str(document.get("buildTriggerId", ""))
