"""The file for Docker Compose: Compose takes it, and every flag in it exists."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from buildrunner.addresses import Egress
from buildrunner.builders.catalog import GATEWAY_PORT
from buildrunner.cli.arguments import CommandParser
from buildrunner.cli.serve import command, remote_worker
from tests.conftest import compose_command

ROOT = Path(__file__).parents[3]
FILE = ROOT / "deploy" / "compose.yaml"
SECRETS = ("database-password", "database-url", "worker-1-token", "worker-2-token")


@pytest.fixture(scope="module")
def project() -> dict[str, Any]:
    return dict(yaml.safe_load(FILE.read_text()))


def test_compose_takes_the_file(tmp_path: Path) -> None:
    shutil.copy(FILE, tmp_path)
    (tmp_path / "secrets").mkdir()
    for name in SECRETS:
        (tmp_path / "secrets" / name).touch()
    done = subprocess.run(
        [*compose_command(), "--file", tmp_path / "compose.yaml", "config", "--quiet"],
        capture_output=True,
        check=False,
        text=True,
        env={"PATH": os.environ["PATH"], "HOME": str(tmp_path)},
    )
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("service", ["server", "worker-1", "worker-2"])
def test_the_flags_of_buildrunner_exist(project: dict[str, Any], service: str) -> None:
    name, *flags = project["services"][service]["command"]
    parser = CommandParser(prog=f"buildrunner {name}")
    {"serve": command, "worker": remote_worker}[name].configure(parser)
    args = parser.parse_args(flags)
    assert args.sandbox == ("none" if service == "server" else "pod")


def test_each_worker_shares_the_folders_of_its_own_engine(project: dict[str, Any]) -> None:
    services = project["services"]
    for number in ("1", "2"):
        worker, engine = services[f"worker-{number}"], services[f"engine-{number}"]
        shared = {f"workspace-{number}:/workspace", f"shared-{number}:/run/buildrunner"}
        assert shared <= set(worker["volumes"])
        assert shared <= set(engine["volumes"])
        assert f"engine-{number}" in worker["depends_on"]
        assert worker["environment"]["DOCKER_HOST"] == "unix:///run/buildrunner/docker.sock"
        assert "--host=fd://" in engine["command"]  # by the start script, in this folder
        assert engine["environment"]["GATEWAY_PORT"] == str(GATEWAY_PORT)
        assert engine["environment"]["EGRESS_DENY"].split() == list(Egress().deny)


def test_each_worker_has_a_token_of_its_own(project: dict[str, Any]) -> None:
    for number in ("1", "2"):
        secrets = project["services"][f"worker-{number}"]["secrets"]
        assert secrets == [{"source": f"worker-{number}-token", "target": "worker-token"}]


def test_an_engine_shares_no_network_and_reaches_no_metadata_service(
    project: dict[str, Any],
) -> None:
    services = project["services"]
    for number in ("1", "2"):
        engine = services[f"engine-{number}"]
        assert engine["networks"] == [f"steps-{number}"]
        assert engine["environment"]["EGRESS_DENY"].split() == list(Egress().deny)
        others = [one for name, one in services.items() if name != f"engine-{number}"]
        assert not [one for one in others if f"steps-{number}" in one["networks"]]


def test_engines_have_no_limit(project: dict[str, Any]) -> None:
    """The page of Compose says so: with a limit, it has to say something else."""
    for number in ("1", "2"):
        engine = project["services"][f"engine-{number}"]
        assert not {"mem_limit", "deploy", "storage_opt", "tmpfs"} & engine.keys()
        assert project["volumes"][f"engine-{number}"] == {}
    access = (ROOT / "docs" / "how-to" / "compose.md").read_text()
    assert "No engine has a limit" in access


def test_a_worker_has_one_engine_for_all_its_builds(project: dict[str, Any]) -> None:
    """The pages say so, and tell what to do: a worker takes builds of all projects of its token."""
    for number in ("1", "2"):
        command_line = project["services"][f"worker-{number}"]["command"]
        assert "--once" not in command_line
        assert "--project" not in command_line
    own = "tokens create shop --worker --project shop"
    for page, words in (
        ("how-to/compose.md", "read their sources and secrets"),
        ("how-to/kubernetes.md", "read their sources and secrets"),
        ("explanation/security.md", "sources, secrets and identity tokens of later builds"),
    ):
        text = " ".join((ROOT / "docs" / page).read_text().split())
        assert words in text
        assert own in text


def test_no_secret_is_in_the_environment_and_only_the_server_reaches_the_database(
    project: dict[str, Any],
) -> None:
    services = project["services"]
    assert {name: one["file"] for name, one in project["secrets"].items()} == {
        name: f"./secrets/{name}" for name in SECRETS
    }
    for service in services.values():
        for name, value in service.get("environment", {}).items():
            assert value.startswith("/run/secrets/") or "PASSWORD" not in name
    assert services["database"]["networks"] == ["database"]
    near = [name for name, one in services.items() if "database" in one["networks"]]
    assert near == ["database", "server"]
