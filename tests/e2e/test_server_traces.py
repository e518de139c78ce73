"""The trace of a server's build, across the death of its process, as a collector receives it."""

import threading

import pytest

from tests.chaos.kill_bench import KillBench, until
from tests.unit.worker.test_tracing import Collector, spans

pytestmark = pytest.mark.docker


def test_all_processes_of_a_build_report_to_one_trace(tmp_path, docker_engine, busybox):
    collector = Collector()
    thread = threading.Thread(target=collector.serve_forever, args=(0.02,))
    thread.start()
    environ = {"OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{collector.server_port}"}
    bench = KillBench(tmp_path / "data", docker_engine, busybox, environ=environ)
    try:
        bench.start()
        waiting = "echo waiting; until [ -e /workspace/go ]; do sleep 0.05; done"
        build_id = bench.create("echo first", waiting)
        bench.wait_for_log(build_id, "waiting\n")
        until(lambda: "step 0" in spans(collector), "the span of the first step")
        bench.kill_execute(build_id)
        bench.let_go(build_id, 1)
        assert bench.wait_for_end(build_id)["status"] == "SUCCESS"
        bench.check_nothing_left(build_id)
    finally:
        bench.close()
        collector.shutdown()
        thread.join()
        collector.server_close()
    found = spans(collector)
    assert {"build", "FETCHSOURCE", "BUILD", "step 0", "step 1"} <= found.keys()
    root = found.pop("build")
    assert {span.parent_span_id for span in found.values()} == {root.span_id}
    begun, ended = root.start_time_unix_nano, root.end_time_unix_nano
    assert all(begun <= span.start_time_unix_nano for span in found.values())
    assert found["step 1"].start_time_unix_nano < found["step 1"].end_time_unix_nano <= ended
    found["build"] = root
    assert {span.trace_id.hex() for span in found.values()} == {build_id.replace("-", "")}
