"""The configs of ``tests/corpus`` that can run, run: every step ends as its sidecar says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.e2e.submit_bench import Bench

pytestmark = pytest.mark.docker

CORPUS = Path(__file__).parents[1] / "corpus"
SIDECARS = [
    path
    for path in sorted(CORPUS.glob("*.expected.json"))
    if "runs" in json.loads(path.read_text())
]
EXIT_CODES = {"SUCCESS": 0, "FAILURE": 1, "TIMEOUT": 4}


@pytest.fixture
def bench(tmp_path, docker_engine, busybox):
    folder = tmp_path / "source"
    folder.mkdir()
    return Bench(folder, tmp_path / "data", docker_engine, busybox)


@pytest.mark.parametrize("sidecar", SIDECARS, ids=lambda path: path.name.partition(".")[0])
def test_every_step_ends_as_expected(bench, sidecar, tmp_path):
    expected = json.loads(sidecar.read_text())
    name = sidecar.name.removesuffix(".expected.json")
    (config,) = [path for path in CORPUS.glob(f"{name}.*") if path != sidecar]
    values = expected.get("substitutions", {})
    flags = [f"--substitutions={key}={value}" for key, value in values.items()]
    flags += ["--triggered"] if expected.get("triggered") else []
    done = bench.run(
        "submit",
        str(config),
        "--no-source",
        "--project=p1",
        "--output=json",
        f"--image-alias=busybox={bench.image}",
        f"--storage=gs://my-bucket={(tmp_path / 'bucket').as_uri()}",
        *flags,
    )
    events = [json.loads(line) for line in done.out.splitlines()]
    found = {"build": "", "steps": ["QUEUED"] * len(expected["runs"]["steps"])}
    for event in events:
        if event["event"] == "stepFinished":
            found["steps"][event["step"]] = event["status"]
        elif event["event"] == "buildFinished":
            found["build"] = event["status"]
    assert found == expected["runs"], done.out + done.err
    assert done.code == EXIT_CODES[expected["runs"]["build"]]
