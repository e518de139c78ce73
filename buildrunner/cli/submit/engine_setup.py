"""The engine of one local build, set up while this process still reads the config.

The engine takes 70 ms to make the build's network, and this process about as long to read and check
a config. A guardian owns the network from the start and removes it if the config is wrong.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from buildrunner import wiring
from buildrunner.errors import BuildrunnerError

if TYPE_CHECKING:  # the network is requested before other modules are imported
    from types import TracebackType

    from buildrunner.builders.installer import Reporter
    from buildrunner.containers.docker.engine import DockerEngine
    from buildrunner.containers.protocol import ContainerEngine
    from buildrunner.sandboxes.guardian import Guardian
    from buildrunner.sandboxes.protocol import OpenSandbox, Sandbox
    from buildrunner.settings import Settings


class EngineSetup:
    """An engine, and a guardian for one build on it. A context manager that ends with the build.

    `engine` raises the errors of the setup, so that problems of the config are reported first.

    Args:
        build_id: the build.
        metadata: the build gets a metadata server, which decides the network's addresses.
    """

    place: OpenSandbox | None = None
    """The build's own sandbox. None if the build runs on the host's engine."""
    waits_for_config: bool = False
    """The caller must call `open_place`, which takes a minute, once the config is valid."""

    def __init__(self, build_id: str, *, metadata: bool) -> None:
        self._engine: DockerEngine | None = None
        self._guardian: Guardian | None = None
        self._error: BuildrunnerError | None = None
        try:
            addresses = wiring.metadata_addresses() if metadata else None
            self._engine = wiring.container_engine()
            self._guardian = wiring.guardian(self._engine, build_id, address_range=addresses)
        except BuildrunnerError as error:
            self._error = error

    def engine(self) -> ContainerEngine:
        """The engine; the guardian watches over the build.

        Raises:
            BuildrunnerError: the engine can't be used, or the guardian could not start.
        """
        if self._error is not None or self._engine is None:
            raise self._error or AssertionError("there is an engine or an error")
        return self._engine

    def open_place(self, reporter: Reporter | None = None) -> None:
        """Open the build's own sandbox. Does nothing on the host's engine.

        Args:
            reporter: shows the progress if the image of nested engines must be made.
        """

    def git_folder(self) -> str:
        """Return a new folder for files from Git. The guardian always removes it."""
        import tempfile

        folder = tempfile.mkdtemp(prefix="buildrunner-git-")
        if self._guardian is not None:
            self._guardian.note_directory(folder)
        return folder

    def __enter__(self) -> EngineSetup:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Let the guardian clean up, and close the engine."""
        if self._guardian is not None:
            self._guardian.finish(wait=False)
        if self._engine is not None:
            self._engine.close()


class NestedEngineSetup(EngineSetup):
    """An `EngineSetup` with the build's own sandbox, which starts while the config is read.

    The first sandbox on a machine waits for a valid config, since an image is made for it.

    Args:
        build_id: the build.
        settings: see `wiring.sandbox`.
    """

    def __init__(self, build_id: str, settings: Settings) -> None:
        self._engine = None
        self._guardian = None
        self._error = None
        self._build_id = build_id
        self._settings = settings
        self._sandbox: Sandbox | None = None
        from buildrunner.settings import sandbox_folder

        try:
            host = self._engine = wiring.container_engine()
            self._guardian = wiring.nested_guardian(host, build_id, sandbox_folder())
            self.waits_for_config = (
                not wiring.has_engine_image(host) and host.info().supports_nested
            )
        except BuildrunnerError as error:
            self._error = error
        if not self.waits_for_config:
            self.open_place()

    def open_place(self, reporter: Reporter | None = None) -> None:
        """See `EngineSetup.open_place`."""
        from buildrunner.settings import sandbox_folder

        if self._error is not None:
            return
        try:
            self._sandbox = wiring.sandbox(
                "nested",
                data_folder=sandbox_folder(),
                labels=wiring.build_labels(self._build_id),
                settings=self._settings,
                reporter=reporter,
            )
            self.place = self._sandbox.open(self._build_id)
        except BuildrunnerError as error:
            self._error = error

    def engine(self) -> ContainerEngine:
        """See `EngineSetup.engine`: the build's own."""
        super().engine()
        if self.place is None:
            raise AssertionError("there is a sandbox or an error")
        return self.place.engine

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close the sandbox; the guardian removes it."""
        if self.place is not None:
            self.place.close()
        if self._sandbox is not None:
            self._sandbox.close()
        super().__exit__(kind, error, traceback)
