"""What leaves a build: objects, packages, and the logins for them."""

from __future__ import annotations

import os

from buildrunner.containers.protocol import ContainerEngine
from buildrunner.engine.protocols import ObjectUploader, PackagePublisher
from buildrunner.plan.build_plan import BuildPlan
from buildrunner.sandboxes.protocol import OpenSandbox
from buildrunner.settings import Settings
from buildrunner.storage.stores import Stores
from buildrunner.wiring.engines import build_labels
from buildrunner.wiring.secrets import google_token


def stores(settings: Settings) -> Stores:
    """Which store has which bucket.

    Raises:
        UsageError: a folder that stands for a bucket is not written as it must be.
    """
    from buildrunner.storage.stores import Stores

    return Stores(settings.storage_folders, settings.storage_buckets)


def uploader(plan: BuildPlan, stores: Stores) -> ObjectUploader | None:
    """Uploads the plan's ``artifacts.objects``; None for a plan without any."""
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
    """Publishes the plan's packages; None for a plan without any.

    Args:
        plan: the build.
        settings: of the user, or of the server for the build's project.
        engine: where its steps run.
        place: its sandbox; None where the steps run on the engine of the machine.
        limit_bytes: what the build may write to the disk; None sets no limit.

    Raises:
        ConfigError: one of them can't be published from here.
        EngineError: the engine does not tell what images it has.
    """
    if not plan.packages:
        return None
    from buildrunner.artifacts.packages import LARGEST_BYTES, ContainerPublisher, PublishingPlace
    from buildrunner.registries.logins import trusted_authorities
    from buildrunner.registries.package_logins import PackageLogins

    made = ContainerPublisher(
        PublishingPlace(
            engine=engine,
            machine=place.machine if place else engine,
            network=place.machine_network if place else "host",
            labels=build_labels(plan.build_id),
            limit_bytes=min(limit_bytes or LARGEST_BYTES, LARGEST_BYTES),
        ),
        settings.package_repositories,
        PackageLogins(os.environ, google_token()),
        trusted_authorities(os.environ),
    )
    made.check(plan.packages)
    return made


def home_files(plan: BuildPlan, settings: Settings) -> dict[str, bytes]:
    """Files for ``/builder/home``: registry logins for steps, if the user lets them have any."""
    if not settings.share_registry_logins:
        return {}
    from buildrunner.containers.registry_auth import step_docker_config

    images = {*plan.images, *(step.image for step in plan.steps)}
    config = step_docker_config(os.environ, images)
    return {} if config is None else {".docker/config.json": config}
