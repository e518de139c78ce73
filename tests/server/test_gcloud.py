"""The real gcloud, pointed here by its own endpoint overrides.

Where no gcloud is installed these tests are not collected; pytest says so at its end (conftest.py).
"""

import json
import os
import shutil
import subprocess
import tarfile
import threading

import pytest

from tests.api_server import api_server
from tests.fixtures_gcs import running_gcs

GCLOUD = shutil.which("gcloud")
CONFIG = """\
steps:
- name: busybox
  args: [echo, hello, $_X]
substitutions: {_X: "1"}
"""
TRIGGER = """\
name: my-trigger
description: first
build:
  steps:
  - name: busybox
    args: [echo, $_X]
substitutions: {_X: "5"}
approvalConfig: {approvalRequired: true}
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with api_server(tmp_path_factory.mktemp("server")) as server:
        yield server


@pytest.fixture(scope="module")
def gcs():
    with running_gcs() as gcs:
        yield gcs


@pytest.fixture(scope="module")
def gcloud(server, tmp_path_factory):
    folder = tmp_path_factory.mktemp("gcloud")
    (folder / "cloudbuild.yaml").write_text(CONFIG)
    (folder / "trigger.yaml").write_text(TRIGGER)
    environ = {
        "PATH": os.environ["PATH"],
        "HOME": str(folder),
        "CLOUDSDK_CONFIG": str(folder / "config"),
        "CLOUDSDK_CORE_PROJECT": "p",
        "CLOUDSDK_CORE_DISABLE_PROMPTS": "1",
        "CLOUDSDK_CORE_DISABLE_USAGE_REPORTING": "1",
        "CLOUDSDK_CORE_DISABLE_FILE_LOGGING": "1",
        "CLOUDSDK_COMPONENT_MANAGER_DISABLE_UPDATE_CHECK": "1",
        "CLOUDSDK_SURVEY_DISABLE_PROMPTS": "1",
        "CLOUDSDK_AUTH_DISABLE_CREDENTIALS": "1",
        "CLOUDSDK_API_ENDPOINT_OVERRIDES_CLOUDBUILD": f"{server.url}/",
    }

    def run(*args, code=0, **more):
        done = subprocess.run(
            [GCLOUD, *args],
            cwd=folder,
            env={**environ, **more},
            capture_output=True,
            text=True,
            timeout=100,
            check=False,
        )
        assert done.returncode == code, done.stderr
        return done

    run.folder = folder
    return run


def submit(gcloud, *args):
    done = gcloud("builds", "submit", "--no-source", "--async", "--format=json", *args)
    return json.loads(done.stdout)["id"]


@pytest.mark.parametrize(("status", "code"), [("SUCCESS", 0), ("FAILURE", 1)])
def test_submit_waits_for_the_end(server, gcloud, status, code):
    server.woken.clear()
    done = []

    def wait():
        done.append(
            gcloud("builds", "submit", "--no-source", f"--substitutions=_X={status}", code=code)
        )

    waiting = threading.Thread(target=wait)
    waiting.start()
    assert server.woken.wait(60)
    (build,) = server.store.builds.page("p", filter=f'substitutions._X="{status}"').builds
    server.run(build.id, status)
    waiting.join()
    assert build.id in done[0].stderr
    if code:
        assert f'completed with status "{status}"' in done[0].stderr


def test_submit_reports_what_is_wrong(gcloud):
    done = gcloud("builds", "submit", "--no-source", "--async", "--substitutions=_Y=1", code=1)
    assert 'key "_Y" in the substitution data is not matched' in done.stderr


def test_submit_uploads_the_source_where_the_override_says(server, gcloud, gcs):
    bucket = gcs.bucket("staging-of-gcloud")
    source = gcloud.folder / "source"
    source.mkdir()
    (source / "hello.txt").write_text("hello")
    done = gcloud(
        *("builds", "submit", "source", "--async", "--format=json"),
        *("--config=cloudbuild.yaml", f"--gcs-source-staging-dir=gs://{bucket}/staging"),
        CLOUDSDK_API_ENDPOINT_OVERRIDES_STORAGE=f"{gcs.url}/storage/v1/",
    )
    where = json.loads(done.stdout)["source"]["storageSource"]
    assert where["bucket"] == bucket
    kept = server.http.get("/v1/projects/p/builds").json()["builds"][0]
    assert kept["source"]["storageSource"]["object"] == where["object"]
    archive = gcloud.folder / "staged.tgz"
    archive.write_bytes(gcs.get(bucket, where["object"]))
    with tarfile.open(archive) as tar:
        assert "hello.txt" in [name.removeprefix("./") for name in tar.getnames()]


@pytest.mark.parametrize("release", [[], ["beta"]])
def test_the_log_is_said_to_be_elsewhere_and_nothing_crashes(server, gcloud, release):
    build_id = submit(gcloud)
    server.run(build_id, "SUCCESS")
    done = gcloud(*release, "builds", "log", build_id)
    assert "crashed" not in done.stderr
    assert done.stdout == ""


def test_a_build_that_chose_where_its_log_goes_is_shown_so(server):
    made = server.create(options={"logging": "LEGACY"})
    agent = {"User-Agent": "google-cloud-sdk gcloud/528.0.0 command/gcloud.builds.submit x/y"}
    shown = server.http.get(f"/v1/projects/p/builds/{made}", headers=agent).json()
    assert shown["options"]["logging"] == "LEGACY"
    named = server.create(logsBucket="gs://mine")
    shown = server.http.get(f"/v1/projects/p/builds/{named}", headers=agent).json()
    assert (shown["logsBucket"], "options" in shown) == ("gs://mine", False)


def test_list_shows_what_the_filter_finds(server, gcloud):
    build_id = submit(gcloud, "--substitutions=_X=listed")
    found = gcloud("builds", "list", "--ongoing", "--format=value(id)").stdout.split()
    assert build_id in found
    server.run(build_id, "SUCCESS")
    found = gcloud("builds", "list", "--filter=status=SUCCESS", "--format=value(id)").stdout
    assert build_id in found.split()
    assert build_id not in gcloud("builds", "list", "--ongoing", "--format=value(id)").stdout


def test_describe_shows_the_build_as_it_is(gcloud):
    build_id = submit(gcloud)
    shown = json.loads(gcloud("builds", "describe", build_id, "--format=json").stdout)
    assert shown["steps"][0]["args"] == ["echo", "hello", "1"]
    assert "options" not in shown


def test_cancel_stops_a_build(server, gcloud):
    build_id = submit(gcloud)
    assert "Cancelled" in gcloud("builds", "cancel", build_id).stderr
    assert server.store.builds.find(build_id).status == "CANCELLED"


def test_triggers_are_imported_listed_run_approved_exported_and_deleted(server, gcloud):
    gcloud("builds", "triggers", "import", "--source=trigger.yaml")
    listed = gcloud("builds", "triggers", "list", "--format=value(name)").stdout
    assert listed.split() == ["my-trigger"]
    shown = json.loads(
        gcloud("builds", "triggers", "describe", "my-trigger", "--format=json").stdout
    )
    assert shown["description"] == "first"

    ran = gcloud(
        *("builds", "triggers", "run", "my-trigger", "--substitutions=_X=9", "--format=json")
    )
    build = json.loads(ran.stdout)["metadata"]["build"]
    assert build["status"] == "PENDING"
    assert build["steps"][0]["args"] == ["echo", "9"]
    gcloud("beta", "builds", "approve", build["id"], "--comment=fine")
    approved = server.store.builds.find(build["id"])
    assert approved.status == "QUEUED"
    assert approved.document["approval"]["result"]["comment"] == "fine"

    gcloud("beta", "builds", "triggers", "export", "my-trigger", "--destination=out.yaml")
    exported = gcloud.folder / "out.yaml"
    exported.write_text(exported.read_text().replace("first", "second"))
    gcloud("builds", "triggers", "import", "--source=out.yaml")
    (trigger,), _ = server.store.triggers.page("p")
    assert trigger["description"] == "second"
    assert trigger["id"] == shown["id"]

    gcloud("builds", "triggers", "delete", "my-trigger")
    assert server.store.triggers.page("p") == ([], "")


def test_a_token_goes_into_a_file_that_gcloud_reads(tmp_path, gcloud):
    with api_server(tmp_path, auth=True) as server:
        good, bad = tmp_path / "token", tmp_path / "bad"
        good.write_text(server.token("ci", "read", "submit"))
        bad.write_text("brt_wrong")
        here = {
            "CLOUDSDK_API_ENDPOINT_OVERRIDES_CLOUDBUILD": f"{server.url}/",
            "CLOUDSDK_AUTH_DISABLE_CREDENTIALS": "",
        }
        gcloud("builds", "list", CLOUDSDK_AUTH_ACCESS_TOKEN_FILE=str(good), **here)
        done = gcloud("builds", "list", code=1, CLOUDSDK_AUTH_ACCESS_TOKEN_FILE=str(bad), **here)
        assert "unknown or was revoked" in done.stderr
