"""What a terminal would show of a line in the end, as plain text for a page. Pure."""

from __future__ import annotations

import re

from buildrunner.logs.screen import without_controls

# What is left when cursor moves and the like are gone: colours; control characters; characters that
# turn the direction of text, which could make a line say what it does not.
_UNPRINTED = re.compile("\x1b\\[[0-9;:]*m|[\x00-\x08\x0a-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def shown_text(line: bytes | str) -> str:
    """The text of a line: without colours, and of a progress bar only what it showed last."""
    data = line if isinstance(line, bytes) else line.encode("utf-8", "replace")
    drawn = data.rstrip(b"\r").rpartition(b"\r")[2]
    return _UNPRINTED.sub("", without_controls(drawn).decode("utf-8", "replace"))
