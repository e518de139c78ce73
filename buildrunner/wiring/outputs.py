"""What leaves a build: objects, packages, and the logins for them."""

from __future__ import annotations

import os

from buildrunner.containers.protocol import ContainerEngine
from buildrunner.engine.protocols import ObjectUploader, PackagePublisher
from buildrunner.plan.build_plan import BuildPlan
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
    plan: BuildPlan, settings: Settings, engine: ContainerEngine
) -> PackagePublisher | None:
    """Publishes the plan's packages; None for a plan without any.

    Raises:
        ConfigError: one of them can't be published from here.
        EngineError: the engine does not tell what images it has.
    """
    if not plan.packages:
        return None
    from buildrunner.artifacts.packages import ContainerPublisher
    from buildrunner.registries.logins import trusted_authorities
    from buildrunner.registries.package_logins import PackageLogins

    made = ContainerPublisher(
        engine,
        build_labels(plan.build_id),
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
