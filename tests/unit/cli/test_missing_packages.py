"""Commands where only the package's own requirements are installed, without those of a server."""

import json
import subprocess
import sys

import pytest

from buildrunner.cli.terminal.failure import SERVER_PACKAGES


@pytest.mark.parametrize(
    ("package", "arguments"),
    [
        ("sqlalchemy", ["backup", "create", "x.db"]),
        ("sqlalchemy", ["serve", "--port", "0"]),
        ("alembic", ["serve", "--port", "0"]),
        ("fastapi", ["serve", "--port", "0"]),
        ("psycopg", ["tokens", "list", "--database", "postgresql://nowhere.invalid/x"]),
    ],
)
def test_what_to_install_is_said(tmp_path, package, arguments):
    done = run_without([package], [*arguments, "--data", str(tmp_path)], str(tmp_path))
    assert done.returncode == 2, done.stderr
    assert f"needs the Python package {package}" in done.stderr
    assert "pip install '.[server]'" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ["doctor", "--format", "json"],
        ["validate", "cloudbuild.yaml"],
        ["submit", "--dry-run", "."],
        ["graph", "cloudbuild.yaml"],
        ["builds", "list"],
        ["secrets", "list"],
        ["schema"],
        ["worker", "--help"],
    ],
    ids=lambda arguments: arguments[0],
)
def test_commands_without_a_server_need_no_package_of_a_server(tmp_path, arguments):
    (tmp_path / "cloudbuild.yaml").write_text("steps: [{name: busybox, args: [echo]}]\n")
    done = run_without(sorted(SERVER_PACKAGES), arguments, str(tmp_path))
    if arguments[0] == "doctor":  # there is no engine
        verdicts = {found["subject"]: found["verdict"] for found in json.loads(done.stdout)}
        assert (verdicts["engine"], verdicts["data folder"]) == ("fail", "ok")
    else:
        assert done.returncode == 0
    assert "Python package" not in done.stderr


def run_without(packages, arguments, folder):
    """Run a command of buildrunner as if the packages were not installed."""
    code = (
        "import sys; sys.modules.update(dict.fromkeys(sys.argv[1].split(',')));"
        "from buildrunner.cli.main import main; sys.exit(main(sys.argv[2:]))"
    )
    return subprocess.run(
        [sys.executable, "-c", code, ",".join(packages), *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=folder,
        env={"HOME": folder, "PATH": "/usr/bin:/bin", "DOCKER_HOST": f"unix://{folder}/no.sock"},
    )
