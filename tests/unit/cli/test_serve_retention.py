"""Which builds ``serve`` keeps: flags, settings, and what is wrong with either."""

from __future__ import annotations

import argparse
from datetime import timedelta
from pathlib import Path

import pytest

from buildrunner.cli.serve import settings as serve_settings
from buildrunner.cli.serve.command import kept_times
from buildrunner.errors import ConfigError, UsageError
from buildrunner.settings import Settings, load_settings
from buildrunner.store.keep_rule import KeepRule


def arguments(*argv: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    serve_settings.add_flags(parser)
    return parser.parse_args(argv)


def test_without_a_flag_all_builds_and_a_year_of_the_audit_log_are_kept() -> None:
    kept = kept_times(arguments(), Settings())
    assert (kept.builds, kept.audit) == ({}, timedelta(days=365))
    assert kept_times(arguments("--keep-audit-days", "0"), Settings()).audit is None


def test_a_flag_wins_over_the_settings_project_by_project() -> None:
    settings = Settings(keep_builds={"*": "365d", "p": "10", "q": "20"})
    given = arguments("--keep-builds", "30d", "--keep-builds", "p=all")
    assert kept_times(given, settings).builds == {
        "*": KeepRule(max_age=timedelta(days=30)),
        "p": KeepRule(),
        "q": KeepRule(max_count=20),
    }


@pytest.mark.parametrize(
    "rule", ["", "soon", "-1", "90d,", "90d,1w", "5,6", "p=", "a/b=3", "=3", "1.5d", "٣"]
)
def test_a_rule_that_says_nothing_is_refused(rule: str) -> None:
    given = arguments(f"--keep-builds={rule}")
    with pytest.raises(UsageError, match=r"which builds are kept|no project id"):
        serve_settings.check_flags(given)


@pytest.mark.parametrize(
    ("text", "place", "said"),
    [
        ("[server.keep_builds]\np = 'soon'\n", 'server.keep_builds."p"', "which builds are kept"),
        ("[server]\nkeep_builds = 3\n", "server.keep_builds", "a table of strings"),
    ],
)
def test_a_wrong_rule_in_the_settings_is_named(
    tmp_path: Path, text: str, place: str, said: str
) -> None:
    (tmp_path / "buildrunner").mkdir()
    (tmp_path / "buildrunner/config.toml").write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_settings(str(tmp_path), {"XDG_CONFIG_HOME": str(tmp_path)})
    (problem,) = caught.value.problems
    assert problem.path == place
    assert said in problem.text()


def test_a_project_s_own_file_says_nothing_about_builds_of_a_server(tmp_path: Path) -> None:
    (tmp_path / ".buildrunner.toml").write_text("[server.keep_builds]\np = '0d'\n")
    with pytest.raises(ConfigError, match="not for a project's file"):
        load_settings(str(tmp_path), {"XDG_CONFIG_HOME": str(tmp_path / "none")})
