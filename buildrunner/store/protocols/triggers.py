"""The seam between the server and the database: triggers, as documents of BuildTrigger resources.

What their clock fired, and their own settings, are in `schedule_store`.

Rules as in `server_store`; contract suite: tests/contract/test_server_store.py.
"""

from __future__ import annotations

from typing import Protocol

from buildrunner.store.build_store import Document


class TriggerStore(Protocol):
    """Triggers of all projects."""

    def create_trigger(
        self,
        project_id: str,
        location: str,
        document: Document,
        settings: Document | None = None,
    ) -> Document:
        """Keep a trigger with what is set beside it; its ``id`` and ``createTime`` are set.

        Raises `Conflict` on its name.
        """
        ...

    def get_trigger(self, project_id: str, id_or_name: str) -> Document:
        """One trigger. Raises `NotFound`."""
        ...

    def list_triggers(
        self, project_id: str, *, page_size: int = 50, page_token: str = ""
    ) -> tuple[list[Document], str]:
        """Triggers by name, and the next page's token. Raises `PageTokenError`."""
        ...

    def replace_trigger(
        self,
        project_id: str,
        trigger_id: str,
        document: Document,
        *,
        was: Document | None = None,
    ) -> Document | None:
        """Replace a trigger's document; None when it is not as it ``was`` any more.

        Raises `NotFound`, `Conflict` on its name.
        """
        ...

    def delete_trigger(self, project_id: str, id_or_name: str) -> None:
        """Delete a trigger; its builds remain. Raises `NotFound`."""
        ...
