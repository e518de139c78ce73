"""`artifacts.objects`, which a build from the command line does not upload yet."""

import pytest

from tests.e2e.submit_bench import Bench

pytestmark = pytest.mark.docker


def test_files_that_are_not_uploaded_are_a_warning(tmp_path, docker_engine, busybox):
    folder = tmp_path / "source"
    folder.mkdir()
    bench = Bench(folder, tmp_path / "data", docker_engine, busybox)
    bench.write(
        "cloudbuild.yaml",
        "steps: [{name: IMAGE, script: 'echo hi > a.txt'}]\n"
        "artifacts: {objects: {location: 'gs://bucket/folder', paths: [a.txt]}}\n",
    )
    done = bench.run("submit", ".")
    assert done.code == 0, done.err
    assert "cloudbuild.yaml:2:22: artifacts.objects: objects is kept with the build" in done.err
    strict = bench.run("submit", ".", "--strict")
    assert strict.code == 2
    assert strict.out == ""
