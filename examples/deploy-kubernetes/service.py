"""A web service that answers /42 with XLII, and /version with the version that runs."""

import os
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from roman import roman

VERSION = os.environ.get("VERSION", "development")


def answer(path: str) -> tuple[int, str]:
    """Return the status and the text for a path."""
    if path == "/version":
        return 200, VERSION
    try:
        return 200, roman(int(path.removeprefix("/")))
    except ValueError as error:
        return 404, str(error)


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        status, text = answer(self.path)
        body = f"{text}\n".encode()
        self.send_response(status)
        self.send_header("Content-Type", "text/plain")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


if __name__ == "__main__":
    port = int(os.environ.get("PORT", "8080"))
    ThreadingHTTPServer(("0.0.0.0", port), Handler).serve_forever()
