"""What a step deployed: its image's report, and the suggestion of its command."""

from __future__ import annotations

import json

import pytest

from buildrunner.engine.deploy_commands import suggested
from buildrunner.engine.deployments import Deployment, read_report
from buildrunner.plan.build_plan import StepPlan

APP = "example.com/app"
BY_DIGEST = f"{APP}@sha256:{'1' * 64}"
GKE = ("CLOUDSDK_CONTAINER_CLUSTER=prod", "CLOUDSDK_COMPUTE_REGION=europe-west1")


def step(image: str, *args: str, env: tuple[str, ...] = (), **more: str) -> StepPlan:
    return StepPlan(index=0, image=image, args=args, env=env, **more)


@pytest.mark.parametrize(
    ("command", "target", "images"),
    [
        (
            step("gcr.io/cloud-builders/kubectl", "apply", "-f", "k8s", "-n", "shop", env=GKE),
            "gke://p/europe-west1/prod/shop",
            (),
        ),
        (
            step(
                "gcr.io/cloud-builders/kubectl",
                *("set", "image", "deploy/app", f"app={APP}:1", "--namespace=shop"),
                env=(*GKE, "CLOUDSDK_CORE_PROJECT=other"),
            ),
            "gke://other/europe-west1/prod/shop/Deployment/app",
            (f"{APP}:1",),
        ),
        (
            step("gcr.io/cloud-builders/kubectl", "set", "image", "sts", "db", f"db={APP}"),
            "kubernetes://-/default/StatefulSet/db",
            (APP,),
        ),
        (
            step("bitnami/kubectl:1.35", "rollout", "undo", "deployment/app"),
            "kubernetes://-/default/Deployment/app",
            (),
        ),
        (
            step("gcr.io/cloud-builders/gke-deploy", "run", f"--image={APP}:1", "-a", "shop"),
            "kubernetes://-/default/Deployment/shop",
            (f"{APP}:1",),
        ),
        (
            step(
                "gcr.io/cloud-builders/gke-deploy:stable",
                *("apply", "-f", "k8s", "-c", "prod", "-l", "europe-west1-b", "-p", "q"),
            ),
            "gke://q/europe-west1-b/prod/default",
            (),
        ),
        (
            step("alpine/helm", "upgrade", "--install", "--wait", "shop", "./chart", "-n", "web"),
            "kubernetes://-/web/HelmRelease/shop",
            (),
        ),
        (
            step(
                "gcr.io/google.com/cloudsdktool/cloud-sdk:slim",
                *("gcloud", "run", "deploy", "web", "--image", BY_DIGEST, "--region=europe-west1"),
            ),
            "run://p/europe-west1/web",
            (BY_DIGEST,),
        ),
        (
            step(
                "gcr.io/google.com/cloudsdktool/google-cloud-cli",
                *("beta", "run", "deploy", "web", "--quiet", "--project", "q"),
                entrypoint="gcloud",
                env=("CLOUDSDK_RUN_REGION=us-east1",),
            ),
            "run://q/us-east1/web",
            (),
        ),
        (step("gcr.io/cloud-builders/gcloud", "app", "deploy"), "appengine://p", ()),
        (
            step(
                "gcr.io/cloud-builders/gcloud", "functions", "deploy", "f", "--gen2", "--region=r"
            ),
            "functions://p/r/f",
            (),
        ),
    ],
)
def test_the_command_of_a_tool_suggests_its_target(
    command: StepPlan, target: str, images: tuple[str, ...]
) -> None:
    assert suggested(command, "p") == (Deployment(target=target, images=images),)


@pytest.mark.parametrize(
    "command",
    [
        step("gcr.io/cloud-builders/kubectl", "get", "pods"),
        step("gcr.io/cloud-builders/kubectl", "apply", "-f", "k8s", "--dry-run=server"),
        step("gcr.io/cloud-builders/kubectl", "rollout", "status", "deploy/app"),
        step("gcr.io/cloud-builders/kubectl", "set", "image"),
        step("gcr.io/cloud-builders/gke-deploy", "prepare", f"--image={APP}"),
        step("gcr.io/cloud-builders/gke-deploy", "run", f"--image={APP}", "-D"),
        step("gcr.io/cloud-builders/gcloud", "run", "services", "list"),
        step("alpine/helm", "template", "chart"),
        step("gcr.io/cloud-builders/docker", "run", "deploy", "app"),
        step("gcr.io/cloud-builders/gcloud", "run", "deploy", "a\nb"),
        StepPlan(index=0, image="i", script="#!/bin/sh\nif true; then\n  kubectl apply -f x\nfi"),
        StepPlan(index=0, image="i", script="exit\nkubectl apply -f k8s"),
        StepPlan(index=0, image="i", script="# kubectl apply -f k8s"),
        StepPlan(index=0, image="i", script="false || kubectl apply -f k8s"),
        StepPlan(index=0, image="i", script='gcloud run deploy "$_UNKNOWN"'),
        StepPlan(index=0, image="i", script="echo gcloud run deploy app"),
        StepPlan(index=0, image="gcr.io/cloud-builders/gcloud"),
    ],
)
def test_other_commands_suggest_nothing(command: StepPlan) -> None:
    assert suggested(command, "p") == ()


def test_commands_that_a_script_runs_in_any_case_count_too() -> None:
    script = """#!/bin/bash
set -e
cd app && gcloud run deploy "$_SERVICE" \\
  --image="$(cat image)" --region=${_REGION} --quiet > log
/usr/bin/kubectl set image deployment/web "web=$_IMAGE" | tee said
"""
    env = (f"_IMAGE={APP}:1", "_REGION=europe-west1", "_SERVICE=api")
    found = (
        Deployment(target="run://p/europe-west1/api"),
        Deployment(target="kubernetes://-/default/Deployment/web", images=(f"{APP}:1",)),
    )
    assert suggested(StepPlan(index=0, image="i", script=script, env=env), "p") == found
    shell = StepPlan(index=0, image="i", entrypoint="/bin/bash", args=("-ec", script), env=env)
    assert suggested(shell, "p") == found


def line(**fields: object) -> bytes:
    return json.dumps(fields).encode() + b"\n"


def test_a_report_is_a_deployment_a_line() -> None:
    text = line(target="run://p/r/a", images=[BY_DIGEST], previousImages=[APP], version="a-00002")
    found, problem = read_report(text + b"\n" + line(target="run://p/r/b"))
    assert problem == ""
    assert found == (
        Deployment(
            target="run://p/r/a",
            images=(BY_DIGEST,),
            previous_images=(APP,),
            version="a-00002",
            reported=True,
        ),
        Deployment(target="run://p/r/b", reported=True),
    )


def test_the_last_line_of_a_target_counts() -> None:
    found, _ = read_report(line(target="run://p/r/a", version="1") + line(target="run://p/r/a"))
    assert [one.version for one in found] == [""]


@pytest.mark.parametrize(
    "bad",
    [
        b"{\n",
        b"\xff\n",
        b"[]\n",
        line(images=[APP]),
        line(target="app"),
        line(target="run://a b"),
        line(target="run://a\x1b[2J"),
        line(target="run://a\n"),
        line(target="run://" + "a" * 600),
        line(target="run://p/r/a", images=["a b"]),
        line(target="run://p/r/a", images=[f"a:$(id)@sha256:{'1' * 64}"]),
        line(target="run://p/r/a", images=[f"a:`id`@sha256:{'1' * 64}"]),
        line(target="run://p/r/a", images=[f"a;id;@sha256:{'1' * 64}"]),
        line(target="run://p/r/a", images=[APP] * 51),
        line(target="run://p/r/a", url="javascript:alert(1)"),
        line(target="run://p/r/a", version="\x00"),
    ],
)
def test_a_line_that_breaks_the_rules_counts_for_nothing_and_is_named(bad: bytes) -> None:
    found, problem = read_report(line(target="run://p/r/ok") + bad)
    assert [one.target for one in found] == ["run://p/r/ok"]
    assert problem.startswith("line 2 of $BUILDER_OUTPUT/deployments.jsonl can't be read: ")


def test_a_report_has_a_hundred_targets_at_most() -> None:
    found, problem = read_report(b"".join(line(target=f"run://p/r/{n}") for n in range(101)))
    assert len(found) == 100
    assert problem == "$BUILDER_OUTPUT/deployments.jsonl has more than 100 targets"


def test_the_commands_of_a_step_suggest_a_hundred_targets_at_most() -> None:
    """Issue: a script suggested 24,000, each of which the server recorded."""
    lines = (f"kubectl set image deployment/a{number} x=y\n" for number in range(24_000))
    step = StepPlan(index=0, image="alpine", script="".join(lines))
    assert len(suggested(step, "p")) == 100
