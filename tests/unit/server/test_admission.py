"""Whatever comes in is a build to keep, or a reason: never a surprise."""

import json
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from buildrunner.errors import BuildrunnerError, ConfigError
from buildrunner.server.services.queueing import Arrival, admit, refused
from buildrunner.server.services.triggers import updated
from buildrunner.sources.policy import SourcePolicy
from buildrunner.spec.model.build import Build
from buildrunner.spec.model.trigger import BuildTrigger
from buildrunner.spec.reading.decode import decode_message
from buildrunner.spec.writing import encode_message
from buildrunner.triggers.build import manual_run, webhook_run
from buildrunner.triggers.check import check_trigger

NOW = datetime(2026, 1, 1, tzinfo=UTC)
ARRIVAL = Arrival(
    build_id="6f0b0000-0000-4000-8000-000000000000",
    project="p",
    location="global",
    now=NOW,
    public_url="http://127.0.0.1",
    policy=SourcePolicy(),
)
STEP = {"name": "busybox"}

NAMES = [*Build.__struct_encode_fields__, *BuildTrigger.__struct_encode_fields__]
SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8),
    st.sampled_from(["$_X", "${_X", "$$", "600s", "SUCCESS", "gs://b/o", "^main$", "refs/heads/m"]),
)  # fmt: skip
KEYS = st.one_of(
    st.sampled_from(
        [*NAMES, "name", "args", "env", "url", "repository", "push", "branch", "secret", "ref"]
    ),
    st.text(max_size=5),
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(KEYS, inner, max_size=5)),
    max_leaves=20,
)
BODIES = st.dictionaries(KEYS, VALUES, max_size=6)


@settings(deadline=None)
@given(BODIES, st.booleans())
def test_any_body_is_a_build_or_is_refused(body, with_steps):
    if with_steps:
        body = {**body, "steps": [STEP]}
    try:
        new = admit(body, ARRIVAL)
    except BuildrunnerError:
        return
    json.dumps(new.document, allow_nan=False)
    assert decode_message(Build, new.document).ok
    again = admit(new.request, ARRIVAL)
    assert (again.document, again.request) == (new.document, new.request)


@settings(deadline=None)
@given(BODIES, VALUES)
def test_any_body_is_a_trigger_or_is_refused_and_runs_or_says_why_not(body, payload):
    loaded = decode_message(BuildTrigger, body, outputs=False)
    if not loaded.ok:
        return
    trigger = loaded.value
    check_trigger(trigger)
    for run in (lambda: manual_run(trigger, None), lambda: webhook_run(trigger, payload)):
        try:
            made = run()
        except BuildrunnerError:
            continue
        assert decode_message(Build, made.request).ok
        failed = refused(made.request, ARRIVAL, "no")
        json.dumps(failed.document, allow_nan=False)
        assert decode_message(Build, failed.document).ok
        assert failed.request == made.request
    assert updated({"id": "1"}, encode_message(trigger), "")["id"] == "1"


def test_what_is_shown_has_the_service_s_own_facts():
    new = admit({"steps": [STEP], "queueTtl": "60s"}, ARRIVAL)
    assert new.document | {"logUrl": ""} == {
        "name": f"projects/p/locations/global/builds/{ARRIVAL.build_id}",
        "id": ARRIVAL.build_id,
        "projectId": "p",
        "status": "QUEUED",
        "steps": [STEP],
        "createTime": "2026-01-01T00:00:00Z",
        "timeout": "3600s",
        "queueTtl": "60s",
        "logUrl": "",
    }
    assert new.expires_at == NOW + timedelta(seconds=60)
    assert new.request == {"steps": [STEP], "queueTtl": "60s"}


@pytest.mark.parametrize(
    "options",
    [
        {"pool": {"name": "projects/prod/locations/global/workerPools/prod"}},
        {"pool": {"name": "prod"}},
        {"workerPool": "prod"},
        {"pool": {"name": "$_POOL"}},
    ],
)
def test_no_build_of_another_project_gets_a_pool(options):
    """Issue: each project got the pools of all others, with their isolation and nodes."""
    may = {"is_pool": lambda _: True, "may_use_pool": lambda pool, project: project == pool}
    values = {"_POOL": "prod"} if "$_POOL" in str(options) else {}
    body = {"steps": [STEP], "options": options, "substitutions": values}
    with pytest.raises(ConfigError) as refused:
        admit(body, replace(ARRIVAL, **may))
    assert "the pool prod is not for builds of project p" in refused.value.problems[0].text()
    assert admit(body, replace(ARRIVAL, project="prod", **may)).pool == "prod"


def test_a_build_that_can_not_run_ends_no_other():
    arrival = replace(ARRIVAL, supersede="cancel_all", group="g", request_id="r", untrusted=True)
    new = refused({"steps": [STEP]}, arrival, "no")
    assert (new.document["status"], new.document["statusDetail"]) == ("FAILURE", "no")
    assert (new.supersede, new.group, new.request_id, new.untrusted) == ("", "g", "r", True)


@pytest.mark.parametrize(
    "source",
    [
        {"storageSource": {"bucket": "buildrunner-sources", "object": "q/archives/x.tar"}},
        {"storageSource": {"bucket": "buildrunner-sources", "object": "p/../q/archives/x.tar"}},
        {"storageSource": {"bucket": "gs://buildrunner-sources/", "object": "q/x.tar"}},
        {"storageSourceManifest": {"bucket": "buildrunner-sources", "object": "q/x.json"}},
        {"gitSource": {"url": "file:///etc"}},
    ],
)
def test_places_of_others_are_no_source(source):
    with pytest.raises(ConfigError):
        admit({"steps": [STEP], "source": source}, ARRIVAL)
