"""The image whose containers do nothing but hold a network namespace open.

Setting up a network namespace is two thirds of a container's start. A *pause* container sets one up
ahead of need and steps join it (``network="container:ID"``). It needs a program that sleeps for
ever, and no image on the machine can be trusted to have one, so the program is made here: an ELF
file of some 150 bytes with no library, no stack frame and no input.
"""

from __future__ import annotations

import struct

from buildrunner.containers.protocol import ContainerEngine

PAUSE_IMAGE = "buildrunner/pause:1"
"""The number is the program's version: raise it whenever the bytes below change."""

_PROGRAM = "pause"
_LOAD_ADDRESS = 0x400000
_HEADER_SIZE = 64
_SEGMENT_SIZE = 56

# A signal interrupts the system call, hence the loop. Process 1 of a container ignores signals
# that it has no handler for, except SIGKILL from outside, which is how these containers end.
_X86_64_CODE = bytes.fromhex(
    "b8 22 00 00 00"  # again: mov eax, 34    number of pause(2)
    "0f 05"  #               syscall          sleeps until a signal is delivered
    "eb f7"  #               jmp again        9 bytes back, counted from the next instruction
)
# arm64 has no pause(2): ppoll(NULL, 0, NULL, NULL) waits for no file and without a time limit.
_AARCH64_CODE = struct.pack(
    "<7I",
    0xD2800000,  # again: movz x0, #0      fds = NULL
    0xD2800001,  #        movz x1, #0      nfds = 0
    0xD2800002,  #        movz x2, #0      timeout = NULL: for ever
    0xD2800003,  #        movz x3, #0      sigmask = NULL: as it is
    0xD2800928,  #        movz x8, #73     number of ppoll(2)
    0xD4000001,  #        svc #0           the system call
    0x17FFFFFA,  #        b again          6 instructions back
)

_MACHINES = {
    # as the engine names the architecture: (ELF machine number, code)
    "x86_64": (62, _X86_64_CODE),
    "aarch64": (183, _AARCH64_CODE),
}


def pause_program(architecture: str) -> bytes | None:
    """The ELF executable for ``architecture`` (``x86_64``, ``aarch64``), None for others."""
    if architecture not in _MACHINES:
        return None
    machine, code = _MACHINES[architecture]
    entry = _LOAD_ADDRESS + _HEADER_SIZE + _SEGMENT_SIZE
    size = _HEADER_SIZE + _SEGMENT_SIZE + len(code)
    header = struct.pack(
        "<4sBBBB8xHHIQQQIHHHHHH",
        b"\x7fELF",
        2,  # 64 bit
        1,  # little endian
        1,  # ELF version
        0,  # System V ABI
        2,  # executable, not relocatable
        machine,
        1,  # ELF version again
        entry,
        _HEADER_SIZE,  # the one program header follows at once
        0,  # no section headers
        0,  # no flags
        _HEADER_SIZE,
        _SEGMENT_SIZE,
        1,  # program headers
        0,
        0,
        0,
    )
    segment = struct.pack(
        "<IIQQQQQQ",
        1,  # PT_LOAD
        5,  # readable and executable, not writable
        0,  # from the file's first byte
        _LOAD_ADDRESS,
        _LOAD_ADDRESS,
        size,
        size,
        0x10000,  # alignment: the largest page size of either architecture
    )
    return header + segment + code


def ensure_pause_image(engine: ContainerEngine) -> str | None:
    """Name of the pause image, made if the engine does not have it yet.

    Half a millisecond when it is there, some 100 ms the first time. Safe from several threads and
    processes at once: they make the same image.

    Returns:
        None when there is no program for the engine's architecture: do without pause containers.
    """
    if engine.find_image(PAUSE_IMAGE) is not None:
        return PAUSE_IMAGE
    program = pause_program(engine.info().architecture)
    if program is None:
        return None
    engine.import_image(
        PAUSE_IMAGE,
        [_tar(program)],
        entrypoint=(f"/{_PROGRAM}",),
        labels={"buildrunner.image": "pause"},
    )
    return PAUSE_IMAGE


def _tar(program: bytes) -> bytes:
    import io
    import tarfile

    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        entry = tarfile.TarInfo(_PROGRAM)
        entry.size = len(program)
        entry.mode = 0o755
        tar.addfile(entry, io.BytesIO(program))
    return buffer.getvalue()
