"""What Docker says, in sentences for a person. The messages are from real engines."""

from __future__ import annotations

import pytest

from buildrunner.containers.docker.api import DOCKER, PODMAN, Capabilities
from buildrunner.containers.docker.errors import Refusal, message_of, start_error
from buildrunner.containers.docker.transfers import TransferFailure, raise_pull_error
from buildrunner.containers.image_name import ImageName
from buildrunner.errors import ImagePullError

RUNC = (
    "failed to create shim task: OCI runtime create failed: runc create failed: "
    "unable to start container process: "
)


@pytest.mark.parametrize(
    ("message", "code", "said", "hint"),
    [
        (
            f'{RUNC}exec: "nosuch": executable file not found in $PATH: unknown',
            127,
            'exec: "nosuch": executable file not found in $PATH',
            "PATH",
        ),
        (
            f'{RUNC}exec: "/nosuch": stat /nosuch: no such file or directory: unknown',
            127,
            'exec: "/nosuch": stat /nosuch: no such file or directory',
            "entrypoint",
        ),
        (
            f'{RUNC}exec: "/etc": permission denied: unknown',
            126,
            'exec: "/etc": permission denied',
            "chmod",
        ),
        (f'{RUNC}exec: "/etc": is a directory: unknown', 126, 'exec: "/etc": is a', "chmod"),
        (
            f"{RUNC}unable to apply caps: operation not permitted: unknown",
            125,
            "unable to apply caps: operation not permitted",
            "privileged",
        ),
        (
            f'{RUNC}error during container init: error mounting "/a" to rootfs at "/etc": '
            "not a directory: unknown",
            125,
            'error mounting "/a"',
            "mount",
        ),
        (
            "driver failed: Bind for 0.0.0.0:80 failed: port is already allocated",
            125,
            "driver failed: Bind for 0.0.0.0:80",
            "port",
        ),
        (
            "unable to find user me: no matching entries in passwd file",
            125,
            "unable to find user me",
            "user",
        ),
        (
            "error while mounting volume '/v': failed to mount local volume: mount overlay:/v, "
            "data: lowerdir=/gone: no such file or directory",
            125,
            "error while mounting volume",
            "must exist",
        ),
        ("network n not found", 125, "network n not found", ""),
        (  # Podman, which sets the container up when it is attached to
            "preparing container d5460d21 for attach: crun: executable file `nosuch` not found in "
            "$PATH: No such file or directory: OCI runtime attempted to invoke a command that was "
            "not found",
            127,
            "executable file `nosuch` not found in $PATH",
            "PATH",
        ),
        (
            "preparing container d5460d21 for attach: crun: open executable: Permission denied: "
            "OCI permission denied",
            126,
            "open executable: Permission denied",
            "chmod",
        ),
    ],
)
def test_why_a_container_does_not_start(message: str, code: int, said: str, hint: str) -> None:
    error = start_error(message)
    assert error.container_code == code
    assert str(error).startswith(f"the container can't start: {said}")
    assert "runc" not in str(error)
    assert "unknown" not in str(error)
    assert hint in error.hint
    assert bool(hint) == bool(error.hint)


def test_a_full_disk_is_named() -> None:
    error = Refusal(500, "write /var/lib: no space left on device").as_error("x failed")
    assert "disk is full" in error.hint


def test_an_answer_that_is_not_json_is_shown_as_it_is() -> None:
    assert message_of(b"<html>bad gateway</html>") == "<html>bad gateway</html>"
    assert message_of(b"") == "the engine gave no reason"
    assert message_of(b"\xff") == "�"


def test_an_image_for_other_platforms_is_not_called_misspelt() -> None:
    said = "no matching manifest for linux/amd64 in the manifest list entries"
    name = "r.test:5000/app:arm"
    with pytest.raises(ImagePullError) as caught:
        raise_pull_error(name, ImageName.parse(name), TransferFailure(said), DOCKER)
    assert caught.value.hint == "r.test:5000 has it for other platforms only than the engine's."
    assert not caught.value.transient


@pytest.mark.parametrize(
    ("status", "transient", "unauthorized"),
    [
        ("401 Unauthorized", False, True),
        ("403 Forbidden", False, True),
        ("405 Method Not Allowed", False, False),
        ("413 Content Too Large", False, False),
        ("429 Too Many Requests", True, False),
        ("500 Internal Server Error", True, False),
        ("503 Service Unavailable", True, False),
    ],
)
def test_what_a_registry_answers_is_read_from_the_words_of_the_containerd_store(
    status: str, transient: bool, unauthorized: bool
) -> None:
    failure = TransferFailure(
        'unknown: failed commit on ref "manifest-sha256:843d14": unexpected status from PUT '
        f"request to http://r.test/v2/app/blobs/uploads/1?_state=eof503&digest=1: {status}"
    )
    assert (failure.transient, failure.unauthorized) == (transient, unauthorized)
    assert str(failure) == f"the registry answers HTTP {status[:3]}: {status[4:]}"


def test_a_request_that_failed_is_shown_without_the_state_of_its_upload() -> None:
    said = 'failed to do request: Put "http://r.test/v2/a/blobs/uploads/1?_state=x&digest=y": EOF'
    assert str(TransferFailure(said)) == said.replace("?_state=x&digest=y", "")


@pytest.mark.parametrize(
    ("engine", "cure"),
    [
        (DOCKER, 'Add "r.test:5000" to insecure-registries in daemon.json of the engine.'),
        (PODMAN, 'Add a [[registry]] with location = "r.test:5000" and insecure = true to'),
    ],
)
def test_plain_http_is_allowed_where_that_engine_looks_for_it(
    engine: Capabilities, cure: str
) -> None:
    said = "http: server gave HTTP response to HTTPS client"
    name = "r.test:5000/app:1"
    with pytest.raises(ImagePullError) as caught:
        raise_pull_error(name, ImageName.parse(name), TransferFailure(said), engine)
    assert caught.value.hint.startswith(cure)
