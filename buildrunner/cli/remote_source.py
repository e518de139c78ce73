"""Sources of ``submit`` that are objects: named by a URL, or staged in a bucket first."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from msgspec.structs import replace

from buildrunner.errors import StorageError, UsageError
from buildrunner.spec.model_source import Source, StorageSource, StorageSourceManifest
from buildrunner.storage.object_store import parse_object_url

if TYPE_CHECKING:
    from buildrunner.cli.build_request import BuildRequest
    from buildrunner.spec.model import Build
    from buildrunner.storage.object_store import ObjectUrl
    from buildrunner.storage.stores import Stores


def source_of(url: str) -> Source:
    """The source that ``gs://bucket/object`` names: a manifest when it ends in ``.json``.

    Raises:
        UsageError: it names no object.

    Source: gcloud takes a ``.json`` object for a manifest, any other for an archive.
    """
    place = _parsed(url)
    if not place.name or place.name.endswith("/"):
        raise UsageError(f"{url} names no object", hint="name an archive: gs://BUCKET/SOURCE.tgz")
    if place.name.endswith(".json"):
        return Source(
            storage_source_manifest=StorageSourceManifest(
                bucket=place.bucket, object=place.name, generation=place.generation
            )
        )
    return Source(
        storage_source=StorageSource(
            bucket=place.bucket, object=place.name, generation=place.generation
        )
    )


def staged(
    build: Build, request: BuildRequest, folder_url: str, stores: Stores, *, ignore_file: str
) -> Build:
    """Upload the folder or archive that is asked for; the build, on what was uploaded.

    Args:
        build: the build.
        request: its source, not an object and not none.
        folder_url: ``--gcs-source-staging-dir``.
        stores: which store has the bucket.
        ignore_file: ``--ignore-file``.

    Raises:
        UsageError: ``folder_url`` is no place in a bucket.
        SourceError: the source can't be read or uploaded.
    """
    import uuid
    from datetime import UTC, datetime

    from buildrunner.cli.upload_bar import upload_bar
    from buildrunner.sources.gcs_staging import Staging
    from buildrunner.sources.local_folder import LocalFolder

    staging = Staging(
        stores,
        _parsed(folder_url),
        now=datetime.now(UTC),
        token=uuid.uuid4().hex,
        say=lambda text: print(text, file=sys.stderr),
        bar=upload_bar,
    )
    if request.archive:
        source = staging.stage_file(request.archive)
    else:
        shown = request.folder or "."
        source = staging.stage_folder(LocalFolder(shown, ignore_file=ignore_file), shown)
    return replace(build, source=Source(storage_source=source))


def _parsed(url: str) -> ObjectUrl:
    try:
        return parse_object_url(url)
    except StorageError as error:
        raise UsageError(str(error), hint=error.hint) from error
