"""Converts an engine's error answers to sentences for the user."""

from __future__ import annotations

import re

import msgspec

from buildrunner.errors import ContainerStartError, EngineError, EngineUnavailable

EXIT_NOT_STARTED = 125
EXIT_NOT_EXECUTABLE = 126
EXIT_NOT_FOUND = 127

_START_NOISE = (
    "failed to create shim task: ",
    "failed to create task for container: ",
    "OCI runtime create failed: ",
    "runc create failed: ",
    "crun: ",
    "unable to start container process: ",
    "error during container init: ",
    "starting container process caused: ",
)
_PREPARING = re.compile(r"^preparing container \S+ for attach: ")  # Podman

_NOT_FOUND = "OCI runtime attempted to invoke a command that was not found"
_NOT_EXECUTABLE = "OCI permission denied"


class _ErrorBody(msgspec.Struct):
    message: str = ""
    error: str = ""  # Podman's field for a transfer that failed before it began


def message_of(body: bytes) -> str:
    """Return the sentence in an error answer of the engine, or its raw text if it is not JSON."""
    try:
        answer = msgspec.json.decode(body, type=_ErrorBody)
        message = answer.message or answer.error
    except (msgspec.DecodeError, RecursionError):
        message = body.decode("utf-8", "replace")
    return message.strip() or "the engine gave no reason"


class Refusal(Exception):
    """An engine's answer to a request that it does not fulfil.

    Attributes:
        status: HTTP status.
        message: the engine's reason.
    """

    def __init__(self, status: int, message: str) -> None:
        super().__init__(f"HTTP {status}: {message}")
        self.status = status
        self.message = message

    def as_error(self, what: str) -> EngineError:
        """Return the error for the user.

        Args:
            what: the failure, as in "the container can't be created".
        """
        hint = ""
        if "no space left on device" in self.message:
            hint = (
                "The engine's disk is full: free space there (docker system df shows what uses it)."
            )
        elif self.status >= 500:
            hint = "The engine's own log may say more (journalctl -u docker, or -u podman)."
        return EngineError(f"{what}: {self.message}", hint=hint)


class Stopped(Exception):
    """The caller's cancel event was set before the operation had ended."""


class EndlessLine(EngineError):
    """A line of an answer is longer than the lines of any engine."""


def broken(reason: str) -> EngineUnavailable:
    """Return the error for an engine that closed the connection, or violates the protocol."""
    return EngineUnavailable(
        f"the container engine broke off the conversation: {reason}",
        hint="Look at the engine's own log (journalctl -u docker), then try again.",
    )


def start_error(full: str) -> ContainerStartError:
    """Return the error of a container that could not start, without the runtimes' prefixes.

    Its ``container_code`` is the exit code of ``docker run``: 127 if the program does not exist,
    126 if the program can't be executed, 125 for anything else.

    Args:
        full: the engine's reason.
    """
    reason = _PREPARING.sub("", full)
    for noise in _START_NOISE:
        reason = reason.replace(noise, "")
    for ending in (": unknown", f": {_NOT_FOUND}", f": {_NOT_EXECUTABLE}"):
        reason = reason.removesuffix(ending)
    code, hint = EXIT_NOT_STARTED, ""
    names_program = 'exec: "' in full
    if _NOT_FOUND in full or (
        names_program and ("not found" in full or "no such file or directory" in full)
    ):
        code = EXIT_NOT_FOUND
        hint = "Is the program in this image, and on its PATH? Check entrypoint and args."
    elif _NOT_EXECUTABLE in full or (
        names_program and ("permission denied" in full or "is a directory" in full)
    ):
        code = EXIT_NOT_EXECUTABLE
        hint = "The program must be an executable file: check its path and mode (chmod +x)."
    elif "apply caps" in full or "privileged" in full:
        hint = "This machine does not allow privileged containers: switch privileged steps off."
    elif "port is already allocated" in full or "address already in use" in full:
        hint = "Something else uses that port: stop it, or publish another port."
    elif "mount" in full:
        hint = "Check what is mounted there: it must exist, a folder on a folder, a file on a file."
    elif "no matching entries in passwd" in full:
        hint = "The image has no such user."
    return ContainerStartError(
        f"the container can't start: {reason}", container_code=code, hint=hint
    )
