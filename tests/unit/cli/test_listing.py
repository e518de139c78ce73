"""How lists are printed for scripts: gcloud's ``value(FIELD, ...)``."""

import pytest

from buildrunner.cli.terminal.listing import formatted, is_value_form, table

BUILD = {
    "id": "b1",
    "status": "SUCCESS",
    "tags": ["x", "y"],
    "steps": [{"name": "a", "args": ["1", "2"]}, {"name": "b"}],
    "results": {"images": [{"name": "r/a:1", "digest": "sha256:22"}]},
    "substitutions": {"_A": "1", "_B": "2"},
    "options": {"dynamicSubstitutions": True},
}


@pytest.mark.parametrize(
    ("form", "line"),
    [
        ("value(id)", "b1"),
        ("get(id)", "b1"),
        ("value(id,status)", "b1\tSUCCESS"),
        ("value( id , status )", "b1\tSUCCESS"),
        ("value(results.images[0].digest)", "sha256:22"),
        ("value(results.images[1].digest)", ""),
        ("value(steps[].name)", "a;b"),
        ("value(steps.name)", "a;b"),
        ("value(steps[0].args)", "1;2"),
        ("value(steps[1].args,id)", "\tb1"),
        ("value(tags)", "x;y"),
        ("value(tags[1])", "y"),
        ("value(substitutions)", "_A=1;_B=2"),
        ("value(substitutions._A)", "1"),
        ("value(options.dynamicSubstitutions)", "True"),
        ("value(nothing.at.all)", ""),
    ],
)
def test_values(form, line):
    assert formatted(BUILD, form) == f"{line}\n"
    assert formatted([BUILD, BUILD], form) == f"{line}\n" * 2


def test_no_entry_is_no_line():
    assert formatted([], "value(id)") == ""


@pytest.mark.parametrize(
    "form",
    ["value", "value()", "value(id", "value(id,)", "value(id.date())", "csv(id)", "value(.)"],
)
def test_what_is_no_such_form(form):
    assert not is_value_form(form)


def test_a_table_shows_texts_of_others_as_text():
    made = table(("ID", "SOURCE"), [("b1", "x\x1b]0;title\x07\x1b[2K\rb2  SUCCESS\nb3")])
    assert made.splitlines()[1] == r"b1  x\x1b]0;title\x07\x1b[2K\rb2  SUCCESS\nb3"
    assert len(made.splitlines()) == 2
