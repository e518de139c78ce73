"""A function that answers /42 with XLII, and /version with the version that runs."""

from pathlib import Path

from roman import roman

VERSION_FILE = Path(__file__).with_name("version")
VERSION = VERSION_FILE.read_text().strip() if VERSION_FILE.exists() else "development"


def answer(request) -> tuple[str, int]:
    """Answer a request of Flask."""
    if request.path == "/version":
        return VERSION, 200
    try:
        return roman(int(request.path.removeprefix("/"))), 200
    except ValueError as error:
        return str(error), 404
