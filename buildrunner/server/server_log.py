"""The server's own log, for people or for programs. Output of builds never goes here.

Parts of a line come from strangers: paths, headers, names of users and branches. So that none of
them can forge a line, control characters are spelled out, and every line of text that does not
begin an entry is indented.
"""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime
from typing import Any, Final

from buildrunner.logs.wording import printable

# Facts that log calls pass by ``extra=``.
_EXTRAS: Final = ("build_id", "request")
_LEVELS: Final = {"WARNING": "WARN"}


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time, severity, logger, message, and the facts that came along."""

    def format(self, record: logging.LogRecord) -> str:
        """See `logging.Formatter.format`."""
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "severity": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        for name in _EXTRAS:
            value = getattr(record, name, None)
            if value is not None:
                line[name] = value
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line)


class TextFormatter(logging.Formatter):
    """A line for people: time, what happened, who asked."""

    def format(self, record: logging.LogRecord) -> str:
        """See `logging.Formatter.format`."""
        at = datetime.fromtimestamp(record.created, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        request = getattr(record, "request", None)
        if request is not None:
            facts = f"{request['milliseconds']:g} ms {request['caller']} {request['address']}"
            return _entry(f"{at} {request['method']} {request['path']} {request['code']} {facts}")
        level = _LEVELS.get(record.levelname, record.levelname)
        text = f"{at} {level.lower()} {record.getMessage()}"
        if record.exc_info:
            text += f"\n{self.formatException(record.exc_info)}"
        return _entry(text)


def _entry(text: str) -> str:
    return printable(text).replace("\n", "\n  ")


def start_logging(form: str) -> None:
    """Send the log of this process to stderr.

    Args:
        form: ``text`` or ``json``.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if form == "json" else TextFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger("buildrunner").setLevel(logging.INFO)
