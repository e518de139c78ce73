"""Steps that ask the metadata server."""

import json
import subprocess

import pytest

from tests.e2e.submit_bench import Bench

pytestmark = [pytest.mark.docker, pytest.mark.alone]

ASK = "wget -q -O - --header 'Metadata-Flavor: Google' http://{host}/computeMetadata/v1/{path}"


@pytest.fixture
def bench(tmp_path, docker_engine, busybox, capsys):
    folder = tmp_path / "source"
    folder.mkdir()
    bench = Bench(folder, tmp_path / "data", docker_engine, busybox)
    # A server that was killed by a test leaves the network, with other addresses, until the next.
    assert bench.run("doctor", "--clean").code in (0, 1)
    with capsys.disabled():  # the tests pass all the same, and somebody should look
        free_network_of_builds()
    return bench


def docker(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["docker", *arguments], capture_output=True, text=True, check=False)


def free_network_of_builds() -> None:
    """Remove the network of builds with the containers on it, and report them.

    These tests run alone. So a container that is still on that network belongs to an earlier test,
    which should have removed it.
    """
    found = docker("network", "inspect", "cloudbuild")
    if found.returncode != 0:
        return
    (network,) = json.loads(found.stdout)
    print(f"An earlier test left the network of builds: {network}")
    for container in network["Containers"]:
        docker("rm", "--force", container)
    removed = docker("network", "rm", "cloudbuild")
    assert removed.returncode == 0, removed.stderr


def test_steps_learn_their_project_under_every_name_of_the_server(bench):
    requested = [
        ("metadata.google.internal", "project/project-id"),
        ("169.254.169.254", "instance/service-accounts/default/email"),
        ("metadata", "project/project-id"),
    ]
    steps = [
        f"- name: IMAGE\n  script: |\n    {ASK.format(host=host, path=path)}; echo\n"
        for host, path in requested
    ]
    bench.write("cloudbuild.yaml", "steps:\n" + "".join(steps))
    account = "projects/p7/serviceAccounts/me@p7.example"
    done = bench.run(
        *("submit", "--no-source", "--metadata-server"),
        *("--project", "p7", "--service-account", account),
    )
    assert done.code == 0, done.err
    answers = [line for line in done.out.splitlines() if line.endswith(("p7", "p7.example"))]
    assert answers == ["Step #0: p7", "Step #1: me@p7.example", "Step #2: p7"]


def test_without_the_flag_nobody_answers(bench):
    ask = ASK.format(host="metadata.google.internal", path="project/project-id")
    bench.write("cloudbuild.yaml", f"steps:\n- name: IMAGE\n  script: |\n    {ask}\n")
    assert bench.run("submit", "--no-source").code == 1


def test_credentials_that_are_not_there_are_one_clear_error(bench):
    bench.write("cloudbuild.yaml", "steps: [{name: IMAGE, args: ['true']}]\n")
    done = bench.run(
        *("submit", "--no-source", "--metadata-server"),
        *("--metadata-credentials", "/nonexistent.json"),
    )
    assert done.code == 1
    assert "no usable Google credentials in /nonexistent.json" in done.err
    assert "Traceback" not in done.err
