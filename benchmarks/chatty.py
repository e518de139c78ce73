"""20 builds that print 10,000 lines a second each, and a viewer of each: nothing may be lost."""

from __future__ import annotations

import statistics
import sys
import threading
import time

from benchmarks.machine import IMAGE, work_folder
from benchmarks.measure import Result
from benchmarks.steps import config
from benchmarks.viewers import serving, submit_to
from buildrunner.client.client import ServerClient
from buildrunner.client.stream import LogPiece

BUILDS = 20
SECONDS = 10
LINES_A_SECOND = 10_000


def measure(rounds: int) -> list[Result]:
    last = LINES_A_SECOND - 1
    script = (
        f"for s in $(seq 0 {SECONDS - 1}); do a=$((s * {LINES_A_SECOND}));"
        f" seq $((a)) $((a + {last})) | sed 's/.*/line & of many/'; sleep 1; done"
    )
    lost: list[float] = []
    took: list[float] = []
    with work_folder() as folder, serving(folder, builds=BUILDS) as (url, _):
        path = config(folder, "chatty", [{"name": IMAGE, "args": ["sh", "-c", script]}])
        for _ in range(rounds):
            begun = time.perf_counter()
            ids = [submit_to(url, path, "--async").strip() for _ in range(BUILDS)]
            clients = [ServerClient(url) for _ in ids]
            missing = [_Viewer(client, one) for client, one in zip(clients, ids, strict=True)]
            for viewer in missing:
                viewer.join()
            took.append(time.perf_counter() - begun)
            lost.append(sum(viewer.lost for viewer in missing))
            for client in clients:
                client.close()
    wanted = BUILDS * SECONDS * LINES_A_SECOND
    return [
        Result(
            f"lines lost of {wanted:,} ({BUILDS} builds at once, watched)",
            0.0,
            max(lost),
            unit="lines",
            ours_s=statistics.median(took),
            rounds=rounds,
        )
    ]


class _Viewer(threading.Thread):
    """Follows one build; counts lines that do not come, or not in their place."""

    def __init__(self, client: ServerClient, build_id: str) -> None:
        super().__init__()
        self.lost = SECONDS * LINES_A_SECOND
        self._client = client
        self._build_id = build_id
        self.start()

    def run(self) -> None:
        rest, expected = b"", 0
        for item in self._client.follow(self._build_id):
            if not isinstance(item, LogPiece):
                continue
            *lines, rest = (rest + item.data).split(b"\n")
            for line in lines:
                if line == b"line %d of many" % expected:
                    expected += 1
        self.lost -= expected


if __name__ == "__main__":
    for result in measure(int(sys.argv[1]) if sys.argv[1:] else 1):
        print(result)
