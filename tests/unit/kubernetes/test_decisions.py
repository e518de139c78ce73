"""Builds and Jobs against each other: what is created, what is deleted, which build is lost."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from msgspec.structs import replace

from buildrunner.kubernetes.decisions import Situation, decide
from buildrunner.kubernetes.pool import Pool
from buildrunner.kubernetes.reasons import BuildJob, SpareJob
from buildrunner.store.model.builds import ClaimedBuild, WaitingBuild

NOW = datetime(2026, 12, 1, 12, 0, tzinfo=UTC)
POOL = Pool(name="arm", server="http://ci", worker_image="w", engine_image="e", max_builds=3)


def waiting(build_id, project="p", **facts):
    return WaitingBuild(id=build_id, project=project, **{"pool": "arm", **facts})


def claimed(build_id, worker="worker:pod:u1/host/1", renewed_s=10, **facts):
    return ClaimedBuild(
        id=build_id,
        **{"project": "p", "pool": "arm", **facts},
        status="QUEUED",
        start_time=None,
        worker=worker,
        process="1:1",
        fence=7,
        lease_until=NOW + timedelta(seconds=30 - renewed_s),
        cancel_requested=False,
        labels={},
    )


def job(build_id, ended_s=None, reason="", **facts):
    ended_at = None if ended_s is None else NOW - timedelta(seconds=ended_s)
    name = f"build-{build_id}"
    return BuildJob(
        build_id=build_id, namespace="ci", name=name, ended_at=ended_at, reason=reason, **facts
    )


def spare(name, ended_s=None, **facts):
    ended_at = None if ended_s is None else NOW - timedelta(seconds=ended_s)
    own = {"pool": "arm", "version": "v2", "ready": True, **facts}
    return SpareJob(namespace="ci", name=name, server="s", ended_at=ended_at, **own)


def decided(
    waits=(), held=(), jobs=(), ended=None, too_weak=(), pods="", spares=(), fitting="", **pool
):
    ended = {name: NOW - timedelta(seconds=ago) for name, ago in (ended or {}).items()}
    return decide(
        Situation(
            pools={"arm": replace(POOL, **pool), "x86": replace(POOL, name="x86")},
            waiting=waits,
            claimed=held,
            jobs=jobs,
            pods=dict.fromkeys(pods, "arm"),
            ended=ended,
            now=NOW,
            too_weak=frozenset(too_weak),
            spares=spares,
            versions={"arm": "v2"},
            fitting=frozenset(fitting),
        )
    )


def created(*args, **kwargs):
    return [build.id for build in decided(*args, **kwargs).create]


class TestCreate:
    def test_every_waiting_build_gets_a_job(self):
        assert created([waiting("a"), waiting("b", pool="x86")]) == ["a", "b"]

    def test_a_build_has_one_job(self):
        assert created([waiting("a")], jobs=[job("a")]) == []
        assert created([waiting("a")], jobs=[job("a", ended_s=90)]) == []

    @pytest.mark.parametrize(
        ("waits", "held", "jobs", "chosen"),
        [
            ("abcd", "", "", "abc"),
            ("abcd", "xy", "xy", "a"),
            ("abcd", "xyz", "xyz", ""),
            ("abcd", "", "bc", "a"),
            ("abcd", "x", "xbc", ""),
        ],
    )
    def test_builds_and_starting_pods_together_are_no_more_than_the_pool_has(
        self, waits, held, jobs, chosen
    ):
        found = decided(list(map(waiting, waits)), list(map(claimed, held)), list(map(job, jobs)))
        assert "".join(build.id for build in found.create) == chosen
        for build in set(waits) - set(chosen) - set(jobs):
            assert found.waits[build] == "No more than 3 builds of the pool arm may run."

    @pytest.mark.parametrize(
        ("pods", "ended", "jobs", "chosen"),
        [
            ("xy", "xy", "xy", "a"),
            ("xyz", "xyz", "", ""),
            ("xy", "", "", "abc"),
            ("ax", "x", "", "a"),
            ("ax", "x", "a", "b"),
            ("", "xyz", "xyz", "abc"),
        ],
        ids=[
            "their builds ended",
            "their Jobs are deleted",
            "of another server",
            "of a build that runs again",
            "of a build that is about to begin",
            "ended",
        ],
    )
    def test_a_pod_takes_its_place_until_it_has_ended(self, pods, ended, jobs, chosen):
        waits = [waiting(one) for one in "abcd"]
        over = dict.fromkeys(ended, 1)
        found = created(waits, jobs=list(map(job, jobs)), ended=over, pods=pods)
        assert "".join(found) == chosen

    def test_pools_do_not_count_for_each_other(self):
        held = [claimed(one, pool="x86") for one in "xyz"]
        assert created([waiting("a")], held, [job(one) for one in "xyz"]) == ["a"]

    def test_a_worker_of_the_pool_that_is_no_pod_takes_no_place(self):
        held = [claimed(one, worker="worker:builder-1/host/1") for one in "xyz"]
        assert created([waiting("a")], held) == ["a"]

    def test_a_group_gets_no_pods_that_could_not_begin(self):
        group = {"group": "g", "group_limit": 1}
        found = decided([waiting("a", **group), waiting("b", **group), waiting("c")])
        assert [build.id for build in found.create] == ["a", "c"]
        assert found.waits["b"] == "No more than 1 build of its group may run."
        assert created([waiting("b", **group)], [claimed("x", group="g")], [job("x")]) == []
        assert created([waiting("b", **group)], jobs=[job("b")]) == []

    def test_a_fork_gets_no_pod_that_the_server_would_refuse_it(self):
        waits = [
            waiting("a", untrusted=True),
            waiting("b"),
            waiting("c", untrusted=True, pool="x86"),
        ]
        found = decided(waits, too_weak={"arm"}, isolation="capabilities")
        assert [build.id for build in found.create] == ["b", "c"]
        assert found.waits["a"] == (
            "The pool arm isolates builds by capabilities, which is too weak for builds of forks."
        )

    def test_projects_take_turns(self):
        waits = [waiting("a1", "a"), waiting("a2", "a"), waiting("a3", "a"), waiting("b1", "b")]
        assert created(waits) == ["a1", "b1", "a2"]
        assert created(waits, [claimed("x", project="a")], [job("x")]) == ["b1", "a1"]


class TestDelete:
    @pytest.mark.parametrize(
        ("one", "ended", "goes"),
        [
            (job("a"), {"a": 14}, False),
            (job("a"), {"a": 15}, True),
            (job("a", ended_s=100), {"a": 100}, False),
            (job("a"), {}, False),
        ],
        ids=["ends now", "does not end", "has ended: Kubernetes deletes it", "of another server"],
    )
    def test_the_job_of_a_build_that_is_over_ends_by_itself_or_is_deleted(self, one, ended, goes):
        assert decided(jobs=[one], ended=ended).delete == ((one,) if goes else ())

    @pytest.mark.parametrize(("ended_s", "goes"), [(29, False), (30, True)])
    def test_a_job_that_ended_before_its_build_began_is_replaced_after_a_pause(self, ended_s, goes):
        failed = job("a", ended_s, "its Pod was evicted")
        found = decided([waiting("a")], jobs=[failed])
        assert found.delete == ((failed,) if goes else ())
        assert found.create == ()
        assert found.waits == {"a": "Its Pod was evicted. Another Pod follows."}

    def test_a_job_whose_build_runs_or_waits_stays(self):
        found = decided([waiting("a")], [claimed("b")], [job("a"), job("b")])
        assert found.delete == found.lost == ()

    @pytest.mark.parametrize("fact", ["disrupted", "node_lost"])
    def test_a_pod_that_a_lost_node_does_not_end_makes_room_for_another(self, fact):
        dying = job("a", reason="its node is lost", **{fact: True})
        assert decided([waiting("a")], jobs=[dying]).delete == (dying,)


class TestLost:
    @pytest.mark.parametrize(
        ("fact", "renewed_s", "lost"),
        [
            ("disrupted", 29, False),
            ("disrupted", 30, True),
            ("node_lost", 69, False),
            ("node_lost", 70, True),  # five seconds before the server gives it up anyway
        ],
    )
    def test_a_build_of_a_lost_node_ends_for_that_reason(self, fact, renewed_s, lost):
        build = claimed("a", renewed_s=renewed_s)
        dying = job("a", reason="its node is lost", **{fact: True})
        found = decided(held=[build], jobs=[dying])
        assert found.lost == (((build, "its node is lost"),) if lost else ())
        assert found.delete == ()

    @pytest.mark.parametrize(
        ("jobs", "reason"),
        [
            ([], "its Job was deleted"),
            ([job("a", 1, "its Pod was preempted")], "its Pod was preempted"),
            ([job("a", 1)], "its Pod ended before the build"),
        ],
    )
    def test_a_running_build_without_a_pod_is_lost(self, jobs, reason):
        assert decided(held=[claimed("a")], jobs=jobs).lost == ((claimed("a"), reason),)

    @pytest.mark.parametrize(
        "build",
        [
            claimed("a", worker="worker:builder-1/host/1"),
            claimed("a", worker="host/1"),
            claimed("a", pool="of-tokens"),
            claimed("a", renewed_s=9),
        ],
    )
    def test_builds_elsewhere_and_those_of_live_workers_are_not_lost(self, build):
        assert decided(held=[build]).lost == ()


@pytest.mark.parametrize(
    ("reason", "text"),
    [
        ("", "Its Pod starts."),
        ("its Pod can't be scheduled: no node", "Its Pod can't be scheduled: no node."),
    ],
)
def test_a_build_waits_for_what_its_pod_waits_for(reason, text):
    assert decided([waiting("a")], jobs=[job("a", reason=reason)]).waits == {"a": text}


def young(build_id, age_s=1, **facts):
    return waiting(build_id, create_time=NOW - timedelta(seconds=age_s), **facts)


class TestSpares:
    @pytest.mark.parametrize(
        ("spares", "missing"),
        [
            ([], 2),
            ([spare("s1")], 1),
            ([spare("s1", ready=False)], 1),
            ([spare("s1"), spare("s2")], 0),
            ([spare("s1"), spare("s2", gone=True)], 1),
            ([spare("s1"), spare("s2", ended_s=29)], 0),
            ([spare("s1"), spare("s2", ended_s=30)], 1),
        ],
    )
    def test_a_pool_keeps_as_many_as_it_says_and_makes_failed_ones_again_slowly(
        self, spares, missing
    ):
        found = decided(spares=spares, spare=2)
        assert found.spares == ("arm",) * missing
        assert found.delete == ()

    def test_all_pods_of_a_pool_are_no_more_than_it_has(self):
        held, jobs = [claimed("x"), claimed("y")], [job("x"), job("y")]
        assert decided(held=held, jobs=jobs, spare=3).spares == ("arm",)
        assert decided(held=held, jobs=jobs, spare=3, spares=[spare("s1")]).spares == ()
        gone = [spare("s1", gone=True)]
        assert decided(held=held, jobs=jobs, spare=3, spares=gone).spares == ()

    @pytest.mark.parametrize("older", [spare("s1", version="v1"), spare("s1")])
    def test_one_that_is_made_of_other_settings_or_too_much_is_deleted(self, older):
        keep = 1 if older.version == "v1" else 0
        found = decided(spares=[older], spare=keep)
        assert found.delete == (older,)
        assert found.spares == ()

    def test_a_build_that_fits_a_ready_one_gets_no_job(self):
        found = decided([young("a"), young("b")], spares=[spare("s1")], spare=1, fitting="ab")
        assert [build.id for build in found.create] == ["b"]
        assert found.waits["a"] == "A spare Pod of its pool takes it."
        assert found.spares == ("arm",)

    @pytest.mark.parametrize(
        ("build", "fitting", "one"),
        [
            (young("a"), "", spare("s1")),
            (young("a", age_s=5), "a", spare("s1")),
            (young("a"), "a", spare("s1", ready=False)),
            (young("a"), "a", spare("s1", gone=True)),
            (young("a", pool="x86"), "a", spare("s1")),
        ],
    )
    def test_a_build_that_none_takes_gets_a_job(self, build, fitting, one):
        found = decided([build], spares=[one], spare=1, fitting=fitting)
        assert [build.id for build in found.create] == ["a"]

    def test_in_a_full_pool_one_takes_the_build_that_fits(self):
        held = [claimed("x"), claimed("y")]
        jobs = [job("x"), job("y")]
        found = decided([young("a")], held, jobs, spares=[spare("s1")], spare=1, fitting="a")
        assert (found.create, found.delete) == ((), ())

    def test_in_a_full_pool_one_gives_its_place_to_a_build_that_does_not_fit(self):
        held = [claimed("x"), claimed("y")]
        jobs = [job("x"), job("y")]
        found = decided([young("a")], held, jobs, spares=[spare("s1")], spare=1)
        assert (found.create, found.delete) == ((), (spare("s1"),))
        ending = [spare("s1", gone=True)]
        assert decided([young("a")], held, jobs, spares=ending, spare=1).create == ()
        after = decided([young("a")], held, jobs, spare=1)
        assert [build.id for build in after.create] == ["a"]
        assert after.spares == ()

    def test_the_job_of_a_build_that_one_has_claimed_is_deleted(self):
        pending = job("a")
        of_spare = BuildJob(build_id="a", namespace="ci", name="spare-1")
        found = decided(held=[claimed("a")], jobs=[pending, of_spare], spare=0)
        assert found.delete == (pending,)
