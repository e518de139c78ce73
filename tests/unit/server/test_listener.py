"""The listening socket."""

import socket

import pytest
from fastapi import FastAPI

from buildrunner.errors import UsageError
from buildrunner.server.http.listener import Listener, listen_on
from tests.api_server import api_server


def test_answers_do_not_wait_for_an_acknowledgement():
    # asyncio sets TCP_NODELAY on what it accepts only if the socket names its protocol.
    with listen_on("127.0.0.1", 0) as listening:
        assert listening.proto == socket.IPPROTO_TCP


def test_both_kinds_of_addresses_are_listened_on():
    for host, family in (("127.0.0.1", socket.AF_INET), ("::1", socket.AF_INET6)):
        with listen_on(host, 0) as listening:
            assert listening.family == family
            assert listening.getsockname()[1]


def test_an_address_of_somebody_else_is_refused():
    with pytest.raises(UsageError, match=r"can't listen on 192\.0\.2\.1"):
        listen_on("192.0.2.1", 0)


def test_a_server_is_stopped_twice_or_before_it_begins(tmp_path):
    with api_server(tmp_path) as server:
        server.close()  # and once more at the end
    early = Listener(FastAPI(), listen_on("127.0.0.1", 0))
    early.stop()
    early.run()
