"""Asks the running service over HTTP: python check.py URL FILE.

FILE is written when all is well.
"""

import sys
import time
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

PATIENCE_S = 60


def wait_for(url: str) -> None:
    """Wait until the service answers."""
    deadline = time.monotonic() + PATIENCE_S
    while True:
        try:
            with urlopen(url, timeout=5):
                return
        except (URLError, ConnectionError, TimeoutError):
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)


def main(service: str, passed: str) -> None:
    wait_for(f"{service}/health")
    with urlopen(f"{service}/render", data=b"- *one*\n- two\n", timeout=10) as answer:
        html = answer.read().decode()
    wanted = "<ul>\n<li><em>one</em></li>\n<li>two</li>\n</ul>\n"
    if html != wanted:
        sys.exit(f"wanted {wanted!r}, got {html!r}")
    print("the service renders a list over HTTP")
    Path(passed).touch()


if __name__ == "__main__":
    main(*sys.argv[1:])
