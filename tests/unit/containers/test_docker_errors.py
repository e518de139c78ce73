"""What Docker says, in sentences for a person. The messages are from real engines."""

from __future__ import annotations

import json

import pytest

from buildrunner.containers.docker_errors import engine_error, message_of, start_error
from buildrunner.containers.image_name import ImageName
from buildrunner.containers.transfer_failure import TransferFailure, raise_pull_error
from buildrunner.errors import ImagePullError

RUNC = (
    "failed to create shim task: OCI runtime create failed: runc create failed: "
    "unable to start container process: "
)


def body(message: str) -> bytes:
    return json.dumps({"message": message}).encode()


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
    ],
)
def test_why_a_container_does_not_start(message: str, code: int, said: str, hint: str) -> None:
    error = start_error(body(message))
    assert error.container_code == code
    assert str(error).startswith(f"the container can't start: {said}")
    assert "runc" not in str(error)
    assert "unknown" not in str(error)
    assert hint in error.hint
    assert bool(hint) == bool(error.hint)


def test_a_full_disk_is_named() -> None:
    error = engine_error("x failed", 500, body("write /var/lib: no space left on device"))
    assert "disk is full" in error.hint


def test_an_answer_that_is_not_json_is_shown_as_it_is() -> None:
    assert message_of(b"<html>bad gateway</html>") == "<html>bad gateway</html>"
    assert message_of(b"") == "the engine gave no reason"
    assert message_of(b"\xff") == "�"


def test_an_image_for_other_platforms_is_not_called_misspelt() -> None:
    said = "no matching manifest for linux/amd64 in the manifest list entries"
    name = "r.test:5000/app:arm"
    with pytest.raises(ImagePullError) as caught:
        raise_pull_error(name, ImageName.parse(name), TransferFailure(said))
    assert caught.value.hint == "r.test:5000 has it for other platforms only than the engine's."
    assert not caught.value.transient
