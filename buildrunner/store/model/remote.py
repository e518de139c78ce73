"""Messages of the worker protocol, between a server and the workers that reach it over HTTPS.

Source: our own protocol, see docs/decisions/0038-worker-protocol.md.
"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Final

import msgspec

from buildrunner.engine.deployments import MOST_OF_BUILD, Deployment
from buildrunner.plan.build_plan import SecretReference
from buildrunner.store.model.builds import StoredBuild

REMOTE: Final = "worker:"
"""Prefix of the names under which workers that reach the server over HTTPS hold builds. The name of
the token follows, then ``/`` and the worker's own name."""


class WorkerIdentity(msgspec.Struct, frozen=True, kw_only=True):
    """The holder of a worker's token.

    Attributes:
        name: name of the token.
        pool: the pool whose builds it claims; empty: builds without a pool.
        projects: the projects whose builds it may claim; empty for all.
        build_id: the only build that it may claim; empty for any.
        spare: the Job of a spare Pod, which claims one build and no more; empty for other workers.
    """

    name: str
    pool: str = ""
    projects: tuple[str, ...] = ()
    build_id: str = ""
    spare: str = ""

    def holder(self, worker: str) -> str:
        """Return the name under which one worker with this token holds builds."""
        return f"{REMOTE}{self.name}/{worker}"

    def holds(self, holder: str) -> bool:
        """Return whether a name is that of a worker with this token."""
        return holder.startswith(self.holder(""))

    def may_claim(self, build: StoredBuild) -> bool:
        """Return whether the token is for builds of that project and pool.

        The token of a spare Pod is for none until the Pod has claimed its build.
        """
        return (
            build.pool == self.pool
            and (not self.projects or build.document["projectId"] in self.projects)
            and (self.build_id == build.id or not (self.build_id or self.spare))
        )


class ClaimRequest(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """A worker's request for a build.

    Attributes:
        worker: the worker's name, which stays the same after a restart.
        pool: the worker's pool; must be that of its token.
        build_id: the only build that it wants; empty for any.
        limit: maximum number of concurrent builds of the worker.
        isolation: the worker's isolation of builds; see `sandboxes.protocol.ISOLATIONS`.
        wait_s: seconds that the server waits for a build before it answers that there is none.
    """

    worker: str
    pool: str = ""
    build_id: str = ""
    limit: int = 1
    isolation: str = ""
    wait_s: float = 0.0


class Provenance(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The provenance of builds of a project.

    Attributes:
        enabled: builds get provenance.
        push: provenance is attached to images in their registry.
        sbom: images get a bill of materials.
    """

    enabled: bool = False
    push: bool = False
    sbom: bool = False


class BegunBuild(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """The facts with which a worker runs a build that it has begun.

    Attributes:
        log_bytes: bytes of the log that the server has.
        event_bytes: bytes of the events that the server has.
        settings: fields of `Settings` that hold for the build's project.
        sources: the source policy, in the form that `sources.policy.policy_from` reads.
        public_url: address of the server in links.
        log_limit_bytes: maximum number of bytes that steps may write to the log; 0 sets no limit.
        has_identity: the build's trigger allows identity tokens.
        has_logins: the build's project has its own logins, in place of the machine's.
        provenance: the project's settings of provenance; the server signs it.
        workspace_bytes: the largest workspace that the server keeps; 0: it keeps none.
    """

    log_bytes: int = 0
    event_bytes: int = 0
    settings: dict[str, Any] = {}
    sources: str = ""
    public_url: str = ""
    log_limit_bytes: int = 0
    has_identity: bool = False
    has_logins: bool = False
    provenance: Provenance = Provenance()
    workspace_bytes: int = 0


class MadeForBuild(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A token or a signed statement that the server made for a build, or why it made none.

    Attributes:
        value: the token or statement; empty if there is an error, or nothing to state.
        error: why there is no value; empty if there is one.
        hint: advice on the error.
        refused: the build may not have the value.
    """

    value: str = ""
    error: str = ""
    hint: str = ""
    refused: bool = False


class WorkerDeployment(
    msgspec.Struct, frozen=True, kw_only=True, rename="camel", forbid_unknown_fields=True
):
    """A deployment that a worker reports.

    Attributes:
        step: index of the step.
        time: time of the step's success.
        deployment: the deployment.
    """

    step: Annotated[int, msgspec.Meta(ge=0)]
    time: Annotated[datetime, msgspec.Meta(tz=True)]
    deployment: Deployment


WorkerDeployments = Annotated[list[WorkerDeployment], msgspec.Meta(max_length=MOST_OF_BUILD)]


class RemoteSecret(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The value of a secret that the plan of a build names, or why there is none.

    Attributes:
        reference: the whole reference. One secret under two variables is judged twice, as each
            variable has its own steps.
        value: the value; empty if there is an error.
        error: why there is no value; empty if there is one.
        hint: advice on the error.
    """

    reference: SecretReference
    value: str = ""
    error: str = ""
    hint: str = ""
