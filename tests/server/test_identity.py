"""Identity tokens of builds, verified over HTTP by libraries that are not ours."""

from __future__ import annotations

import argparse
import base64
import json
import os
import re
import subprocess
import sys
import threading
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer
from urllib.parse import parse_qs

import google.auth.exceptions
import google.auth.transport.requests
import jwt
import pytest
from google.auth import identity_pool
from google.oauth2 import id_token

from buildrunner.cli.triggers import schedules
from buildrunner.identity.keys import OVERLAP, SIGNS_FOR
from buildrunner.metadata import MetadataServer, listen_on
from buildrunner.plan.build_plan import BuildOrigin
from buildrunner.settings import Settings
from buildrunner.store.model.builds import StoredBuild
from buildrunner.worker.identity import BuildIdentities, project_facts
from tests.api_server import api_server

AUDIENCE = "https://cloud.example/provider"


class Clock:
    def __init__(self):
        self.ahead = timedelta()

    def __call__(self):
        return datetime.now(UTC) + self.ahead


@pytest.fixture(scope="module")
def clock():
    return Clock()


@pytest.fixture(scope="module")
def server(tmp_path_factory, clock):
    with api_server(tmp_path_factory.mktemp("server"), clock=clock) as running:
        document = {"id": "t1", "name": "deploy", "build": {"steps": [{"name": "busybox"}]}}
        running.store.triggers.create("p", "global", document)
        settings = {"identity": {"audiences": [AUDIENCE]}}
        running.store.triggers.set_settings("p", "t1", settings)
        yield running


def stored(build="b1", *, untrusted=False):
    document = {"id": build, "projectId": "p", "buildTriggerId": "t1"}
    return StoredBuild(document=document, request={}, untrusted=untrusted)


@pytest.fixture
def identities(server, clock):
    return BuildIdentities(
        server.url, Settings(), server.store.triggers.settings, server.identity_keys.signing, clock
    )


@pytest.fixture
def token(identities):
    def make(build="b1"):
        origin = BuildOrigin(ref="refs/heads/main", commit="c" * 40, trigger_name="deploy")
        return identities.of_build(stored(build), origin).identity_token(AUDIENCE)

    return make


def verified(server, token, *, audience=AUDIENCE, **options):
    """The claims of a token, as a relying party that knows only the issuer verifies them."""
    configuration = server.http.get("/.well-known/openid-configuration").json()
    keys = jwt.PyJWKClient(configuration["jwks_uri"])
    return jwt.decode(
        token,
        keys.get_signing_key_from_jwt(token),
        algorithms=configuration["id_token_signing_alg_values_supported"],
        audience=audience,
        issuer=server.url,
        options={"require": ["exp", "iat", "sub", "aud", "iss"]},
        **options,
    )


def verified_by_google(server, token, audience=AUDIENCE):
    request = google.auth.transport.requests.Request()
    url = f"{server.url}/.well-known/jwks.json"
    return id_token.verify_token(token, request, audience=audience, certs_url=url)


def test_pyjwt_and_google_auth_verify_a_token(server, token):
    claims = verified(server, token())
    assert claims["sub"] == "project:p:trigger:t1:ref:refs/heads/main"
    assert (claims["build_id"], claims["trigger_name"]) == ("b1", "deploy")
    assert claims["exp"] - claims["iat"] == 600
    assert verified_by_google(server, token())["sub"] == claims["sub"]


def test_the_configuration_names_what_relying_parties_need(server):
    answer = server.http.get("/.well-known/openid-configuration")
    assert answer.headers["cache-control"] == "public, max-age=300"
    configuration = answer.json()
    assert configuration["issuer"] == server.url
    assert configuration["jwks_uri"] == f"{server.url}/.well-known/jwks.json"
    keys = server.http.get("/.well-known/jwks.json").json()["keys"]
    assert [set(key) for key in keys] == [{"alg", "e", "kid", "kty", "n", "use"}]


def test_the_claims_that_are_advertised_are_those_of_tokens(server, token):
    configuration = server.http.get("/.well-known/openid-configuration").json()
    assert sorted(configuration["claims_supported"]) == sorted(verified(server, token()))


def test_the_issuer_is_the_public_url(tmp_path):
    with api_server(tmp_path, public_url="https://ci.example.com/builds") as server:
        configuration = server.http.get("/.well-known/openid-configuration").json()
    assert configuration["issuer"] == "https://ci.example.com/builds"
    assert configuration["jwks_uri"] == "https://ci.example.com/builds/.well-known/jwks.json"


def test_a_token_for_another_audience_is_refused(server, token):
    with pytest.raises(jwt.InvalidAudienceError):
        verified(server, token(), audience="https://elsewhere.example")
    with pytest.raises((jwt.InvalidAudienceError, google.auth.exceptions.GoogleAuthError)):
        verified_by_google(server, token(), "https://elsewhere.example")


def test_a_token_expires_after_ten_minutes(server, token, clock):
    clock.ahead = -timedelta(minutes=10, seconds=5)
    old = token()
    clock.ahead = timedelta()
    with pytest.raises(jwt.ExpiredSignatureError):
        verified(server, old)
    assert verified(server, old, leeway=60)


def test_a_changed_token_is_refused(server, token):
    head, claims, signature = token().split(".")
    changed = json.loads(base64.urlsafe_b64decode(claims + "=="))
    changed["sub"] = "project:other:trigger:t1:ref:refs/heads/main"
    text = base64.urlsafe_b64encode(json.dumps(changed).encode()).decode().rstrip("=")
    with pytest.raises(jwt.InvalidSignatureError):
        verified(server, f"{head}.{text}.{signature}")


def test_a_token_of_another_server_is_refused(server, tmp_path, identities):
    with api_server(tmp_path) as other:
        forged = BuildIdentities(
            server.url,
            Settings(),
            server.store.triggers.settings,
            other.identity_keys.signing,
            lambda: datetime.now(UTC),
        )
        text = forged.of_build(stored(), BuildOrigin()).identity_token(AUDIENCE)
    with pytest.raises(jwt.PyJWKClientError):
        verified(server, text)


def test_rotation_leaves_earlier_tokens_verifiable(server, token, clock):
    before = token()
    try:
        clock.ahead = SIGNS_FOR + OVERLAP / 2
        token()  # a new key is published, and signs a day later
        clock.ahead = SIGNS_FOR + 2 * OVERLAP - timedelta(minutes=1)
        after = token()
        headers = [jwt.get_unverified_header(one)["kid"] for one in (before, after)]
        assert headers[0] != headers[1]
        assert verified(server, before)
        keys = [key["kid"] for key in server.http.get("/.well-known/jwks.json").json()["keys"]]
        assert keys == headers
    finally:
        clock.ahead = timedelta()


ASK_BY_GOOGLE_AUTH = """
import sys
from google.auth.transport.requests import Request
from google.oauth2 import id_token
print(id_token.fetch_id_token(Request(), sys.argv[1]))
"""


@pytest.fixture
def metadata_of(identities):
    """The metadata server of a build, as its sandbox leads to it; its host and port."""
    servers = []

    def serve(build):
        listener = listen_on("127.0.0.1", 0)
        credentials = identities.of_build(build, BuildOrigin(ref="refs/heads/main"))
        facts = project_facts(build)
        servers.append(MetadataServer(listener, facts, credentials=credentials))
        return f"127.0.0.1:{listener.getsockname()[1]}"

    yield serve
    for one in servers:
        one.close()


def asked_by_google_auth(host, audience=AUDIENCE):
    """Ask as a step does that uses Google's library."""
    return subprocess.run(
        [sys.executable, "-c", ASK_BY_GOOGLE_AUTH, audience],
        env=os.environ | {"GCE_METADATA_HOST": host, "GCE_METADATA_IP": host},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def test_google_auth_gets_the_token_of_a_step_from_the_metadata_server(server, metadata_of):
    done = asked_by_google_auth(metadata_of(stored("b1")))
    assert done.returncode == 0, done.stderr
    claims = verified_by_google(server, done.stdout.strip())
    assert (claims["build_id"], claims["source"]) == ("b1", "trusted")


IDENTITY = "/computeMetadata/v1/instance/service-accounts/default/identity"


def ask(server, host, audience=AUDIENCE, **headers):
    return server.http.get(
        f"http://{host}{IDENTITY}",
        params={"audience": audience, "format": "full"},
        headers={"Metadata-Flavor": "Google", **headers},
    )


def test_each_build_gets_its_own_tokens(server, metadata_of):
    hosts = {build: metadata_of(stored(build)) for build in ("b1", "b2")}
    for build, host in hosts.items():
        assert verified(server, ask(server, host).text)["build_id"] == build


@pytest.mark.parametrize(
    ("build", "audience"),
    [(stored(), "https://elsewhere.example"), (stored(untrusted=True), AUDIENCE)],
    ids=["another audience", "a fork"],
)
def test_a_token_that_the_trigger_does_not_allow_is_refused(server, metadata_of, build, audience):
    answer = ask(server, metadata_of(build), audience)
    assert answer.status_code == 403
    assert "the trigger of this build does not allow tokens for the audience" in answer.text
    assert "schedules settings TRIGGER --audience" in answer.text


def test_a_token_of_a_fork_that_is_allowed_says_so(server, metadata_of):
    allowed = {"identity": {"audiences": [AUDIENCE], "forks": True}}
    server.store.triggers.set_settings("p", "t1", allowed)
    try:
        claims = verified(server, ask(server, metadata_of(stored(untrusted=True))).text)
    finally:
        settings = {"identity": {"audiences": [AUDIENCE]}}
        server.store.triggers.set_settings("p", "t1", settings)
    assert (claims["source"], claims["sub"]) == ("fork", "project:p:trigger:t1:fork")


def test_a_request_without_the_flavor_header_gets_no_token(server, metadata_of):
    answer = ask(server, metadata_of(stored()), **{"Metadata-Flavor": ""})
    assert answer.status_code == 403


@pytest.mark.parametrize("audience", ["", " ", "two words", "x" * 513, "line\nbreak"])
def test_an_audience_that_is_none_is_refused_when_it_is_set(server, audience):
    answer = server.http.put(
        "/buildrunner/v1/projects/p/triggers/t1/settings",
        json={"identity": {"audiences": [audience]}},
    )
    assert answer.status_code == 400
    assert "is no audience" in answer.text


class TokenService(BaseHTTPRequestHandler):
    """A cloud's service that exchanges an identity token for an access token."""

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"])).decode()
        requested = {name: values[0] for name, values in parse_qs(body).items()}
        claims = verified(
            self.server.issuer, requested["subject_token"], audience=requested["audience"]
        )
        token = {"access_token": f"access of {claims['sub']}", "expires_in": 3600}
        answer = json.dumps({**token, "token_type": "Bearer", "issued_token_type": "x"}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_):
        pass


def test_google_auth_exchanges_a_token_by_workload_identity_federation(server, metadata_of):
    service = HTTPServer(("127.0.0.1", 0), TokenService)
    service.issuer = server
    threading.Thread(target=service.serve_forever, daemon=True).start()
    source = f"http://{metadata_of(stored())}{IDENTITY}?audience={AUDIENCE}"
    try:
        credentials = identity_pool.Credentials.from_info(
            {
                "type": "external_account",
                "audience": AUDIENCE,
                "subject_token_type": "urn:ietf:params:oauth:token-type:jwt",
                "token_url": f"http://127.0.0.1:{service.server_address[1]}/v1/token",
                "credential_source": {"url": source, "headers": {"Metadata-Flavor": "Google"}},
            }
        )
        credentials.refresh(google.auth.transport.requests.Request())
    finally:
        service.shutdown()
        service.server_close()
    assert credentials.token == "access of project:p:trigger:t1:ref:refs/heads/main"


def flags(*given):
    parser = argparse.ArgumentParser()
    schedules.configure(parser)
    return parser.parse_args(["settings", "deploy", *given])


@pytest.mark.parametrize(
    ("given", "before", "after"),
    [
        (["--audience", "a", "--audience", "b"], {}, {"audiences": ["a", "b"]}),
        (["--audience", ""], {"audiences": ["a"]}, {"audiences": []}),
        (["--identity-forks"], {"audiences": ["a"]}, {"audiences": ["a"], "forks": True}),
        (["--identity-forks", "false"], {"forks": True}, {"forks": False}),
        (["--jitter", "1s"], {"audiences": ["a"]}, {"audiences": ["a"]}),
    ],
)
def test_flags_set_audiences_and_leave_the_rest(given, before, after):
    changed = schedules.changed_settings({"identity": before}, flags(*given))
    assert changed["identity"] == after


def test_the_form_of_the_page_keeps_audiences(server):
    path = "/triggers/p/t1"
    both = {"identity": {"audiences": [AUDIENCE, "b"], "forks": True}}
    server.store.triggers.set_settings("p", "t1", both)
    try:
        text = server.http.get(path).text
        fields = dict(re.findall(r'name="(csrf|audiences)" value="([^"]*)"', text))
        assert 'name="identityForks" value="true" checked' in text
        form = {**fields, "identityForks": "true", "jitter": "6s"}
        server.http.post(f"{path}/settings", data=form)
        assert server.store.triggers.settings("p", "t1")["identity"] == both["identity"]
    finally:
        settings = {"identity": {"audiences": [AUDIENCE]}}
        server.store.triggers.set_settings("p", "t1", settings)
