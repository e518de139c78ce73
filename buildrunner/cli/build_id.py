"""Numbers of builds and projects."""

from __future__ import annotations

import os
import zlib


def new_build_id() -> str:
    """A random UUID (version 4), as the hosted service names builds.

    Made here: importing `uuid` costs more than everything else about it.
    """
    raw = bytearray(os.urandom(16))
    raw[6] = raw[6] & 0x0F | 0x40
    raw[8] = raw[8] & 0x3F | 0x80
    text = raw.hex()
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


def project_number(project_id: str) -> str:
    """A number that stays the same for a project: twelve digits, as real ones have."""
    return str(100_000_000_000 + zlib.crc32(project_id.encode()))
