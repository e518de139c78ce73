"""Imports that are worth a detour, because every command waits for them."""

from __future__ import annotations

import sys


def import_msgspec() -> None:
    """Import msgspec without ``typing_extensions``, which it prefers to ``typing``.

    That module imports ``inspect`` and with it ``ast``, ``dis`` and ``tokenize``: 6 ms, for Pythons
    older than ours. Whoever imports it later gets it as ever.
    """
    name = "typing_extensions"
    if name in sys.modules or "msgspec" in sys.modules:
        return
    sys.modules[name] = None  # type: ignore[assignment]  # what makes an import of it fail
    try:
        import msgspec  # noqa: F401
    finally:
        del sys.modules[name]
