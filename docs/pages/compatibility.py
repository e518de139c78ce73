"""Every field and behaviour of Cloud Build with its stand here, and the tests that show it."""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING

import msgspec

from buildrunner.spec.model.build import Build
from buildrunner.spec.model.message import SCALARS, Message, fields_of, type_named
from buildrunner.spec.model.stands import Stand, Verdict, stand_of, unmodelled
from buildrunner.spec.model.trigger import BuildTrigger
from pages.behaviours import proof
from pages.markdown import code, sentence, table

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from pages.behaviours import Behaviours

_HEAD = """\
# Compatibility

This page lists every field and behaviour of Cloud Build, its support in buildrunner, and the tests that prove it. A proof is
a path below `tests/`: a test, a folder of `tests/scenarios`, or a config of `tests/corpus`.

| stand | meaning |
|---|---|
| same | as on the hosted service |
| differs | works, with the difference in the note |
| recorded | accepted, checked and stored with the build, without effect |
| refused | an error that names the alternative |
| not set | an output that buildrunner never sets |

If a recorded field would change the results of a build, the build gets the warning `not-done-here`
of the [rules](rules.md). `--strict` makes it an error.

## Behaviours
"""

_OPEN = """
## Open points

[Decision 0010](../decisions/0010-open-points.md) lists the choices where the documentation is silent.
"""

_FIELDS = """
## Fields of a build

Beside the proofs in the table, every field is compared with the official protobuf types in name, type and
presence, and written and read back through them
(`conformance/test_descriptors::test_every_official_field_has_a_stand`,
`conformance/test_round_trips::test_what_we_write_the_official_parser_reads_and_writes_back_alike`).
"""

_TRIGGERS = """
## Triggers

A server stores triggers and fires them. `buildrunner schema --trigger` prints the JSON Schema of the resource, and
`buildrunner validate --triggered` checks a config as a build of a trigger. "Read" means that the field is parsed and stored.
"""

_DEFAULT_PROOFS = {
    Stand.RECORDED: (
        "conformance/test_round_trips::test_what_we_write_the_official_parser_reads_and_writes_back_alike",
    ),
    Stand.REFUSED: ("unit/spec/test_decode::test_what_we_can_not_do_is_refused_with_a_reason",),
    Stand.OUTPUT_ONLY: (
        "unit/spec/test_decode::test_what_the_service_sets_is_ignored_in_a_config_and_kept_from_a_store",
    ),
    Stand.IMPLEMENTED: (),
}


class FieldStand(msgspec.Struct, frozen=True):
    """One field, or one value of an enum, and what becomes of it.

    Attributes:
        key: ``Message.field``.
        verdict: from `buildrunner.spec.model.stands`.
        output: it is part of what a build reports only.
    """

    key: str
    verdict: Verdict
    output: bool


def page(found: Behaviours) -> str:
    """The page."""
    parts = [_HEAD]
    areas = dict.fromkeys(one.area for one in found.behaviours)
    for area in areas:
        rows = [
            (one.what, one.stand, one.note, proof(one.tests))
            for one in found.behaviours
            if one.area == area
        ]
        head = ("behaviour", "stand", "note", "proof")
        parts.append(f"\n### {area}\n\n{table(head, rows)}")
    proofs = {name: entry.tests for entry in found.fields for name in entry.names}
    parts += [_OPEN, _FIELDS, *_tables(build_fields(), proofs)]
    parts += [_TRIGGERS, *_trigger_tables(trigger_fields())]
    return "".join(parts)


def build_fields() -> list[FieldStand]:
    """Every field of a build and of all that it can hold."""
    return list(_stands(_reachable(Build)))


def trigger_fields() -> list[FieldStand]:
    """Every field of a trigger that is no field of a build."""
    builds = set(_reachable(Build))
    return list(_stands(one for one in _reachable(BuildTrigger) if one not in builds))


def _reachable(root: type[Message]) -> list[type[Message]]:
    found: dict[type[Message], None] = {}
    pending = [root]
    while pending:
        message = pending.pop(0)
        if message in found:
            continue
        found[message] = None
        for field in fields_of(message):
            if field.type_name not in SCALARS:
                kind = type_named(field.type_name, message)
                if issubclass(kind, Message):
                    pending.append(kind)
    return list(found)


def _stands(messages: Iterable[type[Message]]) -> Iterator[FieldStand]:
    outputs = {*_reachable(Build)} - {*_inputs()}
    for message in messages:
        names = [field.json for field in fields_of(message)]
        prefix = f"{message.__name__}."
        names += [key.removeprefix(prefix) for key in unmodelled() if key.startswith(prefix)]
        for name in dict.fromkeys(names):
            verdict = stand_of(message, name)
            if verdict is not None:
                yield FieldStand(f"{message.__name__}.{name}", verdict, message in outputs)
        if message not in outputs:
            yield from _values(message)


def _values(message: type[Message]) -> Iterator[FieldStand]:
    """Values of enums that are not modelled, below the message whose field takes them."""
    for field in fields_of(message):
        if field.type_name in SCALARS:
            continue
        kind = type_named(field.type_name, message)
        if issubclass(kind, enum.Enum):
            prefix = f"{kind.__name__}."
            for key, verdict in unmodelled().items():
                if key.startswith(prefix):
                    yield FieldStand(f"{message.__name__}.{field.json} = {key}", verdict, False)


def _inputs() -> list[type[Message]]:
    """Messages that a config can hold: reached without going through an output."""
    found: list[type[Message]] = []
    pending: list[type[Message]] = [Build]
    while pending:
        message = pending.pop()
        if message in found:
            continue
        found.append(message)
        for field in fields_of(message):
            if field.type_name in SCALARS or field.name in message.OUTPUT_ONLY:
                continue
            kind = type_named(field.type_name, message)
            if issubclass(kind, Message):
                pending.append(kind)
    return found


def shown(field: FieldStand) -> str:
    """The stand in one word."""
    match field.verdict.stand:
        case Stand.IMPLEMENTED:
            return "differs" if field.verdict.reason else "same"
        case Stand.OUTPUT_ONLY:
            return "not set" if field.verdict.reason else "same"
        case other:
            return other.value


def _tables(fields: list[FieldStand], proofs: dict[str, tuple[str, ...]]) -> Iterator[str]:
    for message in dict.fromkeys(_owner(field) for field in fields):
        rows = []
        for field in fields:
            if _owner(field) != message:
                continue
            tests = proofs.get(field.key, _DEFAULT_PROOFS[field.verdict.stand])
            note = sentence(field.verdict.reason)
            rows.append((code(_name(field)), shown(field), note, proof(tests)))
        head = ("field", "stand", "note", "proof")
        yield f"\n### {message.rstrip('_')}\n\n{table(head, rows)}"


def _trigger_tables(fields: list[FieldStand]) -> Iterator[str]:
    for message in dict.fromkeys(_owner(field) for field in fields):
        rows = [
            (code(_name(field)), _read(field), sentence(field.verdict.reason))
            for field in fields
            if _owner(field) == message
        ]
        yield f"\n### {message.rstrip('_')}\n\n{table(('field', 'stand', 'note'), rows)}"


def _read(field: FieldStand) -> str:
    stand = field.verdict.stand
    return "refused" if stand is Stand.REFUSED else "read"


def _owner(field: FieldStand) -> str:
    return field.key.partition(".")[0]


def _name(field: FieldStand) -> str:
    return field.key.partition(".")[2]
