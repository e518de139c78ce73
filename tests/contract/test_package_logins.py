"""Logins at Artifact Registry from real Google credentials: a key file and a token endpoint."""

import os

import pytest

from buildrunner import wiring
from buildrunner.errors import PackageError
from buildrunner.registries.package_logins import PackageLogin, PackageLogins
from tests.fixtures_google import TOKEN, GoogleServer

REPOSITORY = "https://us-python.pkg.dev/p/r"


@pytest.fixture
def google(tmp_path, monkeypatch):
    server = GoogleServer(tmp_path)
    for name, value in {**server.environ, "HOME": str(tmp_path)}.items():
        monkeypatch.setenv(name, value)
    yield server
    server.close()


def test_a_key_file_gives_a_token_that_is_the_password(google):
    logins = PackageLogins(os.environ, wiring.google_token())
    for _ in range(2):
        assert logins.login_for("python", REPOSITORY) == PackageLogin("oauth2accesstoken", TOKEN)
    assert logins.login_for("python", "https://pypi.example.com") == PackageLogin()


def test_a_key_file_that_is_none_is_one_clear_error(google, monkeypatch, tmp_path):
    (tmp_path / "broken.json").write_text('{"type": "service_account"}')
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "broken.json"))
    with pytest.raises(PackageError, match=r"no login for us-python\.pkg\.dev: no") as caught:
        PackageLogins(os.environ, wiring.google_token()).login_for("python", REPOSITORY)
    assert "\n" not in str(caught.value)
    assert "gcloud auth application-default login" in caught.value.hint
