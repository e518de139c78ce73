"""The connection of a worker to its server."""

from __future__ import annotations

import time
from functools import partial

from buildrunner.client.http import ServerConnection
from buildrunner.errors import UsageError


def connect(url: str, token_file: str, ca_file: str) -> ServerConnection:
    """Return a connection to the server of a worker.

    Args:
        url: address of the server.
        token_file: file with the worker's token. It is read for each request, since the tokens of
            some platforms change all the time.
        ca_file: certificates to trust; empty for those of the system.

    Raises:
        UsageError: it is no address, or a file can't be read.
    """
    token_in(token_file)
    return ServerConnection(url, partial(token_in, token_file), ca_file, time.sleep)


def token_in(path: str) -> str:
    """Return the token in a file.

    Raises:
        UsageError: the file can't be read, or is empty.
    """
    try:
        with open(path, encoding="ascii") as file:
            token = file.read().strip()
    except (OSError, UnicodeDecodeError) as error:
        text = error.strerror if isinstance(error, OSError) else "it holds no token"
        raise UsageError(f"the token file {path} can't be read: {text}") from error
    if not token:
        raise UsageError(
            f"the token file {path} is empty",
            hint="write the output of `buildrunner tokens create NAME --worker` to it",
        )
    return token
