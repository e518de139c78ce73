"""The metadata server, asked by the official google-auth library and by plain HTTP."""

import json
import os
import subprocess
import sys
import urllib.error
import urllib.request

import pytest

from buildrunner.errors import EngineError, SecretError
from buildrunner.metadata import AccessToken, MetadataServer, ProjectFacts, listen_on

FACTS = ProjectFacts("p1", "123", "builder@p1.example")


class StaticCredentials:
    email = "me@p1.example"

    def access_token(self, scopes):
        return AccessToken("token-" + "+".join(scopes), 3599)

    def identity_token(self, audience):
        if audience == "refused":
            raise SecretError("no identity token for refused")
        return f"jwt-for-{audience}"


def served(credentials):
    listener = listen_on("127.0.0.1", 0)
    server = MetadataServer(listener, FACTS, credentials=credentials)
    server.port = listener.getsockname()[1]
    return server


@pytest.fixture(params=[None, StaticCredentials()], ids=["no credentials", "credentials"])
def server(request):
    server = served(request.param)
    server.has_credentials = request.param is not None
    yield server
    server.close()


@pytest.fixture
def with_credentials():
    server = served(StaticCredentials())
    yield server
    server.close()


def get(server, path, flavor="Google"):
    request = urllib.request.Request(f"http://127.0.0.1:{server.port}{path}")
    if flavor:
        request.add_header("Metadata-Flavor", flavor)
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, answer.read().decode(), answer.headers
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode(), error.headers


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/", "computeMetadata/\n"),
        ("/computeMetadata/v1/project/project-id", "p1"),
        ("/computeMetadata/v1/project/numeric-project-id", "123"),
        ("/computeMetadata/v1/instance/zone", "projects/123/zones/global"),
        ("/computeMetadata/v1/universe/universe-domain", "googleapis.com"),
        ("/computeMetadata/v1/instance/service-accounts/default/aliases", "default\n"),
    ],
)
def test_it_tells_the_facts_of_the_project(server, path, body):
    status, text, headers = get(server, path)
    assert (status, text, headers["Metadata-Flavor"]) == (200, body, "Google")


def test_the_account_is_that_of_the_credentials_or_else_of_the_build(server):
    email = "me@p1.example" if server.has_credentials else "builder@p1.example"
    base = "/computeMetadata/v1/instance/service-accounts"
    assert get(server, f"{base}/default/email")[1] == email
    assert get(server, f"{base}/")[1] == f"default/\n{email}/\n"
    recursive = get(server, f"{base}/{email}/?recursive=true")[1]
    assert json.loads(recursive)["email"] == email


def test_a_request_without_the_flavor_header_is_refused(server):
    assert get(server, "/computeMetadata/v1/project/project-id", flavor="")[0] == 403


def test_an_unknown_path_is_not_found(server):
    assert get(server, "/computeMetadata/v1/nothing")[0] == 404


def test_no_token_without_credentials():
    server = served(None)
    try:
        base = "/computeMetadata/v1/instance/service-accounts/default"
        for path in (f"{base}/token", f"{base}/identity?audience=a"):
            status, text, _ = get(server, path)
            assert status == 404
            assert "no Google credentials" in text
    finally:
        server.close()


def test_identity_tokens_need_an_audience_and_may_be_refused(with_credentials):
    base = "/computeMetadata/v1/instance/service-accounts/default/identity"
    assert get(with_credentials, base)[0] == 400
    assert get(with_credentials, f"{base}?audience=https://a")[1] == "jwt-for-https://a"
    assert get(with_credentials, f"{base}?audience=refused")[0] == 500


ASK_BY_GOOGLE_AUTH = """
from google.auth.compute_engine import Credentials, _metadata
from google.auth.transport.requests import Request
request = Request()
assert _metadata.ping(request)
print(_metadata.get_project_id(request))
credentials = Credentials(scopes=["s1", "s2"])
credentials.refresh(request)
print(credentials.token, credentials.service_account_email)
"""


def test_the_official_auth_library_gets_its_token_here(with_credentials):
    host = f"127.0.0.1:{with_credentials.port}"
    done = subprocess.run(
        [sys.executable, "-c", ASK_BY_GOOGLE_AUTH],
        env=os.environ | {"GCE_METADATA_HOST": host, "GCE_METADATA_IP": host},
        capture_output=True,
        text=True,
        check=True,
        timeout=30,
    )
    assert done.stdout.split() == ["p1", "token-s1+s2", "me@p1.example"]


def test_an_address_that_cannot_be_bound_is_one_clear_error():
    with pytest.raises(EngineError, match=r"can't listen on 192\.0\.2\.1:80") as raised:
        listen_on("192.0.2.1")
    assert "--sandbox nested" in raised.value.hint
