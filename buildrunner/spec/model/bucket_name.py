"""Names of buckets: the only place that says what one is.

Source: Cloud Storage's bucket naming guidelines.
"""

from __future__ import annotations

import re
from typing import Final

BUCKET_NAME: Final = r"[a-z0-9][a-z0-9._-]{1,220}[a-z0-9]"
"""A regular expression without groups or anchors."""


def is_bucket_name(text: str) -> bool:
    """Return whether ``text`` is the name of a bucket: no scheme, no folder behind it."""
    return re.fullmatch(BUCKET_NAME, text, re.ASCII) is not None
