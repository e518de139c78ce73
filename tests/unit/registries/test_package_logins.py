"""Who to be at a repository of packages, by the files of the user's own tools."""

import base64

import pytest

from buildrunner.errors import PackageError, SecretError
from buildrunner.registries.package_logins import PackageLogin, PackageLogins, where_to_log_in

NONE = PackageLogin()
REGISTRY = "https://us-central1-{}.pkg.dev/p/r"


@pytest.fixture
def home(tmp_path):
    return tmp_path


def logins(home, token=None):
    return PackageLogins({"HOME": str(home), "TOKEN_OF_CI": "npm-token"}, token)


def never():
    raise AssertionError("nobody must be asked")


def test_a_login_is_for_its_repository_only(home):
    (home / ".netrc").write_text("machine a.example login u password p\n")
    (home / ".pypirc").write_text(
        "[distutils]\nindex-servers = x\n"
        "[x]\nrepository = https://a.example/legacy/\nusername = t\npassword = q%q\n"
    )
    known = logins(home)
    assert known.login_for("python", "https://a.example/legacy") == PackageLogin("t", "q%q")
    assert known.login_for("python", "https://a.example/other") == PackageLogin("u", "p")
    assert known.login_for("maven", "https://a.example/legacy") == PackageLogin("u", "p")
    assert known.login_for("maven", "https://b.example/legacy") == NONE


def test_a_login_of_the_netrc_is_for_one_host_and_the_default_for_none(home):
    (home / ".netrc").write_text(
        "machine a.example login u password p#1\n# mine\n"
        'machine B.Example\n  login v\n  password "q w"\n'
        "machine b.example:8443 login w password r\n"
        "default login anonymous password me@example\n"
    )
    known = logins(home, lambda: "token")
    assert known.login_for("maven", "https://a.example/x") == PackageLogin("u", "p#1")
    assert known.login_for("maven", "https://b.example:443/x") == PackageLogin("v", "q w")
    assert known.login_for("maven", "https://b.example:8443/x") == PackageLogin("w", "r")
    assert known.login_for("maven", "https://c.example/x") == NONE
    google = PackageLogin("oauth2accesstoken", "token")
    assert known.login_for("maven", REGISTRY.format("maven")) == google


@pytest.mark.parametrize("kind", ["python", "npm", "maven"])
@pytest.mark.parametrize("address", ["http://a.example/x", "https://a.example:8081/x"])
def test_a_login_goes_without_tls_or_to_another_port_only_if_the_settings_say_so(
    home, address, kind
):
    (home / ".netrc").write_text("machine a.example login u password p\n")
    (home / ".pypirc").write_text("[x]\nrepository = http://a.example/x\nusername = t\n")
    (home / ".npmrc").write_text("//a.example/x/:_authToken=t\n")
    assert logins(home).login_for(kind, address) == NONE
    named = PackageLogins({"HOME": str(home)}, named=[f"{address}/"])
    assert named.login_for(kind, address).found


def test_a_netrc_that_is_broken_matters_only_where_it_is_needed(home):
    (home / ".netrc").write_text("nonsense\n")
    (home / ".pypirc").write_text(
        "[x]\nrepository = https://a.example/\nusername = t\npassword = q\n"
    )
    assert logins(home).login_for("python", "https://a.example") == PackageLogin("t", "q")


def test_npm_gets_the_lines_that_are_for_the_repository(home):
    secret = base64.b64encode(b"p:w").decode()
    pair = base64.b64encode(b"u:p:w").decode()
    (home / ".npmrc").write_text(
        "//a.example/npm/:_authToken=${TOKEN_OF_CI}\n//b.example/:_authToken=other\nfund=false\n"
        f"//e.example/:_auth={pair}\n//f.example/:username=u\n//f.example/:_password={secret}\n"
    )
    (home / ".netrc").write_text("machine c.example login u password p\n")
    known = logins(home, never)
    assert known.login_for("npm", "https://a.example/npm") == PackageLogin(token="npm-token")
    assert known.login_for("npm", "https://a.example/npms") == NONE
    assert known.login_for("npm", "https://c.example/x") == PackageLogin("u", "p")
    assert known.login_for("npm", "https://d.example") == NONE
    assert known.login_for("npm", "https://e.example/x") == PackageLogin("u", "p:w")
    assert known.login_for("npm", "https://f.example/x") == PackageLogin("u", "p:w")
    # The nearest line counts.
    assert known.login_for("npm", "https://b.example/x") == PackageLogin(token="other")
    with (home / ".npmrc").open("a") as file:
        file.write("//b.example/x/:_authToken=nearer\n")
    assert known.login_for("npm", "https://b.example/x") == PackageLogin(token="nearer")


@pytest.mark.parametrize("kind", ["python", "maven", "npm"])
def test_artifact_registry_gets_a_token_of_google(home, kind):
    known = logins(home, lambda: "ya29.token")
    repository = REGISTRY.format(kind)
    assert known.login_for(kind, repository) == PackageLogin("oauth2accesstoken", "ya29.token")


@pytest.mark.parametrize(
    "repository",
    [
        "http://us-python.pkg.dev/p/r",
        "https://us-python.pkg.dev.example.com/p/r",
        "https://example.com/us-python.pkg.dev",
        "https://evil.example@example.com/p",
        "https://pkg.dev/p/r",
    ],
)
def test_nobody_else_gets_a_token_of_google(home, repository):
    assert logins(home, never).login_for("python", repository) == NONE


def test_a_login_of_ones_own_wins_over_google(home):
    (home / ".netrc").write_text("machine us-central1-maven.pkg.dev login _json_key password k\n")
    assert logins(home, never).login_for("maven", REGISTRY.format("maven")) == PackageLogin(
        "_json_key", "k"
    )


def test_without_google_credentials_the_error_says_what_to_do(home):
    def none():
        raise SecretError("no usable Google credentials", hint="run `gcloud`")

    with pytest.raises(PackageError, match=r"no login for us-central1-npm\.pkg\.dev: no u") as c:
        logins(home, none).login_for("npm", REGISTRY.format("npm"))
    assert c.value.unauthorized
    assert "run `gcloud`; or name another repository" in c.value.hint


@pytest.mark.parametrize("name", [".netrc", ".pypirc", ".npmrc"])
def test_a_file_that_is_broken_is_named_and_not_quoted(home, name):
    (home / name).write_bytes(b"machine [s3cret \xff")
    kind = "npm" if name == ".npmrc" else "python"
    with pytest.raises(PackageError) as caught:
        logins(home).login_for(kind, "https://a.example")
    assert str(caught.value) == f"{home / name} can't be read"
    assert "s3cret" not in f"{caught.value}{caught.value.hint}"


def test_a_login_of_this_machine_goes_there_without_tls(home):
    (home / ".npmrc").write_text("//localhost:4873/:_authToken=t\n")
    token = PackageLogin(token="t")
    assert logins(home).login_for("npm", "http://localhost:4873") == token
    assert logins(home).login_for("npm", "http://localhost:4874") == NONE


@pytest.mark.parametrize(
    "address",
    [
        "https://a.example/team-a/../team-b",
        "https://a.example/team-a/%2e%2E/team-b",
        "https://a.example/./team-a",
        "https://a.example:99999/",
        "https://a.example:x/",
    ],
)
def test_a_login_goes_to_no_address_that_leads_elsewhere(home, address):
    (home / ".npmrc").write_text("//a.example/team-a/:_authToken=t\n")
    named = PackageLogins({"HOME": str(home)}, named=["https://a.example/team-a"])
    for known in (logins(home), named):
        with pytest.raises(PackageError, match="is no address of a repository"):
            known.login_for("npm", address)


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("https://a.example/x", "put one for the machine a.example into ~/.netrc"),
        ("https://a.example:8443/x", "put one for the machine a.example:8443 into ~/.netrc"),
        (
            "http://a.example/x",
            "name http://a.example/x in [artifacts.repositories] of the settings: "
            "without TLS a login goes nowhere else",
        ),
    ],
)
def test_who_has_no_login_is_told_where_it_would_be_found(address, expected):
    assert where_to_log_in(address, "~/.netrc") == expected
