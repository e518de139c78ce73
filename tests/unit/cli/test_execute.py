"""The process of one build of a server."""

import subprocess
import sys

from buildrunner.cli.serve.execute import MEMORY_BYTES

SCRIPT = """
import mmap, threading
from buildrunner.cli.serve.execute import limit_memory

limit_memory()
threads = [threading.Thread(target=threading.Event().wait, daemon=True) for _ in range(900)]
for one in threads:
    one.start()
try:
    mmap.mmap(-1, {size}, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
except (MemoryError, OSError):
    print("refused")
else:
    print("taken")
"""


def run(size: int) -> str:
    argv = [sys.executable, "-c", SCRIPT.format(size=size)]
    return subprocess.run(argv, check=True, capture_output=True, text=True).stdout


def test_it_takes_no_more_memory_than_a_build_may_however_many_steps_it_has() -> None:
    assert run(1 << 30) == "taken\n"
    assert run(MEMORY_BYTES) == "refused\n"
