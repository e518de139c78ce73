"""``buildrunner doctor`` on a real engine."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys

import pytest

from buildrunner.containers.cleanup import owner_label
from buildrunner.containers.protocol import LABEL_OWNER, ContainerSpec

pytestmark = pytest.mark.docker

DEAD_PROCESS = "4194303:1@no-boot"


def doctor(*flags: str) -> tuple[int, dict[str, dict[str, str]]]:
    answer = subprocess.run(
        [sys.executable, "-m", "buildrunner", "doctor", "--format", "json", *flags],
        env=dict(os.environ),
        capture_output=True,
        text=True,
        check=False,
    )
    return answer.returncode, {found["subject"]: found for found in json.loads(answer.stdout)}


@pytest.mark.usefixtures("docker_engine")
def test_a_machine_that_runs_these_tests_is_fit() -> None:
    code, findings = doctor()
    assert code == 0
    assert findings["engine"]["verdict"] == "ok"
    assert "API 1." in findings["engine"]["text"]
    assert {"engine storage", "builder images", "leftovers", "data folder", "git"} <= set(findings)


def test_what_a_dead_build_left_is_told_and_cleaned(docker_engine, busybox, build_labels) -> None:
    labels = {**build_labels, LABEL_OWNER: owner_label(DEAD_PROCESS)}
    docker_engine.create_container(ContainerSpec(image=busybox, labels=labels))
    docker_engine.create_volume(f"left-by-{build_labels['buildrunner.build']}", labels)
    _, findings = doctor()
    assert findings["leftovers"]["verdict"] == "warn"
    assert not re.search(r"\b1 \w+s\b", findings["leftovers"]["text"])
    assert "--clean" in findings["leftovers"]["advice"]
    doctor("--clean")
    owned = docker_engine.list_owned(labels)
    assert (owned.containers, owned.volumes) == ((), ())
