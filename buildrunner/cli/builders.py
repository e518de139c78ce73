"""``buildrunner builders``: make the builder images, see which there are."""

from __future__ import annotations

import os
import sys
import threading
from typing import TYPE_CHECKING

from buildrunner.errors import EXIT_SUCCESS

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

    from buildrunner.builders.catalog import BuilderImage
    from buildrunner.builders.image_factory import StoredImage

_LINE_WIDTH = 80

_EPILOG = """\
`buildrunner builders install` makes all of them in about a minute, and nothing that is up to date
already. Steps named gcr.io/cloud-builders/docker, git, npm, ... are then served by them; other
public images by `[images] aliases` in .buildrunner.toml, or `--image-alias A=B` of submit.

They stand on debian:bookworm-slim where it can be pulled, else on a Debian made here from Debian's
packages by mmdebstrap. Proxies (HTTP_PROXY, ...), mirrors (DEBIAN_MIRROR, PIP_INDEX_URL,
PIP_EXTRA_INDEX_URL, NPM_CONFIG_REGISTRY) and certificates that this machine trusts in addition are
taken over from it.
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the flags of ``builders``."""
    parser.epilog = _EPILOG
    actions = parser.add_subparsers(dest="action", required=True, metavar="install|list")
    install = actions.add_parser("install", help="make them (all, or the ones named)")
    install.add_argument("names", nargs="*", metavar="NAME", help="docker, git, python, ...")
    install.add_argument("--base", default="", metavar="IMAGE", help="Debian image to stand on")
    install.add_argument("--force", action="store_true", help="make them anew, without any cache")
    install.add_argument(
        "--ca-certificates",
        metavar="FILE",
        help="PEM file of certificates to trust (default: those that were added to this machine's)",
    )
    install.add_argument("--verbose", action="store_true", help="show all output of the builds")
    listing = actions.add_parser("list", help="which there are, and what they serve")
    listing.add_argument("--format", choices=("table", "json"), default="table")


def run(args: argparse.Namespace) -> int:
    """Run ``builders install`` or ``builders list``."""
    return _install(args) if args.action == "install" else _list(args.format)


def _install(args: argparse.Namespace) -> int:
    from buildrunner import wiring
    from buildrunner.builders.host_settings import read_host_settings
    from buildrunner.builders.installer import Installer, with_parents

    builders = with_parents(args.names)
    settings = read_host_settings(os.environ, certificates_file=args.ca_certificates)
    progress = _Progress(builders, verbose=args.verbose)
    installer = Installer(
        wiring.image_factory(),
        settings,
        os.environ,
        progress,
        force=_forced(args.names, builders) if args.force else (),
    )
    installer.install(builders, args.base)
    progress.summarise()
    return EXIT_SUCCESS


def _forced(names: Sequence[str], builders: Sequence[BuilderImage]) -> frozenset[str]:
    """What ``--force`` means: the builders that were named, not what they stand on; else all."""
    wanted = {name.removeprefix("buildrunner/").removesuffix(":latest") for name in names}
    return frozenset(b.name for b in builders if not wanted or b.name in wanted)


class _Progress:
    """Prints how the installation goes, a line at a time: readable on a terminal and in a log."""

    def __init__(self, builders: Sequence[BuilderImage], *, verbose: bool) -> None:
        self._width = max(len(builder.name) for builder in builders)
        self._verbose = verbose
        self._lock = threading.Lock()
        self._made = 0
        self._kept = 0

    def started(self, name: str) -> None:
        """See `Reporter.started`."""
        self._say(name, "being made")

    def moved(self, name: str, line: str) -> None:
        """See `Reporter.moved`."""
        if self._verbose:
            self._say(name, f"  {line}")
        elif " : RUN " in line or name == "debian":
            # what takes time, as one line of a fair width
            text = " ".join(line.partition(" : ")[2].split()) or line
            self._say(name, f"  {text[:_LINE_WIDTH]}{'...' * (len(text) > _LINE_WIDTH)}")

    def finished(self, name: str, image: StoredImage, seconds: float, *, made: bool) -> None:
        """See `Reporter.finished`."""
        size = f"{image.size_bytes / 1e6:.0f} MB"
        with self._lock:
            self._made += made
            self._kept += not made
        self._say(name, f"made in {seconds:.1f} s, {size}" if made else f"up to date, {size}")

    def summarise(self) -> None:
        """The last line."""
        print(f"{self._made} made, {self._kept} up to date")

    def _say(self, name: str, text: str) -> None:
        with self._lock:
            sys.stdout.write(f"{name:<{self._width}}  {text}\n")
            sys.stdout.flush()


def _list(output: str) -> int:
    from buildrunner import wiring
    from buildrunner.builders.catalog import BUILDERS

    factory = wiring.image_factory()
    rows = [(builder, factory.find(builder.image)) for builder in BUILDERS]
    if output == "json":
        import json

        print(json.dumps([_as_json(builder, image) for builder, image in rows], indent=2))
        return EXIT_SUCCESS
    width = max(len(builder.image) for builder in BUILDERS)
    for builder, image in rows:
        state = f"{image.size_bytes / 1e6:>5.0f} MB" if image else "  missing"
        serves = f" (serves {', '.join(builder.serves)})" if builder.serves else ""
        print(f"{builder.image:<{width}}  {state}  {builder.summary}{serves}")
    if not all(image for _, image in rows):
        print("\n`buildrunner builders install` makes what is missing.")
    return EXIT_SUCCESS


def _as_json(builder: BuilderImage, image: StoredImage | None) -> dict[str, object]:
    return {
        "name": builder.name,
        "image": builder.image,
        "summary": builder.summary,
        "serves": list(builder.serves),
        "installed": image is not None,
        "id": image.id if image else None,
        "sizeBytes": image.size_bytes if image else None,
    }
