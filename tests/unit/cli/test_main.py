"""The root command: what it says, what it costs, how it ends."""

import json
import os
import signal
import subprocess
import sys

import pytest

from buildrunner import __version__
from buildrunner.cli import main as main_module
from buildrunner.cli.main import COMMANDS, main

HEAVY = (
    "argparse",
    "asyncio",
    "dataclasses",
    "docker",
    "inspect",
    "json",
    "msgspec",
    "requests",
    "rich",
    "sqlite3",
    "subprocess",
    "tempfile",
    "yaml",
)


def imported_for(arguments):
    """Modules that a fresh interpreter without site packages' own imports has after a command."""
    code = (
        "import sys; before = set(sys.modules)\n"
        "from buildrunner.cli.main import main\n"
        f"code = main({arguments!r}); sys.stdout = sys.stderr\n"
        "import json; print(json.dumps([code, sorted(set(sys.modules) - before)]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return json.loads(done.stderr.splitlines()[-1])


@pytest.mark.parametrize("argument", ["--help", "--version", "-h"])
def test_root_help_and_version_import_nothing_heavy(argument):
    code, modules = imported_for([argument])
    assert code == 0
    roots = {name.partition(".")[0] for name in modules}
    assert not roots & (set(HEAVY) - {"json"})
    assert not [name for name in modules if name.startswith("buildrunner.") and "cli" not in name]


def test_submit_does_not_import_what_only_other_commands_need():
    _, modules = imported_for(["submit", "--help"])
    roots = {name.partition(".")[0] for name in modules}
    assert not roots & {"asyncio", "docker", "requests", "rich", "sqlite3", "jinja2", "git"}


def test_submit_requests_the_network_before_it_imports_what_reads_configs():
    code = (
        "import os, sys\n"
        "from buildrunner import wiring\n"
        "def guardian(*_, **__): print(*sorted(sys.modules)); sys.stdout.flush(); os._exit(0)\n"
        "wiring.guardian = guardian\n"
        "from buildrunner.cli.main import main\n"
        "main(['submit', '.'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    modules = set(done.stdout.split())
    assert "buildrunner.cli.submit.engine_setup" in modules
    assert not modules & {"yaml", "sqlite3", "tempfile", "buildrunner.client"}
    others = ("builders", "engine", "secrets", "sources", "spec.reading", "storage", "workspace")
    assert not modules & {f"buildrunner.{name}" for name in others}


def test_help_shows_every_command_and_the_first_three_to_try(capsys):
    assert main([]) == 0
    text = capsys.readouterr().out
    for name, (_, summary) in COMMANDS.items():
        assert f"{name} " in text
        assert summary in text
    for first in ("buildrunner doctor", "buildrunner submit --dry-run .", "buildrunner submit ."):
        assert first in text


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_explains_itself(name, capsys):
    assert main([name, "--help"]) == 0
    assert f"buildrunner {name}" in capsys.readouterr().out


def test_help_followed_by_a_command_is_that_commands_help(capsys):
    assert main(["help", "submit"]) == 0
    assert "--substitutions" in capsys.readouterr().out


def test_version_is_one_line(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"buildrunner {__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "message", "hint"),
    [
        (["sumbit"], 'there is no command "sumbit"', "did you mean `buildrunner submit`?"),
        (["xyzzy"], 'there is no command "xyzzy"', "`buildrunner --help` lists them"),
        (["--quiet"], "buildrunner has no flag --quiet before the command", "submit --help"),
        (["submit", "--tmieout", "3"], "has no flag or argument --tmieout", "--timeout?"),
        (
            ["triggers", "next", "t", "--cuont=3"],
            "buildrunner triggers next has no flag or argument --cuont",
            "did you mean --count?",
        ),
        (
            ["triggers", "next", "t", "--xyzzy"],
            "buildrunner triggers next has no flag or argument --xyzzy",
            "`buildrunner triggers next --help`",
        ),
        (["secrets", "rm"], "the following arguments are required: NAME\n", "--help"),
        (["secrets", "set"], "`buildrunner secrets set` takes a NAME or --forge HOST", "--help"),
        (["builds"], "buildrunner builds: the following arguments are required", "--help"),
    ],
)
def test_a_wrong_command_line_gets_one_message_and_a_way_out(arguments, message, hint, capsys):
    assert main(arguments) == 2
    said = capsys.readouterr().err
    assert message in said
    assert hint in said
    assert len(said.splitlines()) == 2


class FakeCommand:
    def __init__(self, error):
        self.error = error

    def configure(self, parser):
        pass

    def run(self, args):
        raise self.error


@pytest.fixture
def failing(monkeypatch):
    def make(error):
        module = FakeCommand(error)
        monkeypatch.setitem(sys.modules, "failing_command", module)
        monkeypatch.setitem(main_module.COMMANDS, "fail", ("failing_command", "fails"))

    return make


def test_a_bug_leaves_its_traceback_in_a_private_file_and_exits_3(
    failing, monkeypatch, tmp_path, capsys
):
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    failing(ZeroDivisionError("the secret is hunter2"))
    assert main(["fail"]) == 3
    said = capsys.readouterr().err
    assert "this is a bug in buildrunner (ZeroDivisionError)" in said
    assert "Traceback" not in said
    assert "hunter2" not in said
    (report,) = (tmp_path / "buildrunner" / "crashes").iterdir()
    assert str(report) in said
    assert "Traceback" in report.read_text()
    assert report.stat().st_mode & 0o077 == 0


def test_an_interrupt_exits_130(failing):
    failing(KeyboardInterrupt())
    assert main(["fail"]) == 130


@pytest.mark.parametrize(
    "arguments", [["--version"], ["--help"], ["submit", "--help"], ["schema"], ["graph", "c.yaml"]]
)
def test_an_output_that_takes_no_more_is_one_sentence(arguments, tmp_path):
    (tmp_path / "c.yaml").write_text("steps: [{name: busybox}]")
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "buildrunner", *arguments],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            cwd=tmp_path,
            env={**os.environ, "XDG_DATA_HOME": str(tmp_path)},
            check=False,
        )
    said = "error: standard output can't be written: No space left on device\n"
    assert (done.returncode, done.stderr) == (3, said)


@pytest.mark.parametrize("error_output", [">&- 2>&-", ">/dev/full 2>/dev/full", "<&- >&- 2>&-"])
def test_an_error_that_nobody_can_be_told_still_has_its_exit_code(error_output, tmp_path):
    command = f"exec '{sys.executable}' -m buildrunner submit nothing.yaml {error_output}"
    assert subprocess.run(["sh", "-c", command], cwd=tmp_path, check=False).returncode == 2


def test_a_closed_output_is_nowhere_and_not_the_next_file_that_is_opened(tmp_path):
    command = f"exec '{sys.executable}' -m buildrunner builds list >&-"
    environ = {**os.environ, "XDG_DATA_HOME": str(tmp_path)}
    done = subprocess.run(["sh", "-c", command], env=environ, capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, b"Listed 0 builds.\n")


@pytest.mark.parametrize("arguments", ["submit --no-source --config ../c.yaml", "doctor"])
def test_a_folder_that_was_removed_is_one_sentence(arguments, tmp_path):
    (tmp_path / "c.yaml").write_text("steps: [{name: busybox}]")
    (tmp_path / "gone").mkdir()
    command = f"rmdir ../gone; exec '{sys.executable}' -m buildrunner {arguments}"
    done = subprocess.run(
        ["sh", "-c", command.replace("../c.yaml", str(tmp_path / "c.yaml"))],
        cwd=tmp_path / "gone",
        env={**os.environ, "XDG_DATA_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr == "error: the current folder no longer exists\n  cd into one that does\n"


def test_a_reader_that_went_away_is_no_error():
    # The pipe is closed before anything is written.
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [sys.executable, "-m", "buildrunner", "--help"],
        stdout=write,
        stderr=subprocess.PIPE,
        check=False,
        preexec_fn=lambda: signal.signal(signal.SIGPIPE, signal.SIG_IGN),
    )
    os.close(write)
    assert done.returncode == 0
    assert done.stderr == b""
