"""Makes the provenance of a running build once everything is published."""

from __future__ import annotations

import threading
from collections.abc import Callable

from securesystemslib.signer import Signer

from buildrunner.engine.outcome import BuildOutcome
from buildrunner.engine.protocols import Attested
from buildrunner.errors import AttestationError
from buildrunner.plan.build_plan import BuildPlan
from buildrunner.provenance.signing import signed_envelope
from buildrunner.provenance.statement import provenance_statement
from buildrunner.registries.logins import DockerLogins
from buildrunner.spec.model.build import Build


class ProvenanceAttester:
    """Implements `Attester`.

    Args:
        build: with its substitutions made.
        plan: its plan.
        builder_id: URI of the server that runs the build.
        open_signer: opens the signing key; called when the build has published something.
        required: the build fails without provenance (``requestedVerifyOption: VERIFIED``).
    """

    def __init__(
        self,
        build: Build,
        plan: BuildPlan,
        *,
        builder_id: str,
        open_signer: Callable[[], Signer],
        required: bool,
    ) -> None:
        self._build = build
        self._plan = plan
        self._builder_id = builder_id
        self._open_signer = open_signer
        self._required = required

    def attest(
        self,
        outcome: BuildOutcome,
        *,
        logins: DockerLogins,  # noqa: ARG002
        masked: Callable[[str], str],
        log: Callable[[str], None],  # noqa: ARG002
        cancel: threading.Event,  # noqa: ARG002
    ) -> Attested:
        """See `Attester.attest`."""
        statement = provenance_statement(
            self._build,
            self._plan,
            outcome,
            builder_id=self._builder_id,
            masked=masked,
        )
        if statement is None:
            return Attested()
        try:
            return Attested((signed_envelope(statement, self._open_signer()),))
        except AttestationError as error:
            if self._required:
                raise
            hint = f": {error.hint}" if error.hint else ""
            return Attested(warnings=(f"the build has no provenance: {error}{hint}",))
