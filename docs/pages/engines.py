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
_CONTAINERS = ("OneContainersLife", "StartAhead", "Labels", "Networks")
_IN_STEPS = "tests.e2e.test_engine_in_steps.test_"
CAPABILITIES = (
    Capability(
        "builds",
        "Steps, graphs, scripts, outputs, volumes, timeouts, cancel",
        ("tests.scenarios.test_scenarios.test_on_docker",),
    ),
    Capability(
        "containers",
        "All output and the exit code of every container, also 126 and 127",
        (
            *(f"{_ENGINE}.Test{part}" for part in _CONTAINERS),
            f"{_ENGINE}.test_an_engine_describes_itself",
            "tests.contract.test_lost_network.",
        ),
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
        (f"{_IN_STEPS}the_example",),
    ),
    Capability(
        "in-steps",
        "Steps run containers, reach them by name, and delete and rename images of later steps",
        (f"{_IN_STEPS}a_step_", f"{_IN_STEPS}each_step_", f"{_IN_STEPS}steps_"),
    ),
    Capability(
        "buildkit",
        "BuildKit in steps",
        (f"{_IN_STEPS}buildkit",),
    ),
    Capability(
        "nested",
        "`--sandbox nested`",
        ("tests.contract.test_nested_engine.",),
    ),
)

_HEAD = """\
# Container engines

buildrunner runs on Docker 20.10 and later, and on Podman 5 and later. `buildrunner doctor` shows the engine in use, its
image store, and what does not work on it.

| engine | what works | what you have to do |
|---|---|---|
| Docker 20.10 to 29 | everything, with the overlay2 store and with the containerd image store (the default of new installations of Docker 29) | nothing |
| rootless Docker | everything but `--sandbox nested` | name a registry on this machine by another address than `127.0.0.1` |
| Podman 5 and later | everything but [BuildKit in steps](#differences) | start its socket: `systemctl enable --now podman.socket` |
| rootless Podman 5 and later | everything but BuildKit in steps and `--sandbox nested` | start its socket: `systemctl --user enable --now podman.socket` |
| Podman before 5 | nothing: buildrunner refuses it | install a newer one |
| Docker Desktop, colima, Rancher Desktop, an engine behind `ssh://` or `tcp://` | everything but `--sandbox nested` | nothing |

buildrunner finds the engine as the `docker` command does: `DOCKER_HOST`, then the Docker context, then
`/var/run/docker.sock`. If none of these leads to an engine, buildrunner uses the socket of a rootless Docker or of Podman.

## Tested engines

`make engines` starts each engine in a machine of its own, made from Debian's packages, runs the engine tests there, and writes
this table. Debian does not have Docker 29, so that is compiled from its Go modules. CI runs all tests on Docker 20.10, and the
engine tests on `docker-29-containerd` and `podman-5`. *n/a* means that the engine lacks the feature.

"""

_NOTES = """
## Differences

- **Podman** copies the source of a build instead of mounting it. File times are rounded to microseconds, and files that
  leave a workspace belong to root. `artifacts.objects` does not upload absolute symbolic links.
- **Podman** compresses layers again for each push. The digest of a pushed image is not that of the local one.
- **Podman** finds `docker.io/acme/python` by the name `python`. A build does not: a step that names `python` gets Docker Hub's.
  Commands in steps, such as `docker run python`, still ask Podman. There, `docker tag IMAGE python` names nothing `python` if
  Podman has an image `docker.io/acme/python`: tag `docker.io/library/python`.
- **Podman** pushes without TLS only to registries that its settings name, also on this machine: add a `[[registry]]` with
  `location = "localhost:5000"` and `insecure = true` to `/etc/containers/registries.conf`.
- **Podman** has no BuildKit of its own. In steps, `docker buildx` and `DOCKER_BUILDKIT=1` start one from the image
  `moby/buildkit`, which was not tested. In a nested sandbox, whose engine is Docker, BuildKit may not mount there
  (`failed to mount ...: operation not permitted`). Plain `docker build` works in both, on the host also with `RUN --mount`.
- **Podman** refuses a tag in `docker build --cache-from NAME:TAG`. Write the name without a tag.
- **Podman** may lose the names of containers for a while. Its netavark rewrites the list of names while its aardvark-dns reads
  it, without a lock. If aardvark-dns finds the list empty, it ends, and starts with the next container. Until then, steps
  can't look up names (`connection refused`, `timed out`): submit the build again. Seen with aardvark-dns 1.14 after 25
  such writes in a row; the code of netavark 2.1 is the same.
- **Without root**, an engine limits memory and processors only if control groups (version 2) are delegated to its
  user. It may refuse registries below port 1024 and privileged steps.
- **The containerd image store and Podman** have a digest for every image. The log then says `Already have image (with
  digest)` of images that an earlier step built, too.
- **A rootless engine on another machine** does not report where its socket is. Steps get no socket, and the build
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
