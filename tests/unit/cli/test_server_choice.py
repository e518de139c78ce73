"""Which server a command uses, and what is kept of a login."""

import argparse

import pytest

from buildrunner.cli.main import _server_behind_command, main
from buildrunner.cli.server.choice import (
    SavedServer,
    SavedServers,
    add_server_flags,
    chosen_server,
    load_logins,
    save_logins,
)
from buildrunner.cli.server.login import _is_safe
from buildrunner.errors import UsageError

ONE = SavedServer(url="http://one:1", token="t1", project="p1", ca_file="/ca.pem")
TWO = SavedServer(url="http://two:2", token="t2")


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    for name in ("SERVER", "TOKEN", "CA_FILE"):
        monkeypatch.delenv(f"BUILDRUNNER_{name}", raising=False)
    return tmp_path


def chosen(*arguments):
    parser = argparse.ArgumentParser()
    add_server_flags(parser)
    return chosen_server(parser.parse_args(arguments))


def test_without_a_choice_it_is_this_machine():
    assert chosen() is None


def test_the_last_login_counts_and_local_overrules_it():
    save_logins(SavedServers().with_login(TWO).with_login(ONE))
    server = chosen()
    assert (server.url, server.token, server.project, server.ca_file) == (
        "http://one:1",
        "t1",
        "p1",
        "/ca.pem",
    )
    assert chosen("--local") is None


def test_the_flag_overrules_the_environment_and_that_the_login(monkeypatch):
    save_logins(SavedServers().with_login(ONE))
    monkeypatch.setenv("BUILDRUNNER_SERVER", "http://env:3/")
    assert chosen().url == "http://env:3"
    assert chosen("--server", "http://flag:4").url == "http://flag:4"
    assert chosen("--local") is None


def test_a_saved_token_goes_to_no_other_server(monkeypatch):
    save_logins(SavedServers().with_login(ONE))
    assert chosen("--server", "http://evil:1").token == ""
    assert chosen("--server", "http://one:1/").token == "t1"
    monkeypatch.setenv("BUILDRUNNER_TOKEN", "given")
    assert chosen("--server", "http://other:1").token == "given"


def test_contradictions_and_nonsense_are_refused():
    with pytest.raises(UsageError, match="contradict"):
        chosen("--local", "--server", "http://one:1")
    with pytest.raises(UsageError, match="not the address of a server"):
        chosen("--server", "one:1")


def test_only_the_user_can_read_the_tokens(home):
    save_logins(SavedServers().with_login(ONE))
    path = home / "buildrunner/servers.json"
    assert path.stat().st_mode & 0o777 == 0o600
    path.chmod(0o644)
    with pytest.raises(UsageError, match="others can read"):
        load_logins()


def test_a_damaged_file_is_a_sentence(home):
    save_logins(SavedServers())
    (home / "buildrunner/servers.json").write_text("{")
    with pytest.raises(UsageError, match="is damaged"):
        load_logins()


def test_logging_out_leaves_the_others(capsys):
    save_logins(SavedServers().with_login(TWO).with_login(ONE))
    assert main(["logout"]) == 0
    assert load_logins() == SavedServers(current="", servers=(TWO,))
    assert main(["logout"]) == 2
    assert main(["logout", "http://two:2/"]) == 0
    assert load_logins() == SavedServers()
    assert "Logged out of [http://two:2]" in capsys.readouterr().err


def test_whoami_without_a_server_says_so(capsys):
    assert main(["whoami"]) == 2
    assert "no server is used" in capsys.readouterr().err


def test_commands_of_a_server_say_so_without_one(capsys):
    assert main(["builds", "retry", "x"]) == 2
    assert "for builds on a server" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ([], []),
        (["submit", "."], ["submit", "."]),
        (["--server", "U", "submit", "."], ["submit", ".", "--server", "U"]),
        (["--server=U", "builds", "list"], ["builds", "list", "--server=U"]),
        (["--local", "builds", "list"], ["builds", "list", "--local"]),
        (["--ca-file", "F", "submit", "."], ["submit", ".", "--ca-file", "F"]),
        (
            ["--ca-file=F", "--server", "U", "builds", "list"],
            ["builds", "list", "--ca-file=F", "--server", "U"],
        ),
        (
            ["--server", "U", "triggers", "run", "--", "-x"],
            ["triggers", "run", "--server", "U", "--", "-x"],
        ),
        (["--server"], ["--server"]),
        (["--server", "U"], ["--server", "U"]),
        (["--version"], ["--version"]),
    ],
)
def test_the_server_may_come_before_the_command(given, expected):
    assert _server_behind_command(given) == expected


def test_a_local_only_flag_is_refused_for_a_server(tmp_path, capsys):
    (tmp_path / "cloudbuild.yaml").write_text("steps: [{name: a, id: x}]\n")
    for flags in (
        ["--step", "x"],
        ["--privileged"],
        ["--secret", "a=env:B"],
        ["--write-workspace", "out"],
    ):
        code = main(["submit", str(tmp_path), "--server", "http://127.0.0.1:9", *flags])
        assert code == 2
        assert f"{flags[0]} is for builds on this machine" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("url", "safe"),
    [
        ("https://builds.example.com", True),
        ("http://127.0.0.1:8080", True),
        ("http://localhost:8080", True),
        ("http://[::1]:8080", True),
        ("http://builds.example.com", False),
        ("http://10.0.0.1", False),
    ],
)
def test_a_token_in_clear_is_worth_a_warning(url, safe):
    assert _is_safe(url) is safe
