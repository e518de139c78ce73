"""Commands of a server, where only the package's own requirements are installed."""

import subprocess
import sys

import pytest


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
    code = (
        "import sys; sys.modules[sys.argv[1]] = None;"
        "from buildrunner.cli.main import main; sys.exit(main(sys.argv[2:]))"
    )
    where = ["--data", str(tmp_path)]
    done = subprocess.run(
        [sys.executable, "-c", code, package, *arguments, *where],
        capture_output=True,
        text=True,
        timeout=60,
        env={"HOME": str(tmp_path), "PATH": "/usr/bin:/bin"},
    )
    assert done.returncode == 2, done.stderr
    assert f"needs the Python package {package}" in done.stderr
    assert "pip install 'buildrunner[server]'" in done.stderr
    assert "Traceback" not in done.stderr
