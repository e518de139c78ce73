"""``buildrunner doctor``: is this machine fit to build, and what to do where it isn't."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

from buildrunner.cli.server_place import add_place_flags, data_of, database_of
from buildrunner.errors import EXIT_BUILD_FAILED, EXIT_SUCCESS

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterable, Iterator

    from buildrunner.cli.doctor_checks import Finding


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the flags of ``doctor``."""
    parser.epilog = "exit codes: 0 fit (there may be warnings), 1 something must be done first"
    parser.add_argument("--format", choices=("text", "json"), default="text")
    parser.add_argument(
        "--clean",
        action="store_true",
        help="first remove what builds that no longer run left on the engine",
    )
    add_place_flags(parser)


def run(args: argparse.Namespace) -> int:
    """Check everything, and say it.

    Returns:
        0, or 1 when a check failed.
    """
    from buildrunner.cli.doctor_checks import check_machine
    from buildrunner.cli.doctor_triggers import check_triggers

    if args.clean:
        _clean()
    findings = check_machine(os.environ, os.getcwd())
    findings += check_triggers(database_of(args, data_of(args)), os.getcwd())
    if args.format == "json":
        import json

        shown = [finding.as_dict() for finding in findings]
        print(json.dumps(shown, indent=2))
    else:
        print("\n".join(_lines(findings)))
    failed = any(finding.verdict == "fail" for finding in findings)
    return EXIT_BUILD_FAILED if failed else EXIT_SUCCESS


def _clean() -> None:
    from buildrunner import wiring
    from buildrunner.containers.cleanup import sweep
    from buildrunner.settings import lock_folder
    from buildrunner.store.process_owner import is_alive
    from buildrunner.worker.nested_spare import sweep_spares

    engine = wiring.container_engine()
    found, problems = sweep(
        engine, is_alive, state_dir=lock_folder(), address=engine.endpoint.address
    )
    spares, spare_problems = sweep_spares(engine, is_alive)
    engine.close()
    for name in (*found.containers, *found.volumes, *found.networks, *spares):
        sys.stderr.write(f"removed {name}\n")
    for problem in (*problems, *spare_problems):
        sys.stderr.write(f"warning: {problem}\n")


def _lines(findings: Iterable[Finding]) -> Iterator[str]:
    for finding in findings:
        yield f"{finding.verdict:<4}  {finding.subject:<14}  {finding.text}"
        if finding.advice:
            yield f"{'':<22}-> {finding.advice}"
