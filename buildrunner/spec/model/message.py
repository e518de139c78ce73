"""The base of every message of the Cloud Build API."""

from __future__ import annotations

from datetime import datetime
from typing import ClassVar, TypeAlias

import msgspec

# A 64-bit integer of the API: JSON writes it as a string. The decoder and the encoder tell it from
# ``int`` (32 bits) by the name in the annotation.
Int64: TypeAlias = int


class Message(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, rename="camel"):
    """One message: frozen, snake_case in Python, camelCase in JSON.

    Repeated fields are tuples, maps are dicts (not to be changed), durations are `timedelta` and
    instants aware `datetime`, both exact to the microsecond. A field that is None is unset; other
    fields are unset when they hold their default, as in protobuf.

    Attributes:
        ONEOFS: name of each oneof, with its members: at most one of them may be set.
        OUTPUT_ONLY: fields that only the service sets; callers' values are ignored.
        REFUSED: fields that exist in the API and that we can't honour, each with the reason and the
            way out, for the user.
        NEWER: fields of the service's newer schema, which the published client (3.43.0) does not
            know; it refuses them in an operation.

    Source: https://cloud.google.com/build/docs/api/reference/rest/v1/projects.builds
    """

    ONEOFS: ClassVar[dict[str, tuple[str, ...]]] = {}
    OUTPUT_ONLY: ClassVar[tuple[str, ...]] = ()
    REFUSED: ClassVar[dict[str, str]] = {}
    NEWER: ClassVar[tuple[str, ...]] = ()


class TimeSpan(Message, frozen=True, kw_only=True):
    """When a phase began and ended; one that still runs has no end."""

    start_time: datetime | None = None
    end_time: datetime | None = None
