"""Secrets of builds from the local store."""

from __future__ import annotations

from typing import TYPE_CHECKING

from buildrunner.errors import UsageError
from buildrunner.secrets.secret_name import SecretName, names_of, parse_name

if TYPE_CHECKING:
    from collections.abc import Sequence

    from buildrunner.plan.build_plan import SecretReference
    from buildrunner.secrets.local_store import LocalSecretStore, Snapshot


class StoredSecrets:
    """`NamedSecrets` of the local store.

    A secret is looked for under its whole name ``projects/P/secrets/S``, then under its id, then
    under the name of the variable. The version is the one that the config names.

    Args:
        store: has them.
    """

    def __init__(self, store: LocalSecretStore) -> None:
        self._store = store
        self._snapshot: Snapshot | None = None

    @property
    def snapshot(self) -> Snapshot:
        """The store as it was when it was first looked at.

        Raises:
            SecretError: it can't be read.
        """
        if self._snapshot is None:
            self._snapshot = self._store.snapshot()
        return self._snapshot

    def find(
        self, reference: SecretReference, misses: list[str], names: Sequence[str] | None = None
    ) -> str | None:
        """See `NamedSecrets.find`. A store that is damaged or locked away is an error."""
        snapshot = self.snapshot
        miss = "the local store does not have it"
        for name in _stored_names(reference, names_of(reference) if names is None else names):
            version = snapshot.version_of(name)
            if version is not None:
                return snapshot.open(name.secret, version)
            if snapshot.has(name.secret):
                miss = f"the local store has only other versions of {name.secret}"
        misses.append(miss)
        return None


def _stored_names(reference: SecretReference, names: Sequence[str]) -> list[SecretName]:
    """The names to look under, each once. A version that is no number exists in the cloud only."""
    version: int | None = None
    if reference.kind != "kms":
        try:
            version = parse_name(reference.name).version
        except UsageError:
            return []
    whole = (name.partition("/versions/")[0] for name in names)
    return [SecretName(name, version) for name in dict.fromkeys(whole)]
