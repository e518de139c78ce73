"""The start gate: a program that waits in a step's container until the step may start.

Starting a container takes an engine 200 to 300 ms, most of it for the network. So the containers of
the next steps are pre-started, with this program in place of the step's. On a signal, a byte
on its standard input, the gate does the last part of a start itself: it opens
``/dev/null`` as standard input, enters the step's folder, looks for the step's program on the
``PATH``, and becomes it (execve). It has no library, no heap and no child, and works in an image
without any other file.

The gate runs a program only if the engine would run the same one. In every other case (the folder
is missing, the file has no interpreter, the ``PATH`` has a relative folder) it prints the refusal
that it was started with, and ends. The step's container is then made again without a gate, and the
engine reports the error in its own words.

The comments of the two listings are their source: GNU as makes the same bytes of them
(tests/unit/containers/test_start_gate.py).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

from buildrunner.containers.protocol import ContainerSpec, ErrorOutput
from buildrunner.errors import GateRefused

FOLDER = "/builder/gate"
"""Folder of a step's container where the volume with the program is mounted."""

NAME = "gate"
"""The program's name in that volume."""

PATH = f"{FOLDER}/{NAME}"

WORD = b"\n"
"""The byte that opens the gate. Any byte does."""

_LOAD_ADDRESS = 0x400000
_HEADER_SIZE = 64
_SEGMENT_SIZE = 56

_X86_64 = bytes.fromhex(
    "48 89 e5 "  # _start: mov rbp, rsp  ; argc, argv[0], argv[1], ... NULL, envp[0], ...
    "31 c0 "  # xor eax, eax  ; read(0, stack, 1): the word
    "31 ff "  # xor edi, edi
    "48 8d 74 24 f8 "  # lea rsi, [rsp-8]
    "ba 01 00 00 00 "  # mov edx, 1
    "0f 05 "  # syscall
    "83 f8 01 "  # cmp eax, 1
    "0f 85 d5 00 00 00 "  # jne refuse
    "b8 03 00 00 00 "  # mov eax, 3  ; close(0)
    "0f 05 "  # syscall
    "b8 02 00 00 00 "  # mov eax, 2  ; open("/dev/null", O_RDONLY) must be 0
    "48 8d 3d ea 00 00 00 "  # lea rdi, [rip+null]
    "31 f6 "  # xor esi, esi
    "0f 05 "  # syscall
    "85 c0 "  # test eax, eax
    "0f 85 b6 00 00 00 "  # jnz refuse
    "b8 50 00 00 00 "  # mov eax, 80  ; chdir(argv[2])
    "48 8b 7d 18 "  # mov rdi, [rbp+24]
    "0f 05 "  # syscall
    "85 c0 "  # test eax, eax
    "0f 85 a3 00 00 00 "  # jnz refuse
    "4c 8b 65 20 "  # mov r12, [rbp+32]  ; the program's name: argv[3]
    "4c 8d 6d 20 "  # lea r13, [rbp+32]  ; its argv
    "48 8b 45 00 "  # mov rax, [rbp]
    "4c 8d 74 c5 10 "  # lea r14, [rbp+rax*8+16]  ; its environment
    "4c 89 e6 "  # mov rsi, r12
    "ac "  # slash: lodsb  ; a name with a slash is a path
    "84 c0 "  # test al, al
    "74 16 "  # jz search
    "3c 2f "  # cmp al, 47
    "75 f7 "  # jne slash
    "b8 3b 00 00 00 "  # mov eax, 59  ; execve(name, argv, envp)
    "4c 89 e7 "  # mov rdi, r12
    "4c 89 ee "  # mov rsi, r13
    "4c 89 f2 "  # mov rdx, r14
    "0f 05 "  # syscall
    "eb 74 "  # jmp refuse
    "4c 89 f3 "  # search: mov rbx, r14  ; find PATH= in the environment
    "48 8b 33 "  # variable: mov rsi, [rbx]
    "48 85 f6 "  # test rsi, rsi
    "74 69 "  # jz refuse
    "48 83 c3 08 "  # add rbx, 8
    "81 3e 50 41 54 48 "  # cmp dword ptr [rsi], 0x48544150
    "75 ec "  # jne variable
    "80 7e 04 3d "  # cmp byte ptr [rsi+4], 61
    "75 e6 "  # jne variable
    "48 8d 5e 05 "  # lea rbx, [rsi+5]
    "48 81 ec 00 10 04 00 "  # sub rsp, 0x41000  ; room for two strings of the longest kind
    "80 3b 2f "  # folder: cmp byte ptr [rbx], 47  ; at the end, or a folder that is not absolute
    "75 47 "  # jne refuse
    "48 89 de "  # mov rsi, rbx
    "48 89 e7 "  # mov rdi, rsp
    "ac "  # copy: lodsb  ; folder, slash, name
    "84 c0 "  # test al, al
    "74 07 "  # jz last
    "3c 3a "  # cmp al, 58
    "74 06 "  # je joined
    "aa "  # stosb
    "eb f4 "  # jmp copy
    "48 ff ce "  # last: dec rsi
    "48 89 f3 "  # joined: mov rbx, rsi
    "b0 2f "  # mov al, 47
    "aa "  # stosb
    "4c 89 e6 "  # mov rsi, r12
    "ac "  # name: lodsb
    "aa "  # stosb
    "84 c0 "  # test al, al
    "75 fa "  # jnz name
    "b8 3b 00 00 00 "  # mov eax, 59  ; execve(path, argv, envp)
    "48 89 e7 "  # mov rdi, rsp
    "4c 89 ee "  # mov rsi, r13
    "4c 89 f2 "  # mov rdx, r14
    "0f 05 "  # syscall
    "b8 15 00 00 00 "  # mov eax, 21  ; access(path, X_OK)
    "48 89 e7 "  # mov rdi, rsp
    "be 01 00 00 00 "  # mov esi, 1
    "0f 05 "  # syscall
    "85 c0 "  # test eax, eax
    "75 b4 "  # jnz folder  ; it is not there: try the next folder
    "48 8b 75 10 "  # refuse: mov rsi, [rbp+16]  ; argv[1]
    "31 d2 "  # xor edx, edx
    "80 3c 16 00 "  # length: cmp byte ptr [rsi+rdx], 0
    "74 04 "  # je say
    "ff c2 "  # inc edx
    "eb f6 "  # jmp length
    "bf 02 00 00 00 "  # say: mov edi, 2  ; write(2, argv[1], its length)
    "b8 01 00 00 00 "  # mov eax, 1
    "0f 05 "  # syscall
    "bf 7f 00 00 00 "  # mov edi, 127  ; exit(127)
    "b8 3c 00 00 00 "  # mov eax, 60
    "0f 05 "  # syscall
    "2f 64 65 76 2f 6e 75 6c 6c 00 "  # null: .asciz "/dev/null"
)
_AARCH64 = bytes.fromhex(
    "fd 03 00 91 "  # _start: mov x29, sp  ; argc, argv[0], argv[1], ... NULL, envp[0], ...
    "ff 43 00 d1 "  # sub sp, sp, #16
    "00 00 80 d2 "  # mov x0, #0
    "e1 03 00 91 "  # mov x1, sp
    "22 00 80 d2 "  # mov x2, #1
    "e8 07 80 d2 "  # mov x8, #63  ; read(0, stack, 1): the word
    "01 00 00 d4 "  # svc #0
    "1f 04 00 f1 "  # cmp x0, #1
    "01 09 00 54 "  # b.ne refuse
    "00 00 80 d2 "  # mov x0, #0
    "28 07 80 d2 "  # mov x8, #57  ; close(0)
    "01 00 00 d4 "  # svc #0
    "60 0c 80 92 "  # mov x0, #-100
    "e1 09 00 10 "  # adr x1, null
    "02 00 80 d2 "  # mov x2, #0
    "08 07 80 d2 "  # mov x8, #56  ; openat(AT_FDCWD, "/dev/null", O_RDONLY) must be 0
    "01 00 00 d4 "  # svc #0
    "e0 07 00 b5 "  # cbnz x0, refuse
    "a0 0f 40 f9 "  # ldr x0, [x29, #24]
    "28 06 80 d2 "  # mov x8, #49  ; chdir(argv[2])
    "01 00 00 d4 "  # svc #0
    "60 07 00 b5 "  # cbnz x0, refuse
    "b3 13 40 f9 "  # ldr x19, [x29, #32]  ; the program's name: argv[3]
    "b4 83 00 91 "  # add x20, x29, #32  ; its argv
    "a0 03 40 f9 "  # ldr x0, [x29]
    "b5 0f 00 8b "  # add x21, x29, x0, lsl #3
    "b5 42 00 91 "  # add x21, x21, #16  ; its environment
    "e1 03 13 aa "  # mov x1, x19
    "20 14 40 38 "  # slash: ldrb w0, [x1], #1  ; a name with a slash is a path
    "20 01 00 34 "  # cbz w0, search
    "1f bc 00 71 "  # cmp w0, #47
    "a1 ff ff 54 "  # b.ne slash
    "e0 03 13 aa "  # mov x0, x19
    "e1 03 14 aa "  # mov x1, x20
    "e2 03 15 aa "  # mov x2, x21
    "a8 1b 80 d2 "  # mov x8, #221  ; execve(name, argv, envp)
    "01 00 00 d4 "  # svc #0
    "2b 00 00 14 "  # b refuse
    "f6 03 15 aa "  # search: mov x22, x21  ; find PATH= in the environment
    "03 2a 88 52 "  # mov w3, #0x4150
    "83 0a a9 72 "  # movk w3, #0x4854, lsl #16
    "c1 86 40 f8 "  # variable: ldr x1, [x22], #8
    "c1 04 00 b4 "  # cbz x1, refuse
    "20 00 40 b9 "  # ldr w0, [x1]
    "1f 00 03 6b "  # cmp w0, w3
    "81 ff ff 54 "  # b.ne variable
    "20 10 40 39 "  # ldrb w0, [x1, #4]
    "1f f4 00 71 "  # cmp w0, #61
    "21 ff ff 54 "  # b.ne variable
    "36 14 00 91 "  # add x22, x1, #5
    "ff 07 41 d1 "  # sub sp, sp, #65, lsl #12  ; room for two strings of the longest kind
    "c0 02 40 39 "  # folder: ldrb w0, [x22]  ; at the end, or a folder that is not absolute
    "1f bc 00 71 "  # cmp w0, #47
    "61 03 00 54 "  # b.ne refuse
    "e1 03 00 91 "  # mov x1, sp
    "c0 16 40 38 "  # copy: ldrb w0, [x22], #1  ; folder, slash, name
    "a0 00 00 34 "  # cbz w0, last
    "1f e8 00 71 "  # cmp w0, #58
    "80 00 00 54 "  # b.eq joined
    "20 14 00 38 "  # strb w0, [x1], #1
    "fb ff ff 17 "  # b copy
    "d6 06 00 d1 "  # last: sub x22, x22, #1
    "e0 05 80 52 "  # joined: mov w0, #47
    "20 14 00 38 "  # strb w0, [x1], #1
    "e2 03 13 aa "  # mov x2, x19
    "40 14 40 38 "  # name: ldrb w0, [x2], #1
    "20 14 00 38 "  # strb w0, [x1], #1
    "c0 ff ff 35 "  # cbnz w0, name
    "e0 03 00 91 "  # mov x0, sp
    "e1 03 14 aa "  # mov x1, x20
    "e2 03 15 aa "  # mov x2, x21
    "a8 1b 80 d2 "  # mov x8, #221  ; execve(path, argv, envp)
    "01 00 00 d4 "  # svc #0
    "60 0c 80 92 "  # mov x0, #-100
    "e1 03 00 91 "  # mov x1, sp
    "22 00 80 d2 "  # mov x2, #1
    "03 00 80 d2 "  # mov x3, #0
    "08 06 80 d2 "  # mov x8, #48  ; faccessat(AT_FDCWD, path, X_OK)
    "01 00 00 d4 "  # svc #0
    "80 fc ff b5 "  # cbnz x0, folder  ; it is not there: try the next folder
    "a1 0b 40 f9 "  # refuse: ldr x1, [x29, #16]  ; argv[1]
    "02 00 80 d2 "  # mov x2, #0
    "20 68 62 38 "  # length: ldrb w0, [x1, x2]
    "60 00 00 34 "  # cbz w0, say
    "42 04 00 91 "  # add x2, x2, #1
    "fd ff ff 17 "  # b length
    "40 00 80 d2 "  # say: mov x0, #2
    "08 08 80 d2 "  # mov x8, #64  ; write(2, argv[1], its length)
    "01 00 00 d4 "  # svc #0
    "e0 0f 80 d2 "  # mov x0, #127
    "a8 0b 80 d2 "  # mov x8, #93  ; exit(127)
    "01 00 00 d4 "  # svc #0
    "2f 64 65 76 2f 6e 75 6c 6c 00 "  # null: .asciz "/dev/null"
)

_MACHINES = {
    # the engine's name of the architecture: (ELF machine number, code)
    "x86_64": (62, _X86_64),
    "aarch64": (183, _AARCH64),
}


def gate_program(architecture: str) -> bytes | None:
    """Return the ELF executable for ``architecture`` (``x86_64``, ``aarch64``), None for others."""
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
        _HEADER_SIZE,  # the only program header follows at once
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


def refusal_of(spec: ContainerSpec) -> str:
    """Return what the gate of a container prints if it does not run the container's program.

    It begins with a character that programs do not print, so that their output is not delayed.
    """
    return f"\x04{spec.name}: the start gate did not run the program\n"


def behind_gate(spec: ContainerSpec) -> tuple[str, ...]:
    """Return the entrypoint of a container whose program waits behind the gate."""
    return (spec.gate, refusal_of(spec), spec.workdir or "/", *(spec.entrypoint or ()))


def checked_output(chunks: Iterator[bytes], refusal: bytes) -> Iterator[bytes]:
    """Yield the output of a program that was behind a gate.

    Args:
        chunks: all output of the container.
        refusal: what the gate prints if it refuses.

    Raises:
        GateRefused: the gate did not run the program.
    """
    head = b""
    for chunk in chunks:
        head += chunk
        if not (isinstance(chunk, ErrorOutput) and refusal.startswith(head)):
            if held := head[: len(head) - len(chunk)]:
                yield ErrorOutput(held)
            yield chunk
            yield from chunks
            return
    if head == refusal:
        raise GateRefused("the start gate did not run the step's program")
    if head:
        yield ErrorOutput(head)
