"""The protocol of stores of builds.

A build is stored as its *document*: the Build resource in protobuf JSON form (camelCase keys), so
that documents of older versions can always be read and shown. Implementations pass the contract
suite tests/contract/test_build_store.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from buildrunner.store.model.deployments import RecordedDeployment

Document = dict[str, Any]


class BuildStore(Protocol):
    """Builds by id. Several processes and threads may use one concurrently.

    Every method raises `StoreError` with a sentence for the user if the store fails.
    """

    def create(self, document: Document, *, owner: str) -> None:
        """Store a new build, which the process ``owner`` runs (see `process_owner`).

        Raises:
            Conflict: a build of that id exists.
        """
        ...

    def update(self, document: Document) -> None:
        """Replace the document of a build. A document with a final status survives a power cut.

        Raises:
            NotFound: no such build.
            Conflict: the build has ended; nothing leaves a final status.
        """
        ...

    def get(self, build_id: str) -> Document:
        """Return the build of that id, or the only one whose id begins with it.

        A build whose process died becomes INTERNAL_ERROR.

        Raises:
            NotFound: no such build.
            Conflict: several ids begin with these characters.
        """
        ...

    def delete(self, build_id: str) -> None:
        """Delete a build (full id) with its log and its deployments.

        Raises:
            NotFound: no such build.
            Conflict: it has not ended.
        """
        ...

    def find(self, *, statuses: Sequence[str] = (), limit: int = 50) -> list[Document]:
        """Return builds, newest first; only those with one of ``statuses`` if given."""
        ...

    def owner_of(self, build_id: str) -> str:
        """Return the process that runs the build (full id); empty once it has ended."""
        ...

    def record_deployments(self, made: Sequence[RecordedDeployment]) -> None:
        """Record deployments of a build's steps. Idempotent."""
        ...

    def deployments(
        self, *, target: str = "", build_id: str = "", latest: bool = False, limit: int = 50
    ) -> list[RecordedDeployment]:
        """Return deployments, newest first.

        Args:
            target: only of this target; empty for all.
            build_id: only of this build (full id); empty for all.
            latest: only the latest of each target.
            limit: maximum number of deployments.
        """
        ...

    def close(self) -> None:
        """Close the store. Idempotent."""
        ...
