"""Who may have a secret: the decision, case by case."""

from __future__ import annotations

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from buildrunner.plan.build_plan import SecretReference, StepPlan, VolumeMount, project_number
from buildrunner.plan.privilege import Privilege
from buildrunner.secrets.secret_name import forge_host, forge_token_name
from buildrunner.secrets.secret_scope import (
    Asker,
    Scope,
    Use,
    canonical_name,
    refusal_of,
    scope_text,
)

WHOLE = "projects/shop/secrets/key"
KEY = "projects/shop/locations/global/keyRings/r/cryptoKeys/k"
SHARED = Scope(projects=("shop",))


def build(**fields):
    return Asker(**{"use": Use.BUILD, "project": "shop", **fields})


def secret(variable):
    return SecretReference(
        variable, "kms", "projects/shop/locations/global/keyRings/r/cryptoKeys/k"
    )


A, B = (f"sha256:{one * 64}" for one in "ab")
APP = f"app@{A}"
BUILDER = "gcr.io/cloud-builders/gcloud"


def step(image=BUILDER, **fields):
    return StepPlan(index=0, id="deploy", image=image, **fields)


def missing(asker, name, scope=None, steps=()):
    refusal = refusal_of(asker, name, scope, steps)
    return refusal.missing if refusal else ""


@pytest.mark.parametrize("use", [Use.BUILD, Use.NOTIFIER, Use.WEBHOOK])
@pytest.mark.parametrize(
    ("name", "scope", "wanted"),
    [
        (WHOLE, None, ""),
        (KEY, None, ""),
        ("projects/shop/locations/eu/secrets/key", None, ""),
        ("projects/other/secrets/key", None, "project"),
        ("projects/shop2/secrets/key", None, "project"),
        ("projects/other/secrets/key", SHARED, ""),
        (KEY.replace("shop", "other"), None, "project"),
        (KEY.replace("shop", "other"), SHARED, ""),
        ("key", None, "project"),
        ("key", Scope(projects=("web",)), "project"),
        ("key", Scope(projects=("web", "shop")), ""),
        ("key", Scope(projects=("*",)), ""),
        ("key", Scope(triggers=("deploy",)), "project"),
        ("hooks-github", Scope(projects=("*",)), "server"),
        ("forge-github_com", Scope(projects=("*",)), "server"),
        ("status-github-com", Scope(projects=("*",)), "server"),
        ("projects/shop/secrets/hooks-github", None, ""),
    ],
)
def test_a_secret_goes_to_the_project_that_it_belongs_to_or_is_shared_with(
    use, name, scope, wanted
):
    assert missing(build(use=use), name, scope) == wanted


@pytest.mark.parametrize("name", [WHOLE, "key", "hooks-github"])
def test_a_build_that_is_not_trusted_gets_none_whatever_the_scope_says(name):
    asker = build(trusted=False, triggers=("id", "deploy"), ref="refs/heads/main")
    assert missing(asker, name, Scope(projects=("*",))) == "trust"


@pytest.mark.parametrize(
    ("scope", "fields", "wanted"),
    [
        (Scope(triggers=("deploy",)), {"triggers": ("7f", "deploy")}, ""),
        (Scope(triggers=("7f",)), {"triggers": ("7f", "deploy")}, ""),
        (Scope(triggers=("deploy",)), {"triggers": ("8e", "ci")}, "trigger"),
        (Scope(triggers=("deploy",)), {}, "trigger"),
        (Scope(refs=("refs/heads/main",)), {"ref": "refs/heads/main"}, ""),
        (Scope(refs=("refs/heads/main",)), {"ref": "refs/heads/maintenance"}, "ref"),
        (Scope(refs=("refs/heads/main",)), {"ref": "refs/tags/main"}, "ref"),
        (Scope(refs=("refs/heads/main",)), {"ref": "refs/heads/Main"}, "ref"),
        (Scope(refs=("refs/heads/main",)), {}, "ref"),
        (Scope(refs=("refs/heads/*",)), {}, "ref"),
        (Scope(refs=("refs/heads/release/*",)), {"ref": "refs/heads/release/1/2"}, ""),
        (Scope(refs=("refs/heads/a", "refs/tags/v*")), {"ref": "refs/tags/v1"}, ""),
        (Scope(uses=("builds",)), {}, ""),
        (Scope(uses=("notifiers",)), {}, "use"),
        (Scope(uses=("notifiers",)), {"use": Use.NOTIFIER}, ""),
        (Scope(uses=("builds",)), {"use": Use.WEBHOOK}, "use"),
        (Scope(triggers=("deploy",)), {"use": Use.NOTIFIER}, "trigger"),
        (Scope(refs=("refs/heads/*",)), {"use": Use.WEBHOOK}, "ref"),
        (Scope(images=(BUILDER,)), {"use": Use.NOTIFIER}, "image"),
    ],
)
def test_each_limit_must_be_kept(scope, fields, wanted):
    assert missing(build(**fields), WHOLE, scope, [step()]) == wanted


@pytest.mark.parametrize(
    ("limit", "used", "wanted"),
    [
        (BUILDER, step(BUILDER), ""),
        (BUILDER, step(f"{BUILDER}:1.2"), ""),
        (BUILDER, step(f"{BUILDER}@{A}"), ""),
        (BUILDER, step(BUILDER, args=("x",)), ""),
        (f"{BUILDER}:1.2", step(f"{BUILDER}:1.3"), "image"),
        (BUILDER, step(f"{BUILDER}-evil"), "image"),
        (BUILDER, step(f"evil.io/{BUILDER}"), "image"),
        (BUILDER, step(BUILDER, entrypoint="bash"), "image"),
        (BUILDER, step(BUILDER, script="#!/bin/sh\nid"), "image"),
        (APP, step(APP, env=("BRANCH_NAME=main", "_PR_NUMBER=7")), ""),
        (APP, step(APP, env=("_JAVA_OPTIONS=-javaagent:/workspace/evil.jar",)), "image"),
        (APP, step(APP, secrets=(secret("KEY"),)), ""),
        (APP, step(APP, secrets=(secret("LD_PRELOAD"),)), "image"),
        (APP, step(APP, secrets=(secret("KEY"), secret("NODE_OPTIONS"))), "image"),
        (APP, step(APP, env=("LD_PRELOAD=/workspace/evil.so",)), "image"),
        (APP, step(APP, volumes=(VolumeMount("v", "/usr/bin"),)), "image"),
        (f"localhost:5000/{APP}", step(f"localhost:5000/app:2@{A}"), ""),
        (f"localhost:5000/{APP}", step(f"localhost:6000/{APP}"), "image"),
        (APP, step(APP), ""),
        (f"app:1@{A}", step(APP), ""),
        (APP, step(f"app@{B}"), "image"),
        (APP, step("app"), "image"),
        ("app", step("app"), "image"),  # whoever pushes it next chooses what it is
        ("app:1", step("app:1"), "image"),
        ("app:1", step(f"app:1@{A}"), "image"),
    ],
)
def test_a_limit_to_images_is_for_steps_that_run_them_as_they_are(limit, used, wanted):
    assert missing(build(), WHOLE, Scope(images=(limit,)), [used]) == wanted


@pytest.mark.parametrize(
    ("name", "variables", "used", "wanted"),
    [
        ("projects/shop/secrets/api-key", (), "API_KEY", ""),
        ("projects/shop/secrets/api-key", (), "KEY", "image"),
        ("projects/shop/secrets/api-key", ("KEY", "OTHER"), "OTHER", ""),
        ("projects/shop/secrets/api-key", ("KEY",), "API_KEY", "image"),
        ("projects/shop/locations/global/keyRings/r/cryptoKeys/build.key", (), "BUILD_KEY", ""),
    ],
)
def test_a_step_of_a_limited_secret_has_the_variables_of_its_scope(name, variables, used, wanted):
    scope = Scope(images=(BUILDER,), variables=variables)
    assert missing(build(), name, scope, [step(secrets=(secret(used),))]) == wanted


@pytest.mark.parametrize(
    ("privilege", "said"),
    [
        (Privilege(docker_socket=True), "hold the engine's socket"),
        (Privilege(privileged=True), "are privileged"),
    ],
)
def test_a_limit_to_images_is_none_where_one_step_rules_over_the_others(privilege, said):
    scope = Scope(images=(BUILDER,))
    refusal = refusal_of(build(), WHOLE, scope, [step()], privilege)
    assert refusal is not None
    assert said in refusal.text
    assert "NO_DOCKER" in refusal.text
    assert refusal_of(build(), WHOLE, Scope(), [step()], privilege) is None


def test_one_step_of_another_image_is_enough_to_refuse():
    scope = Scope(images=(BUILDER,))
    refusal = refusal_of(build(), WHOLE, scope, [step(), step("alpine")])
    assert refusal is not None
    assert 'Step #0 - "deploy" runs alpine' in refusal.text


def test_what_is_of_another_project_is_refused_in_words_that_tell_nothing_of_it():
    for name in ("projects/web/secrets/key", "key"):
        there = refusal_of(build(), name, Scope(projects=("web",), triggers=("deploy",)))
        assert there is not None
        assert there == refusal_of(build(), name, None)
        assert there.hides


@pytest.mark.parametrize(
    ("asker", "name", "scope", "wanted"),
    [
        (Asker(use=Use.HOOK), "hooks-github", None, ""),
        (Asker(use=Use.HOOK), "key", Scope(projects=("*",)), "server"),
        (Asker(use=Use.HOOK), WHOLE, None, "server"),
        (Asker(use=Use.FORGE, forge="github.com"), "forge-github_com", None, ""),
        (
            Asker(use=Use.FORGE, forge="github.com"),
            "forge-github_com",
            Scope(forge="github.com"),
            "",
        ),
        (
            Asker(use=Use.FORGE, forge="github.com"),
            "forge-github_com",
            Scope(forge="github-com"),
            "server",
        ),
        (Asker(use=Use.FORGE, forge="github-com"), "forge-github_com", None, "server"),
        (Asker(use=Use.FORGE, forge="github.com"), "status-github-com", None, "server"),
        (Asker(use=Use.FORGE, forge="github.com"), "hooks-github", None, "server"),
        (Asker(use=Use.FORGE, forge=""), "forge-", None, "server"),
    ],
)
def test_the_server_asks_for_its_own_only(asker, name, scope, wanted):
    assert missing(asker, name, scope) == wanted


def test_a_project_is_known_by_its_number_too():
    number = project_number("shop")
    assert (
        canonical_name(f"projects/{number}/secrets/key/versions/2", "shop") == f"{WHOLE}/versions/2"
    )
    other = f"projects/{project_number('web')}/secrets/key"
    assert canonical_name(other, "shop") == other
    assert missing(build(), other) == "project"


@pytest.mark.parametrize(
    ("name", "scope", "text"),
    [
        ("key", None, "no project"),
        ("key", Scope(projects=("*",)), "projects all"),
        (WHOLE, None, "projects shop"),
        (WHOLE, Scope(projects=("web",), triggers=("a", "b")), "projects shop, web; triggers a, b"),
        (
            WHOLE,
            Scope(refs=("refs/heads/main", "refs/tags/v*"), images=("i",), uses=("builds",)),
            "projects shop; branches main; tags v*; images i; for builds",
        ),
        ("hooks-github", None, "the server"),
        ("forge-github_com", Scope(forge="github.com"), "the server, for github.com"),
        ("status-github-com", None, "nobody: set it again with --forge HOST"),
    ],
)
def test_a_scope_is_shown_in_one_line(name, scope, text):
    assert scope_text(name, scope) == text


@pytest.mark.parametrize(
    ("url", "host"),
    [
        ("https://GitHub.com/acme/app.git", "github.com"),
        ("https://api.github.com/repos/acme/app", "github.com"),
        ("https://api.bitbucket.org/2.0", "bitbucket.org"),
        ("https://api.example.com/x", "api.example.com"),
        ("https://git.example.com:443/", "git.example.com"),
        ("https://me:pw@git.example.com:8443/a", "git.example.com:8443"),
        ("http://git.example.com:80/a", "git.example.com:80"),
        ("https://git.example.com./", "git.example.com"),
        ("https://[::1]:3000/", "[::1]:3000"),
        ("https:///x", ""),
        ("https://a:b:c/", ""),
    ],
)
def test_a_forge_is_its_host_and_port(url, host):
    assert forge_host(url) == host


@pytest.mark.parametrize(
    ("host", "name"),
    [
        ("github.com", "forge-github_com"),
        ("git-example.com", "forge-git-example_com"),
        ("git.example.com", "forge-git_example_com"),
        ("git.example.com:8443", "forge-git_example_com__3a8443"),
        ("my_git.local", "forge-my__5fgit_local"),
        ("[::1]:3000", "forge-__5b__3a__3a1__5d__3a3000"),
    ],
)
def test_a_forge_s_token_has_the_host_in_its_name(host, name):
    assert forge_token_name(host) == name


@given(st.tuples(*[st.text(f"{string.ascii_lowercase[:8]}_.:-23", max_size=8)] * 2))
def test_two_hosts_never_have_one_name(hosts):
    first, second = hosts
    assert (first == second) == (forge_token_name(first) == forge_token_name(second))
