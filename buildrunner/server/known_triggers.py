"""All triggers, decoded: each delivery asks all of them, and few of them change in between."""

from __future__ import annotations

from typing import TYPE_CHECKING

from buildrunner.spec.decode import decode_message
from buildrunner.spec.trigger import BuildTrigger

if TYPE_CHECKING:
    from buildrunner.store.build_store import Document
    from buildrunner.store.delivery_store import DeliveryStore

    KnownTrigger = tuple[str, Document, BuildTrigger]  # the project first


class KnownTriggers:
    """Reads them anew each time, and decodes those that have changed. Thread-safe.

    Args:
        store: has them.
    """

    def __init__(self, store: DeliveryStore) -> None:
        self._store = store
        self._decoded: dict[tuple[str, str], KnownTrigger] = {}

    def all(self) -> list[KnownTrigger]:
        """The triggers of all projects, as they are now.

        Raises:
            StoreError: the database fails.
        """
        before, found = self._decoded, {}
        for project, document in self._store.every_trigger():
            key = (project, str(document["id"]))
            known = before.get(key)
            if known is None or known[1] != document:
                known = (project, document, decode_message(BuildTrigger, document).value)
            found[key] = known
        self._decoded = found
        return list(found.values())
