"""Provenance of real builds: of a folder, of a repository, on a server."""

from __future__ import annotations

import json
import os
import subprocess
import uuid
from base64 import b64decode
from contextlib import closing
from pathlib import Path

import jwt
import pytest
from cryptography.hazmat.primitives.serialization import load_pem_public_key
from sigstore.dsse import Envelope, _verify

from tests.conftest import remove_image
from tests.e2e.submit_bench import Bench
from tests.e2e.test_remote_submit import Serving, until
from tests.fixtures_git import HttpServer, Repository
from tests.registry_servers import Fault, faulty_proxy
from tests.sigstore_server import sigstore_server

pytestmark = pytest.mark.docker

VERIFIED = {"requestedVerifyOption": "VERIFIED"}


class ProofBench(Bench):
    """Builds that push one image that is there already, and upload one file."""

    def image_at(self, address: str) -> str:
        name = f"{address}/proof-{uuid.uuid4().hex[:8]}:1"
        self.names.append(name)
        self.engine.import_image(name, [bytes(1024)], cmd=["/none"], env=[f"U={uuid.uuid4()}"])
        return name

    def config(self, image: str, **more: object) -> str:
        steps = [{"name": self.image, "script": "echo made > out.txt"}]
        return json.dumps({"steps": steps, "images": [image], **more})

    def statement_of(self, build_id: str) -> dict:
        """The statement, once sigstore's library has verified its signature."""
        key = self.run("builds", "provenance", "--public-key").out.encode()
        line = self.run("builds", "provenance", build_id).out.encode()
        verified = _verify(load_pem_public_key(key), Envelope._from_json(line))
        assert verified
        return json.loads(b64decode(json.loads(line)["payload"]))


@pytest.fixture
def bench(tmp_path, docker_engine, busybox):
    folder = tmp_path / "source"
    folder.mkdir()
    made = ProofBench(folder, tmp_path / "data", docker_engine, busybox)
    made.names = []
    yield made
    for name in made.names:
        remove_image(name)


def test_a_build_that_pushes_has_signed_provenance(bench, registry, tmp_path):
    image = bench.image_at(registry.address)
    arts = tmp_path / "arts"
    arts.mkdir()
    objects = {"objects": {"location": "gs://arts/d", "paths": ["out.txt"]}}
    options = {"requestedVerifyOption": "VERIFIED"}
    bench.write("cloudbuild.yaml", bench.config(image, artifacts=objects, options=options))
    done = bench.run("submit", ".", "--storage", f"gs://arts=file://{arts}")
    assert done.code == 0, done.err
    assert "warning" not in done.err
    statement = bench.statement_of(done.build_id)
    pushed, uploaded = statement["subject"]
    build = bench.builds("describe", done.build_id)
    digest = build["results"]["images"][0]["digest"]
    assert pushed == {
        "name": image.rpartition(":")[0],
        "digest": {"sha256": digest.removeprefix("sha256:")},
    }
    sums = subprocess.run(["sha256sum", arts / "d/out.txt"], capture_output=True, text=True)
    assert uploaded["digest"] == {"sha256": sums.stdout.split()[0]}
    config = subprocess.run(
        ["sha256sum", bench.folder / "cloudbuild.yaml"], capture_output=True, text=True
    )
    external = statement["predicate"]["buildDefinition"]["externalParameters"]
    assert external["config"] == {
        "path": "cloudbuild.yaml",
        "digest": {"sha256": config.stdout.split()[0]},
    }
    assert "source" not in external


def test_a_build_of_a_repository_names_its_commit(bench, registry, tmp_path):
    image = bench.image_at(registry.address)
    own = Repository(tmp_path / "own")
    commit = own.commit({"cloudbuild.yaml": bench.config(image).encode()})
    own.push("main")
    with closing(HttpServer(own.root)) as server:
        done = bench.run("submit", server.url(), "--revision", "main")
    assert done.code == 0, done.err + done.out
    definition = bench.statement_of(done.build_id)["predicate"]["buildDefinition"]
    source = definition["externalParameters"]["source"]
    assert source == {
        "repository": server.url(),
        "commit": commit,
        "ref": "refs/heads/main",
    }
    assert definition["resolvedDependencies"][0]["digest"] == {"gitCommit": commit}


def test_a_secret_of_a_step_is_not_in_the_provenance(bench, registry):
    image = bench.image_at(registry.address)
    secret = {"versionName": "projects/p/secrets/s/versions/1", "env": "WORD"}
    config = json.loads(bench.config(image, availableSecrets={"secretManager": [secret]}))
    config["steps"][0]["secretEnv"] = ["WORD"]
    config["substitutions"] = {"_COPY": "say hunter2-of-tests"}
    config["options"] = {"substitutionOption": "ALLOW_LOOSE"}
    bench.write("cloudbuild.yaml", json.dumps(config))
    environ = {"WORD_OF_TESTS": "hunter2-of-tests"}
    done = bench.run("submit", ".", "--secret", "s=env:WORD_OF_TESTS", environ=environ)
    assert done.code == 0, done.err
    statement = json.dumps(bench.statement_of(done.build_id))
    assert "hunter2-of-tests" not in statement
    assert '"_COPY": "say ***"' in statement


def broken_key(bench: Bench) -> None:
    bench.write_own_settings('[provenance]\nkey = "missing.pem"\n')


def test_a_verified_build_fails_without_its_signing_key(bench, registry):
    broken_key(bench)
    image = bench.image_at(registry.address)
    options = {"requestedVerifyOption": "VERIFIED"}
    bench.write("cloudbuild.yaml", bench.config(image, options=options))
    done = bench.run("submit", ".")
    assert done.code == 1
    assert "ERROR: the signing key" in done.out
    assert "missing.pem can't be read" in done.out


def test_a_verified_build_fails_without_the_certificate_of_its_key(bench, registry):
    bench.write_own_settings('[provenance]\ncertificate = "missing.crt"\n')
    image = bench.image_at(registry.address)
    options = {"requestedVerifyOption": "VERIFIED"}
    bench.write("cloudbuild.yaml", bench.config(image, options=options))
    done = bench.run("submit", ".")
    assert done.code == 1
    assert "missing.crt can't be read" in done.out


def test_any_other_build_succeeds_without_its_signing_key(bench, registry):
    broken_key(bench)
    image = bench.image_at(registry.address)
    bench.write("cloudbuild.yaml", bench.config(image))
    done = bench.run("submit", ".")
    assert done.code == 0
    assert "the build has no provenance: the signing key" in done.err
    assert bench.run("builds", "provenance", done.build_id).code == 2


def test_a_verified_build_is_refused_where_provenance_is_off(bench):
    bench.write_own_settings("[provenance]\nenabled = false\n")
    options = {"requestedVerifyOption": "VERIFIED"}
    bench.write("cloudbuild.yaml", bench.config("r.example/x:1", options=options))
    done = bench.run("submit", ".")
    assert done.code == 2
    assert "options.requestedVerifyOption: VERIFIED needs provenance" in done.err


def test_a_server_signs_with_its_own_key_and_names_itself(bench, registry, tmp_path):
    environ = {
        **os.environ,
        "XDG_DATA_HOME": str(tmp_path / "other"),
        "XDG_CONFIG_HOME": str(tmp_path / "config"),
        "DOCKER_CONFIG": str(tmp_path / "docker"),
    }
    settings = tmp_path / "config" / "buildrunner" / "config.toml"
    settings.parent.mkdir(parents=True)
    settings.write_text("[provenance]\npush = true\n")
    serving = Serving(Path(tmp_path / "server"), environ)
    serving.start()
    try:
        bench.environ["BUILDRUNNER_SERVER"] = serving.url
        bench.environ["BUILDRUNNER_TOKEN"] = serving.token
        image = bench.image_at(registry.address)
        bench.write("cloudbuild.yaml", bench.config(image))
        done = bench.run("submit", ".")
        assert done.code == 0, done.err
        statement = bench.statement_of(done.build_id)
        checked = bench.run("verify", image, "--server", serving.url)
        assert checked.code == 0, checked.err
        assert "is verified\n" in checked.out
        assert f"  server    {serving.url}\n" in checked.out
        refused = bench.run("verify", image, "--server", serving.url, "--ref", "refs/heads/main")
        assert refused.code == 1
        assert "it was not built from a Git repository" in refused.err
    finally:
        serving.stop()
    details = statement["predicate"]["runDetails"]
    assert details["builder"]["id"] == serving.url
    assert details["metadata"]["invocationId"].endswith(f"/builds/{done.build_id}")
    assert oct((tmp_path / "server" / "provenance-key.pem").stat().st_mode)[-3:] == "600"


def test_a_server_signs_by_sigstore_for_its_own_identity(bench, registry, tmp_path):
    settings = tmp_path / "config" / "buildrunner" / "config.toml"
    settings.parent.mkdir(parents=True)
    settings.write_text("[provenance]\npush = true\nsigstore = 'trust.json'\n")
    serving = Serving(
        Path(tmp_path / "server"),
        {
            **os.environ,
            "XDG_DATA_HOME": str(tmp_path / "other"),
            "XDG_CONFIG_HOME": str(tmp_path / "config"),
            "DOCKER_CONFIG": str(tmp_path / "docker"),
        },
    )
    with sigstore_server() as sigstore:
        trust = sigstore.write_trust(settings.parent)
        serving.start()
        try:
            bench.environ["BUILDRUNNER_SERVER"] = serving.url
            bench.environ["BUILDRUNNER_TOKEN"] = serving.token
            image = bench.image_at(registry.address)
            bench.write("cloudbuild.yaml", bench.config(image, options=VERIFIED))
            done = bench.run("submit", ".")
            assert done.code == 0, done.err
            assert "warning" not in done.err
            policy = "sigstore: {}\nidentities:\n- {{issuer: {}, subject: {}/{}}}\n"
            shop = policy.format(trust, serving.url, serving.url, "project:*:trigger::no-ref")
            bench.write("policy.yaml", shop)
            checked = bench.run("verify", image, "--policy", "policy.yaml")
            assert checked.code == 0, checked.err
            assert f"  identity  {serving.url}/project:" in checked.out
            shown = bench.run("verify", image, "--policy", "policy.yaml", "--format", "json")
            facts = json.loads(shown.out)
            assert (facts["verified"], facts["identity"]["issuer"]) == (True, serving.url)
            statement = json.loads(
                bench.run("builds", "provenance", done.build_id, "--statement").out
            )
            assert statement == facts["statement"]
            bench.write("policy.yaml", shop.replace("project:*", "project:other"))
            refused = bench.run("verify", image, "--policy", "policy.yaml")
            assert refused.code == 1
            assert "is refused: its provenance is signed by another identity: " in refused.err
        finally:
            serving.stop()


def test_without_sigstore_a_build_succeeds_with_a_warning_and_a_verified_one_fails(bench, registry):
    token = {"iss": "https://i", "sub": "s", "aud": "sigstore", "iat": 1, "exp": 1 << 33}
    (bench.folder / "token").write_text(jwt.encode(token, "k" * 32))
    with sigstore_server() as gone:
        trust = gone.write_trust(bench.folder)
    bench.write_own_settings(
        f"[provenance]\nsigstore = '{trust}'\nidentity_token = '{bench.folder / 'token'}'\n"
    )
    bench.write("cloudbuild.yaml", bench.config(bench.image_at(registry.address)))
    done = bench.run("submit", ".")
    assert done.code == 0
    reason = "no certificate of Fulcio for the provenance: "
    assert f"the build has no provenance: {reason}" in done.err
    assert "Connection refused" in done.err
    bench.write("cloudbuild.yaml", bench.config(bench.image_at(registry.address), options=VERIFIED))
    done = bench.run("submit", ".")
    assert done.code == 1
    assert f"ERROR: {reason}" in done.out


def pushing(bench: Bench) -> None:
    bench.write_own_settings("[provenance]\npush = true\n")


def digest_of(bench: Bench, build_id: str) -> str:
    return bench.builds("describe", build_id)["results"]["images"][0]["digest"]


def test_a_stranger_verifies_an_image_by_its_name_alone(bench, registry, tmp_path):
    pushing(bench)
    image = bench.image_at(registry.address)
    own = Repository(tmp_path / "own")
    commit = own.commit({"cloudbuild.yaml": bench.config(image).encode()})
    own.push("main")
    with closing(HttpServer(own.root)) as server:
        done = bench.run("submit", server.url(), "--revision", "main")
    assert done.code == 0, done.err + done.out
    assert "warning" not in done.err
    key = bench.run("builds", "provenance", "--public-key").out
    (bench.folder / "ci.pub").write_text(key)
    policy = (
        "keys: [ci.pub]\nbuilders: ['urn:buildrunner:local']\n"
        f"sources: ['{server.url()}']\nrefs: [refs/heads/main]\n"
    )
    bench.write("policy.yaml", policy)
    strange = {"environ": {"XDG_DATA_HOME": str(tmp_path / "strange")}}
    checked = bench.run("verify", image, "--policy", "policy.yaml", **strange)
    assert checked.code == 0, checked.err
    repository = image.rpartition(":")[0]
    assert f"{repository}@{digest_of(bench, done.build_id)} is verified" in checked.out
    assert f"  source    commit {commit} of {server.url()} (refs/heads/main)\n" in checked.out
    assert "  config    cloudbuild.yaml, a file of this commit, sha256:" in checked.out
    shown = bench.run("verify", image, "--policy", "policy.yaml", "--format", "json", **strange)
    facts = json.loads(shown.out)
    assert facts["verified"] is True
    assert (facts["commit"], facts["is_config_of_commit"]) == (commit, True)
    bench.write("policy.yaml", policy.replace("refs/heads/main", "refs/heads/release"))
    refused = bench.run("verify", image, "--policy", "policy.yaml", **strange)
    assert refused.code == 1
    assert "is refused: it was built from refs/heads/main" in refused.err
    assert "allowed: refs/heads/release" in refused.err


def test_an_image_without_provenance_is_refused(bench, registry):
    image = bench.image_at(registry.address)
    bench.write("cloudbuild.yaml", bench.config(image))
    assert bench.run("submit", ".").code == 0
    (bench.folder / "ci.pub").write_text(bench.run("builds", "provenance", "--public-key").out)
    refused = bench.run("verify", image, "--key", "ci.pub")
    assert refused.code == 1
    assert "is refused: it has no provenance" in refused.err
    refused = bench.run("verify", image)
    assert refused.code == 2
    assert "is not verified: it has no provenance, and there is no key" in refused.err


def test_a_file_is_verified_with_the_provenance_beside_it(bench, registry, tmp_path):
    arts = tmp_path / "arts"
    arts.mkdir()
    config = json.loads(bench.config("unused"))
    del config["images"]
    config["artifacts"] = {"objects": {"location": "gs://arts", "paths": ["out.txt"]}}
    bench.write("cloudbuild.yaml", json.dumps(config))
    done = bench.run("submit", ".", "--storage", f"gs://arts=file://{arts}")
    assert done.code == 0, done.err
    (bench.folder / "ci.pub").write_text(bench.run("builds", "provenance", "--public-key").out)
    (arts / "out.txt.intoto.jsonl").write_text(bench.run("builds", "provenance", done.build_id).out)
    checked = bench.run("verify", str(arts / "out.txt"), "--key", "ci.pub")
    assert checked.code == 0, checked.err
    (arts / "out.txt").write_text("changed\n")
    refused = bench.run("verify", str(arts / "out.txt"), "--key", "ci.pub")
    assert refused.code == 1
    assert "its provenance is about another artifact" in refused.err


def test_without_a_key_verify_prints_the_claims_and_fails(bench, registry, tmp_path):
    pushing(bench)
    image = bench.image_at(registry.address)
    bench.write("cloudbuild.yaml", bench.config(image))
    assert bench.run("submit", ".").code == 0
    done = bench.run("verify", image)
    assert done.code == 2
    assert "is not verified. Its provenance claims:\n" in done.out, done.err
    assert "  server    urn:buildrunner:local\n" in done.out
    assert "  key " not in done.out
    assert "is not verified: there is no key to verify with" in done.err
    assert "--public-key" in done.err
    shown = bench.run("verify", image, "--format", "json")
    assert shown.code == 2
    assert json.loads(shown.out)["verified"] is False


def test_the_key_of_a_server_is_fetched_by_https_only(bench):
    done = bench.run("verify", "r.example/app:1", "--server", "http://ci.example.com")
    assert done.code == 2
    assert "the key of http://ci.example.com can't be trusted" in done.err
    assert "use https" in done.err


@pytest.mark.parametrize(("verify_option", "code"), [("VERIFIED", 1), ("BEST_EFFORT", 0)])
def test_a_registry_that_refuses_provenance_fails_only_a_verified_build(
    bench, registry, verify_option, code
):
    pushing(bench)
    fault = Fault("PUT", ".att", 403, times=10**6)
    with faulty_proxy(registry.address, fault) as proxy:
        image = bench.image_at(proxy)
        options = {"requestedVerifyOption": verify_option}
        bench.write("cloudbuild.yaml", bench.config(image, options=options))
        done = bench.run("submit", ".")
    assert done.code == code
    assert fault.hits
    text = done.out if code else done.err
    assert "is not in its registry: the registry answers 403" in text


def test_sboms_are_made_after_the_build_and_attached(bench, registry):
    bench.write_own_settings("[provenance]\npush = true\nsbom = ['spdx']\n")
    image = bench.image_at(registry.address)
    bench.write("cloudbuild.yaml", bench.config(image))
    done = bench.run("submit", ".")
    assert done.code == 0, done.err
    (bench.folder / "ci.pub").write_text(bench.run("builds", "provenance", "--public-key").out)

    def types() -> list[str]:
        lines = bench.run("builds", "provenance", done.build_id).out.splitlines()
        return [
            json.loads(b64decode(json.loads(line)["payload"]))["predicateType"] for line in lines
        ]

    until(lambda: len(types()) > 1, "the SBOM is there")
    assert types() == ["https://slsa.dev/provenance/v1", "https://spdx.dev/Document"]
    checked = bench.run("verify", image, "--key", "ci.pub")
    assert checked.code == 0, checked.err


def test_a_build_that_waits_for_its_sboms_has_them_at_its_end_or_a_warning(bench, registry):
    bench.write_own_settings("[provenance]\nsbom = ['spdx']\nsbom_wait = true\n")
    image = bench.image_at(registry.address)
    bench.write("cloudbuild.yaml", bench.config(image))
    done = bench.run("submit", ".")
    assert done.code == 0, done.err
    assert "no SBOM" not in done.err
    assert len(bench.run("builds", "provenance", done.build_id).out.splitlines()) == 2
    fault = Fault("GET", "/blobs/", 403, times=10**6)
    with faulty_proxy(registry.address, fault) as proxy:
        image = bench.image_at(proxy)
        bench.write("cloudbuild.yaml", bench.config(image))
        done = bench.run("submit", ".")
    assert done.code == 0, done.err
    assert f"warning: no SBOM of {image.rpartition(':')[0]}@sha256:" in done.err
    assert "answers 403" in done.err
