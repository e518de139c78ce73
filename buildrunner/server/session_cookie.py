"""The cookie that holds a browser's token; see `pages.session` for what it may do."""

from __future__ import annotations

from typing import Final

COOKIE: Final = "buildrunner_token"
