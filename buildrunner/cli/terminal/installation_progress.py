"""The progress of an installation of builder images, as lines."""

from __future__ import annotations

import sys
import threading
from collections.abc import Sequence
from typing import TextIO

from buildrunner.builders.catalog import BuilderImage
from buildrunner.builders.image_factory import StoredImage
from buildrunner.errors import EngineError

_LINE_WIDTH = 80


class InstallationProgress:
    """A `Reporter` that prints single lines, readable on a terminal and in a log.

    Args:
        builders: the images that are made.
        verbose: print all output of the builds.
        output: where to print; None is standard output.

    Attributes:
        not_made: names of the images that could not be made.
    """

    def __init__(
        self,
        builders: Sequence[BuilderImage],
        *,
        verbose: bool = False,
        output: TextIO | None = None,
    ) -> None:
        self._output = output or sys.stdout
        self._width = max((len(builder.name) for builder in builders), default=0)
        self._names = {builder.name for builder in builders}
        self._verbose = verbose
        self._lock = threading.Lock()
        self._made = 0
        self._kept = 0
        self.not_made: list[str] = []

    def started(self, name: str) -> None:
        """See `Reporter.started`."""
        with self._lock:
            self._names.add(name)  # the root file system is none of the builders
        self._say(name, "being made")

    def moved(self, name: str, line: str) -> None:
        """See `Reporter.moved`."""
        if self._verbose or line.startswith("note: "):
            self._say(name, f"  {line}")
        elif " : RUN " in line or name == "debian":
            # slow commands of the build, cut to one line
            text = " ".join(line.partition(" : ")[2].split()) or line
            self._say(name, f"  {text[:_LINE_WIDTH]}{'...' * (len(text) > _LINE_WIDTH)}")

    def finished(self, name: str, image: StoredImage, seconds: float, *, made: bool) -> None:
        """See `Reporter.finished`."""
        size = f"{image.size_bytes / 1e6:.0f} MB"
        with self._lock:
            self._made += made
            self._kept += not made
            done = f"[{self._made + self._kept + len(self.not_made)}/{len(self._names)}]"
        text = f"made and tested in {seconds:.1f} s" if made else "up to date"
        self._say(name, f"{text}, {size} {done}")

    def failed(self, name: str, error: EngineError) -> None:
        """See `Reporter.failed`."""
        with self._lock:
            self.not_made.append(name)
        self._say(name, f"NOT MADE: {error}")

    def summarise(self) -> None:
        """Print the last line."""
        failed = f", {len(self.not_made)} not made" if self.not_made else ""
        self._write(f"{self._made} made, {self._kept} up to date{failed}")

    def _say(self, name: str, text: str) -> None:
        self._write(f"{name:<{self._width}}  {text}")

    def _write(self, line: str) -> None:
        with self._lock:
            self._output.write(f"{line}\n")
            self._output.flush()
