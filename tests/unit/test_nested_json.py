"""Deeply nested JSON of others: decoders raise RecursionError, which is no DecodeError."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import buildrunner
from buildrunner.containers.docker.containers import _code_in
from buildrunner.containers.docker.errors import message_of
from buildrunner.containers.docker.transfers import TransferFailure, transfer_events
from buildrunner.engine.deployments import read_report
from buildrunner.errors import EngineError
from buildrunner.logs.files.events import EventLog
from buildrunner.logs.files.log_file import BadPiece
from buildrunner.registries.logins import parse_docker_config

NESTED = b"[" * 100_000
ROOT = Path(buildrunner.__file__).parent

# Files that buildrunner or its user wrote, and what buildrunner itself has signed.
OWN = {
    "cli/doctor.py",
    "cli/server/choice.py",
    "containers/docker/endpoint.py",
    "logs/files/retention.py",
    "sandboxes/nested/folders.py",
    "sandboxes/nested/host_pulls.py",
    "sandboxes/nested/spare.py",
    "sandboxes/pod_engine.py",
    "secrets/local_store.py",
    "settings/folder_trust.py",
    "sources/git/mirror.py",
    "store/sql/filter.py",
    "cli/triggers/hook.py",
}
FAULTS = {"ValueError", "msgspec.DecodeError", "msgspec.MsgspecError", "json.JSONDecodeError"}


def test_a_nested_report_fails_no_step() -> None:
    field = b'{"target": "run://p/r/b", "more": ' + NESTED
    for bad in (NESTED, field):
        found, problem = read_report(b'{"target": "run://p/r/a"}\n' + bad + b"\n")
        assert [one.target for one in found] == ["run://p/r/a"]
        assert problem.startswith("line 2 of $BUILDER_OUTPUT/deployments.jsonl can't be read: ")


def test_a_nested_answer_of_an_engine_is_an_answer_like_any_other_bad_one() -> None:
    assert message_of(b'{"more": ' + NESTED).startswith('{"more": [')
    with pytest.raises(EngineError, match="can't be understood"):
        _code_in(NESTED)
    with pytest.raises(TransferFailure, match="can't be understood"):
        list(transfer_events([b'{"more": ' + NESTED]))


def test_a_nested_docker_config_of_a_step_gives_no_logins() -> None:
    (warning,) = parse_docker_config(b'{"more": ' + NESTED).warnings_for(["example.com/app"])
    assert warning.endswith("is not used: it is no valid Docker config")


def test_a_nested_line_of_a_worker_is_no_event(tmp_path: Path) -> None:
    with pytest.raises(BadPiece, match="a line is no event"):
        EventLog(str(tmp_path)).append(b'{"sequence":1,"more":' + NESTED + b"\n")


def test_each_handler_of_bad_json_handles_nested_json_too() -> None:
    assert list(unguarded()) == []


def unguarded() -> Iterator[str]:
    """Yield the places that decode JSON of others and handle its faults, but not RecursionError."""
    for path in sorted(ROOT.rglob("*.py")):
        name = str(path.relative_to(ROOT))
        if name in OWN:
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            match node:
                case ast.Try(body=body, handlers=handlers):
                    handled = [one.type for one in handlers if one.type is not None]
                case ast.With(body=body, items=items):
                    calls = [one.context_expr for one in items]
                    handled = [
                        argument
                        for call in calls
                        if isinstance(call, ast.Call) and ast.unparse(call.func) == "suppress"
                        for argument in call.args
                    ]
                case _:
                    continue
            names = {name for one in handled for name in names_of(one)}
            if names & FAULTS and not names & {"RecursionError", "Exception"} and decodes(body):
                yield f"{name}:{node.lineno}"


def names_of(handled: ast.expr) -> list[str]:
    found = handled.elts if isinstance(handled, ast.Tuple) else [handled]
    return [ast.unparse(one) for one in found]


def decodes(body: list[ast.stmt]) -> bool:
    calls = (node for one in body for node in ast.walk(one) if isinstance(node, ast.Call))
    return any(is_decoder(ast.unparse(call.func)) for call in calls)


def is_decoder(function: str) -> bool:
    return function.endswith((".json", "json.loads", "json.decode", "ecoder.decode", "er().decode"))
