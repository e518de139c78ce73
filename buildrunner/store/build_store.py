"""The seam to whatever keeps builds.

A build is kept as its *document*: the Build resource in protobuf JSON form (camelCase keys), so
that what an older version wrote can always be read and shown. Implementations pass the contract
suite tests/contract/test_build_store.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from buildrunner.store.model.deployments import RecordedDeployment

Document = dict[str, Any]


class BuildStore(Protocol):
    """Builds by id. Several processes and threads may use one at the same time.

    Every method raises `StoreError` with a sentence for a person when the store is broken.
    """

    def create(self, document: Document, *, owner: str) -> None:
        """Keep a new build that process ``owner`` (see `process_owner`) runs.

        Raises:
            Conflict: a build of that id exists.
        """
        ...

    def update(self, document: Document) -> None:
        """Replace the document of a build. Durable, also against a power cut, once it is final.

        Raises:
            NotFound: no such build.
            Conflict: the build has ended; nothing leaves a final status.
        """
        ...

    def get(self, build_id: str) -> Document:
        """The build of that id, or the only one whose id begins with it.

        A build whose process died is INTERNAL_ERROR from then on.

        Raises:
            NotFound: there is none.
            Conflict: several ids begin so.
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
        """The newest builds first; only those with one of ``statuses`` when given."""
        ...

    def owner_of(self, build_id: str) -> str:
        """The process that runs the build (full id); empty once it ended."""
        ...

    def record_deployments(self, made: Sequence[RecordedDeployment]) -> None:
        """Record what steps of a build here deployed; again changes nothing."""
        ...

    def deployments(
        self, *, target: str = "", build_id: str = "", latest: bool = False, limit: int = 50
    ) -> list[RecordedDeployment]:
        """Return deployments, newest first.

        Args:
            target: only of this target; empty for all.
            build_id: only of this build (full id); empty for all.
            latest: only the latest of each target.
            limit: how many at most.
        """
        ...

    def close(self) -> None:
        """Let go of the store. Idempotent."""
        ...
