"""Container engines: what works on each, from the results that `make engines` writes."""

from __future__ import annotations

import tomllib
from typing import TYPE_CHECKING, NamedTuple

from pages.markdown import table

if TYPE_CHECKING:
    from pathlib import Path


class Capability(NamedTuple):
    """A row of the table.

    Attributes:
        name: its key in the results.
        text: what it is.
        tests: beginnings of the names of the tests that show it, as pytest's XML report has them:
            module, class and test, with dots.
    """

    name: str
    text: str
    tests: tuple[str, ...]


_ENGINE = "tests.contract.test_container_engine"
CAPABILITIES = (
    Capability(
        "builds",
        "Steps, graphs, scripts, outputs, volumes, timeouts, cancel",
        ("tests.scenarios.test_scenarios.test_on_docker",),
    ),
    Capability(
        "containers",
        "All output and the exit code of every container, also 126 and 127",
        (f"{_ENGINE}.TestOneContainersLife", f"{_ENGINE}.TestNetworks"),
    ),
    Capability(
        "memory",
        "Limits of memory hold, and lack of memory is named",
        (
            f"{_ENGINE}.TestOneContainersLife.test_lack_of_memory",
            "tests.scenarios.test_scenarios.test_on_docker[26_out_of_memory]",
        ),
    ),
    Capability(
        "workspace",
        "`/workspace` is exactly the source",
        ("tests.contract.test_workspace.", f"{_ENGINE}.TestVolumesAndFiles"),
    ),
    Capability(
        "layers",
        "... and local folders are not copied",
        ("tests.contract.test_workspace.test_changes_from_outside",),
    ),
    Capability(
        "kept",
        "Retry from a step: kept workspaces",
        ("tests.contract.test_workspace_kept.",),
    ),
    Capability(
        "artifacts",
        "`artifacts.objects`",
        ("tests.contract.test_artifact_objects.",),
    ),
    Capability(
        "images",
        "Pulls, and pushes with a digest",
        (f"{_ENGINE}.TestImages", "tests.scenarios.test_docker_builds."),
    ),
    Capability(
        "example",
        "The example: builds, tests and pushes a service with `docker` in its steps",
        ("tests.e2e.test_engine_in_steps.test_the_example",),
    ),
    Capability(
        "in-steps",
        "Steps run containers, and delete and rename images of later steps",
        ("tests.e2e.test_engine_in_steps.test_a_step_",),
    ),
    Capability(
        "buildkit",
        "BuildKit in steps",
        ("tests.e2e.test_engine_in_steps.test_buildkit",),
    ),
    Capability(
        "nested",
        "`--sandbox nested`",
        ("tests.contract.test_nested_engine.",),
    ),
)

_HEAD = """\
# Container engines

This page lists the engines that buildrunner supports, and the features of each. `buildrunner doctor` shows the engine in use
and its limits. buildrunner finds the engine like the `docker` command: `DOCKER_HOST`, then the Docker
context, then `/var/run/docker.sock`. Without any of these, it uses the socket of a rootless Docker or of Podman.

| engine | |
|---|---|
| Docker 20.10 and later | works, with the overlay2 store and with the containerd image store, which is the default since Docker 29 |
| rootless Docker | works; sources are copied; a registry at `127.0.0.1` of the machine is not reached, name another address of it |
| Podman 5 and later | works, with and without root: start its socket with `systemctl enable --now podman.socket`, or, without root, `systemctl --user enable --now podman.socket` |
| Podman before 5 | refused |
| Docker Desktop, colima, Rancher Desktop, an engine behind `ssh://` or `tcp://` | works: sources are copied, steps get the engine's own socket; `--sandbox nested` needs an engine of this machine |

## Tested engines

`make engines` starts each engine on a machine of its own, made from Debian's packages. It runs the contract
suite of engines, the scenarios and the example there, and writes this table. The word *no* comes with the number of failing
tests; *n/a* means that the engine lacks the feature.

"""

_NOTES = """
## Differences

- **Podman** copies every source, rounds times of files to microseconds, packs layers anew at a push (so the digest
  of a local image is not that of the pushed one), and copies files out of a workspace as root's. An
  absolute symbolic link is no file for `artifacts.objects`.
- **Without root** an engine limits memory and processors only if the machine's control groups (version 2) are delegated
  to the user. Registries below port 1024 and privileged steps depend on the machine.
- **The containerd image store and Podman** have a digest for every image, so the log says `Already have image (with
  digest)` of images, too, that an earlier step built.
- **An engine that is rootless on another machine** does not tell where its socket is: steps get none, and the build
  says so.
"""


def page(results: Path) -> str:
    """The page; ``results`` is the file that ``make engines`` writes."""
    known = tomllib.loads(results.read_text())
    names = sorted(known)
    rows = [("version", *(known[name]["version"] for name in names))]
    rows += [("image store", *(known[name]["store"] for name in names))]
    rows += [
        (row.text, *(known[name]["results"].get(row.name, "") for name in names))
        for row in CAPABILITIES
    ]
    rows += [("last run", *(_last_run(known[name]) for name in names))]
    return _HEAD + table(("", *names), rows) + _NOTES


def _last_run(found: dict[str, str]) -> str:
    """The day, and what was run if that was not all tests at once."""
    return f"{found['date']}: {found['note']}" if "note" in found else found["date"]
