"""How much of everything a build may hold.

Where the hosted service and the archived local builder differ, the larger number is enforced and
the smaller one warned about, so that a config can be kept portable.

Source: Cloud Build "Quotas and limits"; the local builder's validation.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Final

import msgspec


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """The enforced limits, and in ``portable_*`` the smaller ones that only warn.

    Lengths are in characters unless the name says bytes.
    """

    timeout: timedelta = timedelta(hours=24)
    disk_size_gb: int = 4000
    tags: int = 64
    substitutions: int = 200
    portable_substitutions: int = 100
    substitution_key_bytes: int = 100
    substitution_value_bytes: int = 4000
    steps: int = 300
    portable_steps: int = 100
    step_name: int = 1000
    args: int = 100
    arg_length: int = 10_000
    portable_arg_length: int = 4000
    dir_length: int = 1000
    allow_exit_codes: int = 255
    script_bytes: int = 2**20
    portable_script_length: int = 10_000
    env: int = 100
    env_length: int = 32 * 1024
    secret_values: int = 100
    secret_value_bytes: int = 64 * 1024
    images: int = 100
    image_length: int = 1000
    artifact_paths: int = 100


DEFAULT_LIMITS: Final = Limits()
