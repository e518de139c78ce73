"""What a build asks of the machine."""

import pytest

from tests.e2e.submit_bench import Bench

pytestmark = pytest.mark.docker


def test_a_machine_type_larger_than_the_machine_is_a_warning(tmp_path, docker_engine, busybox):
    folder = tmp_path / "source"
    folder.mkdir()
    bench = Bench(folder, tmp_path / "data", docker_engine, busybox)
    bench.write(
        "cloudbuild.yaml",
        "steps: [{name: IMAGE, args: ['true']}]\noptions: {machineType: E2_HIGHCPU_32}\n",
    )
    done = bench.run("submit", "--no-source")
    assert done.code == 0, done.err
    if docker_engine.info().cpus < 32:
        assert "this machine is smaller than the one asked for: 32 CPUs" in done.err
