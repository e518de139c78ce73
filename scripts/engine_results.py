"""Write what the tests found on an engine to docs/engines.toml; the other engines' results stay.

    python scripts/engine_results.py ENGINE REPORT

ENGINE is its name in scripts/engines.sh, REPORT pytest's XML report. Run with DOCKER_HOST as for
the tests, or with ENGINE_INFO, a file with the engine's answer to /info.
"""

from __future__ import annotations

import datetime
import json
import os
import sys
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING
from xml.etree import ElementTree

if TYPE_CHECKING:
    from collections.abc import Iterable

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "docs" / "engines.toml"
sys.path.insert(0, str(ROOT / "docs"))

from pages.engines import CAPABILITIES  # noqa: E402

_NOTICE = "# Written by `make engines`: what the tests found on each engine.\n"


def verdict(outcomes: Iterable[str]) -> str:
    """Return a cell of the table for the outcomes of a capability's tests."""
    found = list(outcomes)
    failed = found.count("failed")
    if failed:
        return f"no ({failed} of {len(found)} tests)"
    return "yes" if "passed" in found else "n/a"


def outcomes(report: Path) -> dict[str, str]:
    """Return the outcome of each test by its name: module, class and test with dots."""
    found = {}
    for case in ElementTree.parse(report).iter("testcase"):  # noqa: S314  (pytest wrote it)
        kinds = {child.tag for child in case}
        outcome = "failed" if kinds & {"failure", "error"} else "passed"
        if "skipped" in kinds:
            outcome = "skipped"
        name = f"{case.get('classname')}.{case.get('name')}"
        if "[fake]" not in name:
            found[name] = "failed" if found.get(name) == "failed" else outcome
    return found


def main() -> int:
    """Merge the results of one engine."""
    engine, report = sys.argv[1], Path(sys.argv[2])
    info = json.loads(Path(os.environ["ENGINE_INFO"]).read_text())
    snapshotter = ["driver-type", "io.containerd.snapshotter.v1"] in (info["DriverStatus"] or ())
    if not report.stat().st_size:
        sys.exit(f"error: the tests on {engine} ended without a report")
    tests = outcomes(report)
    known = tomllib.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    known[engine] = {
        "version": info["ServerVersion"],
        "store": "containerd" if snapshotter else info["Driver"],
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "results": {
            row.name: verdict(tests[name] for name in tests if name.startswith(row.tests))
            for row in CAPABILITIES
        },
    }
    lines = [_NOTICE]
    for name, found in sorted(known.items()):
        lines.append(f"[{name}]")
        keys = ("version", "store", "date", "note")  # a note of an engine's last run goes with it
        lines += [f"{key} = {json.dumps(found[key])}" for key in keys if key in found]
        lines.append(f"[{name}.results]")
        lines += [
            f"{key} = {json.dumps(value, ensure_ascii=False)}"
            for key, value in found["results"].items()
        ]
        lines.append("")
    RESULTS.write_text("\n".join(lines))
    failed = sum(outcome == "failed" for outcome in tests.values())
    sys.stdout.write(f"{engine}: {len(tests)} tests, {failed} failed\n")
    shown = tuple(beginning for row in CAPABILITIES for beginning in row.tests)
    left_out = [name for name in tests if not name.startswith(shown)]
    for name in left_out:
        sys.stderr.write(f"error: no row of the table has {name}: see docs/pages/engines.py\n")
    return 1 if failed or left_out else 0


if __name__ == "__main__":
    sys.exit(main())
