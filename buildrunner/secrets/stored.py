"""Secrets of builds from the local store."""

from __future__ import annotations

from typing import TYPE_CHECKING

from buildrunner.errors import UsageError
from buildrunner.secrets.secret_name import SecretName, names_of, parse_name

if TYPE_CHECKING:
    from collections.abc import Callable

    from buildrunner.plan.build_plan import SecretReference
    from buildrunner.secrets.local_store import LocalSecretStore, Snapshot


class StoredSecrets:
    """A `SecretProvider` over the local store.

    A secret is looked for under its whole name ``projects/P/secrets/S``, then under its id, then
    under the name of the variable. The version is the one that the config names.

    Args:
        store: has them.
        withheld: names that are as if they were not there, but that it is said.
    """

    def __init__(
        self, store: LocalSecretStore, withheld: Callable[[str], bool] = lambda _: False
    ) -> None:
        self._store = store
        self._withheld = withheld
        self._snapshot: Snapshot | None = None

    def find(self, reference: SecretReference, misses: list[str]) -> str | None:
        """See `SecretProvider.find`. A store that is damaged or locked away is an error."""
        if self._snapshot is None:
            self._snapshot = self._store.snapshot()
        miss = "the local store does not have it"
        for name in _stored_names(reference):
            if self._withheld(name.secret):
                miss = f"{name.secret} would be the server's own, which no build gets"
                continue
            version = self._snapshot.version_of(name)
            if version is not None:
                return self._snapshot.open(name.secret, version)
            if self._snapshot.has(name.secret):
                miss = f"the local store has only other versions of {name.secret}"
        misses.append(miss)
        return None


def _stored_names(reference: SecretReference) -> list[SecretName]:
    """The names to look under, each once. A version that is no number exists in the cloud only."""
    names = names_of(reference)
    version: int | None = None
    if reference.kind != "kms":
        try:
            exact = parse_name(reference.name)
        except UsageError:
            return []
        version = exact.version
    shorter = names if reference.kind == "kms" else names[1:]
    return [SecretName(name, version) for name in dict.fromkeys(shorter)]
