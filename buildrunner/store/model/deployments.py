"""Stored deployments."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import msgspec
from msgspec.structs import asdict, replace

from buildrunner.engine.deployments import Deployment
from buildrunner.errors import InvalidRecord


class RecordedDeployment(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """A deployment of a step of a build.

    Attributes:
        id: the same for each try to record it.
        project_id, build_id: of the build.
        step: index of the step.
        step_id: its id; empty if it has none.
        time: time of the step's success.
        target, images, version, url, reported: see `Deployment`.
        previous_images: the images that ran before, from the report, or else from the record.
        previous_version: the version in the record of the previous deployment.
        previous_id: id of the previous deployment of the target; empty for the first.
    """

    id: str
    project_id: str
    build_id: str
    step: int
    step_id: str
    time: datetime
    target: str
    images: tuple[str, ...] = ()
    version: str = ""
    url: str = ""
    reported: bool = False
    previous_images: tuple[str, ...] = ()
    previous_version: str = ""
    previous_id: str = ""

    def after(self, before: RecordedDeployment | None) -> RecordedDeployment:
        """Return this deployment, completed from the record of the previous one."""
        if before is None:
            return self
        return replace(
            self,
            previous_images=self.previous_images or before.images,
            previous_version=before.version,
            previous_id=before.id,
        )

    def deployment(self) -> Deployment:
        """Return the step's deployment."""
        return Deployment(
            target=self.target,
            images=self.images,
            previous_images=self.previous_images,
            version=self.version,
            url=self.url,
            reported=self.reported,
        )

    def document(self) -> dict[str, Any]:
        """Return the deployment for the API and commands."""
        from buildrunner.spec.writing import encode_instant

        shown: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(self))
        return {**shown, "time": encode_instant(self.time)}


def recorded(
    deployment: Deployment,
    *,
    project_id: str,
    build_id: str,
    step: int,
    step_id: str,
    time: datetime,
) -> RecordedDeployment:
    """Return the record of a step's deployment."""
    return RecordedDeployment(
        id=_id(build_id, step, deployment.target),
        project_id=project_id,
        build_id=build_id,
        step=step,
        step_id=step_id,
        time=time,
        **asdict(deployment),
    )


def checked(made: RecordedDeployment, *, project_id: str, build_id: str) -> RecordedDeployment:
    """Return a worker's record as one of this project and build.

    Raises:
        InvalidRecord: the record breaks a rule of `Deployment`.
    """
    try:
        msgspec.convert(made, Deployment, from_attributes=True)
    except msgspec.ValidationError as error:
        raise InvalidRecord(f"a deployment of build {build_id} is not recorded: {error}") from error
    own = _id(build_id, made.step, made.target)
    return replace(made, id=own, project_id=project_id, build_id=build_id)


def _id(build_id: str, step: int, target: str) -> str:
    # Imported here: most builds deploy nothing, and `submit` starts sooner without it.
    import hashlib

    return hashlib.sha256(f"{build_id}/{step}/{target}".encode()).hexdigest()[:16]


class DeploymentPage(msgspec.Struct, frozen=True):
    """Some deployments, newest first, and the token of the next page; empty on the last one."""

    deployments: tuple[RecordedDeployment, ...]
    next_page_token: str
