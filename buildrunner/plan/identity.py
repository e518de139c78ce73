"""Names of builds and projects."""

from __future__ import annotations

import uuid
import zlib


def new_build_id() -> str:
    """A random UUID (version 4), as the hosted service names builds and triggers."""
    return str(uuid.uuid4())


def project_number(project_id: str) -> str:
    """A number that stays the same for a project: twelve digits, as real ones have."""
    return str(100_000_000_000 + zlib.crc32(project_id.encode()))
