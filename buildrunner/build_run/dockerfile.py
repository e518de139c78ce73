"""``submit --tag IMAGE``: the build of a folder that has a Dockerfile and no config."""

from __future__ import annotations

from buildrunner.spec.model.build import Build, BuildStep

DOCKER_IMAGE = "gcr.io/cloud-builders/docker"


def dockerfile_build(tag: str, *, cache: bool) -> Build:
    """The build that gcloud makes of ``--tag``: one ``docker build``, then the push.

    Differs in two things: it runs the docker builder rather than ``gcb-internal``, and keeps the
    layers of earlier builds unless ``cache`` is False (the hosted machine is always new).

    Source: ``gcloud builds submit --tag``.
    """
    arguments = ["build", "--network", "cloudbuild", *([] if cache else ["--no-cache"])]
    step = BuildStep(name=DOCKER_IMAGE, args=(*arguments, "-t", tag, "."))
    return Build(steps=(step,), images=(tag,))
