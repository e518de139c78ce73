"""Stores the finished log of a build in its ``logsBucket``."""

from __future__ import annotations

import os

from buildrunner.errors import StorageError
from buildrunner.spec.model.build import Build, LoggingMode
from buildrunner.storage.object_store import SCHEME, ObjectStore, Retried, parse_object_url
from buildrunner.storage.stores import Stores

_IN_BUCKETS = (LoggingMode.LOGGING_UNSPECIFIED, LoggingMode.LEGACY, LoggingMode.GCS_ONLY)


def wants_stored_log(build: Build) -> bool:
    """Whether the log belongs into a bucket.

    Source: ``options.logging``; a log in Cloud Logging only, or none, is in no bucket.
    """
    mode = build.options.logging if build.options else LoggingMode.LOGGING_UNSPECIFIED
    return bool(build.logs_bucket) and mode in _IN_BUCKETS


def check_log_bucket(stores: Stores, build: Build, *, retried: Retried | None = None) -> None:
    """Raise StorageError where the log's bucket is not there or can't be reached.

    Args:
        stores: which store has the bucket.
        build: with its ``logs_bucket``.
        retried: told of each error that another try follows.
    """
    store, bucket, _ = _place(stores, build)
    store.check_bucket(bucket, retried=retried)


def store_log(stores: Stores, build: Build, path: str) -> str:
    """Store the log as ``log-{id}.txt`` in the bucket, or in the folder of it that is named.

    Args:
        stores: which store has the bucket.
        build: with its ``logs_bucket``, with or without ``gs://``.
        path: the log's file.

    Returns:
        Its URL.

    Raises:
        StorageError: it can't be stored.

    Source: ``Build.logsBucket``.
    """
    store, bucket, name = _place(stores, build)
    try:
        with open(path, "rb") as content:
            size = os.fstat(content.fileno()).st_size
            stored = store.write(
                bucket,
                name,
                content,
                size,
                content_type="text/plain; charset=utf-8",
            )
    except OSError as error:
        raise StorageError(f"the log {path} can't be read: {error.strerror or error}") from error
    return stored.url


def _place(stores: Stores, build: Build) -> tuple[ObjectStore, str, str]:
    """The store, bucket and name of the log's object."""
    place = parse_object_url(SCHEME + build.logs_bucket.removeprefix(SCHEME).strip("/"))
    folder = f"{place.name}/" if place.name else ""
    name = f"{folder}log-{build.id}.txt"
    return stores.store_of(place.bucket, name), place.bucket, name
