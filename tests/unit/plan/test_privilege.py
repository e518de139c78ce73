"""A build gets what its place grants and its config asks for, and never more."""

from itertools import product

import pytest

from buildrunner.plan.privilege import NO_PRIVILEGE, Privilege, granted, lowered, refusal
from buildrunner.spec.model.build import DockerDaemon

GRANTS = [Privilege(docker_socket=a, privileged=b) for a, b in product((False, True), repeat=2)]
BOTH = Privilege(docker_socket=True, privileged=True)
SOCKET = Privilege(docker_socket=True)


@pytest.mark.parametrize(
    ("grant", "daemon"), [(grant, daemon) for grant in GRANTS for daemon in DockerDaemon]
)
def test_no_config_raises_what_its_place_grants(grant, daemon):
    given = lowered(grant, daemon)
    assert given.docker_socket <= grant.docker_socket
    assert given.privileged <= grant.privileged


@pytest.mark.parametrize(
    ("daemon", "given"),
    [
        (DockerDaemon.DOCKER_DAEMON_UNSPECIFIED, BOTH),
        (DockerDaemon.PRIVILEGED, BOTH),
        (DockerDaemon.NON_PRIVILEGED, SOCKET),
        (DockerDaemon.NO_DOCKER, NO_PRIVILEGE),
    ],
)
def test_a_config_may_take_less_than_it_could_have(daemon, given):
    assert lowered(BOTH, daemon) == given


@pytest.mark.parametrize(
    ("setting", "place", "privileged"),
    [
        (None, False, False),
        (None, True, True),
        (True, False, True),
        (False, True, False),
    ],
)
def test_settings_win_over_what_a_place_does_by_itself(setting, place, privileged):
    grant = granted(docker_socket=True, privileged=setting, privileged_place=place)
    assert grant == Privilege(docker_socket=True, privileged=privileged)


@pytest.mark.parametrize(("setting", "place"), list(product((None, False, True), (False, True))))
def test_an_untrusted_build_is_granted_nothing_whatever_the_settings_say(setting, place):
    grant = granted(docker_socket=True, privileged=setting, privileged_place=place, trusted=False)
    assert grant == NO_PRIVILEGE


def test_a_config_that_asks_for_more_than_it_gets_is_told_so():
    assert refusal(SOCKET, DockerDaemon.PRIVILEGED)
    assert not refusal(BOTH, DockerDaemon.PRIVILEGED)
    assert not refusal(NO_PRIVILEGE, DockerDaemon.DOCKER_DAEMON_UNSPECIFIED)
