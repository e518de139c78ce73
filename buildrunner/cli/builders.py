"""``buildrunner builders``: makes and lists the builder images."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Collection, Iterable, Sequence

from buildrunner.builders.catalog import BuilderImage
from buildrunner.builders.image_factory import ImageFactory, StoredImage
from buildrunner.cli.terminal.installation_progress import InstallationProgress
from buildrunner.errors import EXIT_SUCCESS, ImagePullError, UsageError
from buildrunner.spec.model.build import Build

_EPILOG = """\
`buildrunner builders install` makes and tests the most common images, with `--for FILE` the images
that a config needs, and with `--all` every image. It skips images that are up to date. Steps and
FROM lines that name gcr.io/cloud-builders/docker, git, npm, ... then use these images. For images
of Docker Hub, add `--stand-ins` to `--for FILE`, or use `[images] aliases` in .buildrunner.toml, or
`--image-alias A=B` of submit.

The images are built on debian:bookworm-slim. If that cannot be pulled, mmdebstrap makes a Debian
from Debian's packages. The images use this machine's proxies (HTTP_PROXY, ...), mirrors
(DEBIAN_MIRROR, PIP_INDEX_URL, PIP_EXTRA_INDEX_URL, NPM_CONFIG_REGISTRY, GOPROXY) and additional
certificates.
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the flags of ``builders``."""
    parser.epilog = _EPILOG
    actions = parser.add_subparsers(dest="action", required=True, metavar="install|list")
    install = actions.add_parser("install", help="make and test images")
    install.add_argument(
        "names",
        nargs="*",
        metavar="NAME",
        help="image to make: docker, git, python, ... (default: the common images)",
    )
    install.add_argument(
        "--for",
        dest="config",
        metavar="FILE",
        help="make the images that this config needs: those of its steps, and those in FROM lines"
        " of the Dockerfiles that it builds",
    )
    install.add_argument(
        "--stand-ins",
        action="store_true",
        help="also give the names of images that the config of --for needs, and that can't be"
        " pulled, to builder images that may replace them (`golang:1.26` to buildrunner/golang)",
    )
    install.add_argument(
        "--substitutions",
        action="append",
        default=[],
        metavar="_KEY=VALUE,...",
        help="values for the config of --for, as in `gcloud builds submit`; may be repeated",
    )
    install.add_argument("--all", action="store_true", help="make every image of the catalog")
    install.add_argument(
        "--base",
        default="",
        metavar="IMAGE",
        help="Debian image to build on (default: debian:bookworm-slim)",
    )
    install.add_argument(
        "--build-arg",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="version (NODE_VERSION=20) or address of an archive (HELM_URL=https://...); images"
        " that use it are made again; may be repeated",
    )
    install.add_argument(
        "--force", action="store_true", help="make images again, without any cache"
    )
    install.add_argument(
        "--ca-certificates",
        metavar="FILE",
        help="PEM file of certificates to trust (default: those that were added to this machine's)",
    )
    install.add_argument(
        "--verbose", action="store_true", help="show the complete output of the builds"
    )
    listing = actions.add_parser("list", help="list the images, and the names that they replace")
    listing.add_argument(
        "--format",
        choices=("table", "json"),
        default="table",
        help="format of the output (default: table)",
    )


def run(args: argparse.Namespace) -> int:
    """Run ``builders install`` or ``builders list``."""
    return _install(args) if args.action == "install" else _list(args.format)


def _install(args: argparse.Namespace) -> int:
    import msgspec

    from buildrunner import wiring
    from buildrunner.builders.catalog import BUILDERS
    from buildrunner.builders.host_settings import read_host_settings
    from buildrunner.builders.installer import Installer, with_parents

    if sum(map(bool, (args.names, args.config, args.all))) > 1:
        raise UsageError("NAME, --for and --all exclude each other")
    if args.stand_ins and not args.config:
        raise UsageError("--stand-ins is for the images of a config", hint="add --for FILE")
    factory = wiring.image_factory()
    needs = _Needs(args, factory) if args.config else None
    if needs and not needs.names:
        print("\n".join(needs.advice()))
        return EXIT_SUCCESS
    names = needs.names if needs else args.names
    if args.all:
        names = [builder.name for builder in BUILDERS]
    builders = with_parents(names)
    settings = read_host_settings(os.environ, certificates_file=args.ca_certificates)
    given = _build_arguments(args.build_arg, builders)
    settings = msgspec.structs.replace(settings, arguments={**settings.arguments, **given})
    progress = InstallationProgress(builders, verbose=args.verbose)
    forced = _forced(names, builders) if args.force else frozenset[str]()
    changed = frozenset(b.name for b in builders if given.keys() & set(b.arguments))
    installer = Installer(
        factory,
        settings,
        os.environ,
        progress,
        force=forced | changed,
        use_cache=not args.force,
        public_names=needs.public_names if needs else {},
    )
    try:
        installer.install(builders, args.base)
    finally:
        progress.summarise()
        if needs:  # even after an error: some images may be made
            print("\n".join(needs.advice(progress.not_made)), flush=True)
    return EXIT_SUCCESS


def _forced(names: Sequence[str], builders: Sequence[BuilderImage]) -> frozenset[str]:
    """Return the builders that ``--force`` makes again: all, or the named ones without parents."""
    wanted = {name.removeprefix("buildrunner/").removesuffix(":latest") for name in names}
    return frozenset(b.name for b in builders if not wanted or b.name in wanted)


def _build_arguments(given: Iterable[str], builders: Sequence[BuilderImage]) -> dict[str, str]:
    known = {name for builder in builders for name in builder.arguments}
    arguments = {}
    for entry in given:
        name, equals, value = entry.partition("=")
        if not equals or name not in known:
            names = ", ".join(sorted(known)) or "none"
            raise UsageError(
                f"--build-arg {entry}: no image that is made takes it",
                hint=f"It is NAME=VALUE. The names that these images take: {names}.",
            )
        arguments[name] = value
    return arguments


class _Needs:
    """The images that the config of ``--for`` needs on this engine.

    Attributes:
        names: builder images to make.
        public_names: builder image -> public names that it is to have on the engine: those in FROM
            lines that it serves, and with ``--stand-ins`` all that it may replace.
    """

    def __init__(self, args: argparse.Namespace, factory: ImageFactory) -> None:
        from buildrunner.builders.catalog import drop_in, stand_in
        from buildrunner.builders.config_images import needed_images

        self._config: str = args.config
        folders = dict.fromkeys((os.getcwd(), os.path.dirname(os.path.abspath(self._config))))
        steps, bases = needed_images(_resolved(self._config, args.substitutions), folders)
        self.names: list[str] = []
        self.public_names: dict[str, list[str]] = {}
        self._stand_ins: dict[str, str] = {}
        self._steps = frozenset(steps)
        self._unknown: list[str] = []
        for image in dict.fromkeys([*steps, *bases]):
            if image.startswith("buildrunner/"):
                self.names.append(image)
            elif builder := drop_in(image):
                self.names.append(builder.name)
                if image in bases:
                    self.public_names.setdefault(builder.name, []).append(image)
            elif _can_be_had(factory, image, args.stand_ins):
                continue
            elif (builder := stand_in(image)) and (image in steps or _can_be_given(image)):
                self.names.append(builder.name)
                self._stand_ins[image] = builder.name
                if args.stand_ins and _can_be_given(image):
                    self.public_names.setdefault(builder.name, []).append(image)
            else:
                self._unknown.append(image)

    def advice(self, not_made: Collection[str] = ()) -> list[str]:
        """Return lines about the names that images have now, and what is left to the user.

        Args:
            not_made: names of builder images that could not be made.
        """
        made = {
            image: f"buildrunner/{name}"
            for image, name in self._stand_ins.items()
            if name not in not_made
        }
        given = {image for images in self.public_names.values() for image in images}
        lines = [
            f"{image} is {made[image]} on this engine now." for image in made if image in given
        ]
        left = [image for image in made if image not in given]
        if any(map(_can_be_given, left)):
            lines += [
                f"Stand-ins are here for {', '.join(left)}. To give them these names on this"
                " engine, for all builds:",
                f"  buildrunner builders install --for {shlex.quote(self._config)} --stand-ins",
            ]
        aliases = {image: made[image] for image in left if image in self._steps}
        if aliases:
            pairs = ", ".join(f'"{image}" = "{ours}"' for image, ours in aliases.items())
            flags = " ".join(f"--image-alias {image}={ours}" for image, ours in aliases.items())
            lines += [
                "To use stand-ins for the images of steps in one build:",
                f"  buildrunner submit {flags}",
                "or in all builds of the project, in .buildrunner.toml, followed by `buildrunner"
                " trust`:",
                "  [images]",
                f"  aliases = {{ {pairs} }}",
            ]
        if self._unknown:
            lines += [f"No builder image can replace {', '.join(self._unknown)}: pull or load it."]
        if not lines and not not_made:
            lines = ["Every image that the config names is here."]
        return lines


def _can_be_given(image: str) -> bool:
    """Return whether an engine can give the name to another image: a digest belongs to one."""
    return "@" not in image


def _can_be_had(factory: ImageFactory, image: str, stand_ins: bool) -> bool:
    """Return whether the engine has the image, or could pull it just now.

    With ``--stand-ins``, a stand-in of that name does not count, since it may be out of date.
    """
    from buildrunner.builders.installer import LABEL_CONTENT

    found = factory.find(image)
    if found is not None and not (stand_ins and LABEL_CONTENT in found.labels):
        return True
    sys.stdout.write(f"{image}: being pulled\n")
    try:
        factory.pull(image)
    except ImagePullError:
        return False
    return True


def _resolved(path: str, substitutions: Sequence[str]) -> Build:
    """Return the config with the known values substituted."""
    from buildrunner.cli.arguments import parse_map
    from buildrunner.plan.resolve import PlanContext, resolve
    from buildrunner.settings import load_settings
    from buildrunner.spec.reading.decode import load_build
    from buildrunner.spec.substitutions.variables import BuiltIns

    try:
        with open(path, "rb") as file:
            text = file.read()
    except OSError as error:
        raise UsageError(f"{path} can't be read: {error.strerror}") from error
    settings = load_settings(os.path.dirname(os.path.abspath(path)), os.environ)
    context = PlanContext(
        built_ins=BuiltIns(project_id=settings.project_id),
        substitutions=parse_map("--substitutions", list(substitutions)),
        triggered=True,
    )
    return resolve(load_build(text, file=path).build, context=context).build


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
        print("\n`buildrunner builders install NAME` makes what is missing.")
    return EXIT_SUCCESS


def _as_json(builder: BuilderImage, image: StoredImage | None) -> dict[str, object]:
    return {
        "name": builder.name,
        "image": builder.image,
        "summary": builder.summary,
        "serves": list(builder.serves),
        "standsInFor": list(builder.stands_in_for),
        "installed": image is not None,
        "id": image.id if image else None,
        "sizeBytes": image.size_bytes if image else None,
    }
