"""Validating a thousand configs, and one of 300 steps."""

from __future__ import annotations

import json
import os
import statistics
import sys

from benchmarks.machine import IMAGE, work_folder
from benchmarks.measure import BUILDRUNNER, Result, compare, run, timed
from benchmarks.steps import config, no_op, void

FILES = 1_000

_TYPICAL = """\
# Build, test and push one service.
steps:
- id: install
  name: gcr.io/cloud-builders/npm
  args: [ci]
  dir: services/s{number}
- id: lint
  name: gcr.io/cloud-builders/npm
  args: ['run', 'lint']
  dir: services/s{number}
  waitFor: [install]
- id: test
  name: node:20
  entrypoint: bash
  args:
  - -c
  - |
    set -e
    npm test -- --ci
    echo "tested $SHORT_SHA"
  dir: services/s{number}
  env: ['CI=true', 'REGION=${{_REGION}}']
  waitFor: [install]
  timeout: 300s
- id: image
  name: gcr.io/cloud-builders/docker
  args: [build, -t, '${{_REGION}}-docker.pkg.dev/$PROJECT_ID/apps/s{number}:$SHORT_SHA', .]
- name: gcr.io/google.com/cloudsdktool/cloud-sdk
  entrypoint: gcloud
  args: [run, deploy, s{number}, --region, '${{_REGION}}']
  secretEnv: [TOKEN]
substitutions:
  _REGION: europe-west1
availableSecrets:
  secretManager:
  - versionName: projects/$PROJECT_ID/secrets/token/versions/latest
    env: TOKEN
images: ['${{_REGION}}-docker.pkg.dev/$PROJECT_ID/apps/s{number}:$SHORT_SHA']
options:
  machineType: E2_HIGHCPU_8
  logging: CLOUD_LOGGING_ONLY
timeout: 1200s
tags: [s{number}, ci]
"""

_PARSE = """\
import sys, time, yaml
start = time.perf_counter()
for name in sys.argv[1:]:
    with open(name, "rb") as file:
        yaml.load(file, yaml.CSafeLoader)
"""


def measure(rounds: int) -> list[Result]:
    with work_folder() as folder:
        names = []
        for number in range(FILES):
            names.append(os.path.join(folder, f"c{number}.yaml"))
            with open(names[-1], "w", encoding="utf-8") as file:
                file.write(_TYPICAL.format(number=number))
        many = config(folder, "many", no_op(300))
        empty = config(folder, "one", no_op(1))
        speed = compare(
            f"validate {FILES:,} files / PyYAML's C loader",
            3.0,
            lambda: void(run([BUILDRUNNER, "validate", *names])),
            lambda: void(run([sys.executable, "-c", _PARSE, *names])),
            rounds=rounds,
        )

        def validate(path: str) -> float:
            return timed(lambda: void(run([BUILDRUNNER, "validate", path])))

        samples = [validate(many) - validate(empty) for _ in range(2 * rounds + 1)]
        return [
            speed,
            Result(
                "a file of 300 steps more than one of 1 step",
                50.0,
                1000 * statistics.median(samples),
                unit="ms",
                rounds=len(samples),
                note=f"{IMAGE} in every step, {len(json.dumps(no_op(300))):,} bytes",
            ),
        ]
