"""``/workspace`` across the death of a build's process: noted by the first, found by the next."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping

import msgspec
from msgspec.structs import asdict, replace

from buildrunner.containers.protocol import ContainerEngine
from buildrunner.sources.fetched_files import FetchReport
from buildrunner.spec.model.results import SourceProvenance
from buildrunner.spec.reading.decode import decode_message
from buildrunner.spec.writing import encode_message
from buildrunner.workspace.protocol import PreparedWorkspace, Workspace, WrappedWorkspace


def encode_prepared(prepared: PreparedWorkspace) -> bytes:
    """A prepared workspace as JSON, for `decode_prepared` of a later process."""
    fields = asdict(replace(prepared, provenance=None, log=()))
    if prepared.provenance is not None:
        fields["provenance"] = encode_message(prepared.provenance)
    return msgspec.json.encode(fields)


def decode_prepared(data: bytes) -> PreparedWorkspace:
    """Decode the JSON of `encode_prepared`; without the log lines, which are written by now."""
    fields = msgspec.json.decode(data, type=dict)
    provenance = fields.pop("provenance")
    if provenance is not None:
        provenance = decode_message(SourceProvenance, provenance).value
    return PreparedWorkspace(**{**fields, "log": (), "provenance": provenance})


class NotedWorkspace(WrappedWorkspace):
    """A workspace that tells what was prepared before any step sees it. Implements `Workspace`.

    Args:
        workspace: does the work.
        note: keeps what a later process needs; what it raises ends the build.
    """

    def __init__(self, workspace: Workspace, note: Callable[[PreparedWorkspace], None]) -> None:
        super().__init__(workspace)
        self._note = note

    def prepare(
        self,
        engine: ContainerEngine,
        build_id: str,
        labels: Mapping[str, str],
        cancel: threading.Event,
        report: FetchReport | None = None,
    ) -> PreparedWorkspace:
        """See `Workspace.prepare`."""
        prepared = self._workspace.prepare(engine, build_id, labels, cancel, report)
        self._note(prepared)
        return prepared


class ResumedWorkspace:
    """The workspace that an earlier process prepared. Implements `Workspace`.

    Its volume is removed with all else that carries the build's label.

    Args:
        prepared: as `NotedWorkspace` told it.
    """

    def __init__(self, prepared: PreparedWorkspace) -> None:
        self._prepared = prepared

    def prepare(
        self,
        engine: ContainerEngine,  # noqa: ARG002  (all was made before)
        build_id: str,  # noqa: ARG002
        labels: Mapping[str, str],  # noqa: ARG002
        cancel: threading.Event,  # noqa: ARG002
        report: FetchReport | None = None,  # noqa: ARG002
    ) -> PreparedWorkspace:
        """See `Workspace.prepare`."""
        return self._prepared

    def changed_on_host(self) -> tuple[str, ...]:
        """See `Workspace.changed_on_host`: nobody knows any more."""
        return ()

    def release(self) -> None:
        """See `Workspace.release`."""
