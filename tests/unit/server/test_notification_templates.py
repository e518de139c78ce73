from __future__ import annotations

import json
from typing import Any

import pytest

from buildrunner.server.notifications.facts import TEMPLATE_NAMES, Facts, template_values
from buildrunner.server.notifications.notifier import GOLANG, JINJA
from buildrunner.server.notifications.templates import (
    MOST_CHARACTERS,
    Escapes,
    TemplateProblem,
    check_template,
    is_json,
    rendered,
)

BUILD: dict[str, Any] = {
    "id": "1",
    "projectId": "p",
    "status": "FAILURE",
    "tags": ["prod", "b"],
    "substitutions": {"_X": "y<z", "BRANCH_NAME": "main"},
    "steps": [{"name": "a"}, {"name": "b", "id": "x", "args": ["1"]}],
    "failureInfo": {"detail": 'step "a" failed'},
    "logUrl": "https://ci.example.com/1",
}


def said(text: str, kind: str, escapes: Escapes = "") -> str:
    facts = Facts(build=BUILD, labels={"trigger_name": "t"})
    values = template_values(facts, {"buildStatus": "FAILURE"})
    return rendered(text, kind, values, escapes=escapes)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("({{.Build.ProjectId}}, {{.Build.Id}}): {{.Params.buildStatus}}", "(p, 1): FAILURE"),
        ('{"a":{{.Build.Id}}}', '{"a":1}'),
        ('{{if eq .Build.Status "FAILURE"}}bad{{else}}good{{end}}', "bad"),
        ("{{if .Build.Images}}x{{else if .Build.Tags}}y{{else}}z{{end}}", "y"),
        ("{{range .Build.Steps}}[{{.Name}}{{if .Id}} {{.Id}}{{end}}]{{end}}", "[a][b x]"),
        ("{{range $i, $s := .Build.Steps}}{{$i}}={{$s.Name}}{{.Name}} {{end}}", "0=aa 1=bb "),
        (
            "{{range $k, $v := .Build.Substitutions}}{{$k}}={{.}};{{end}}",
            "BRANCH_NAME=main;_X=y<z;",
        ),
        ("{{range .Build.Images}}x{{else}}none of {{.Build.Id}}{{end}}", "none of 1"),
        ("{{range .Build.Steps}}{{$.Build.Id}}{{end}}", "11"),
        ("{{with .Build.FailureInfo}}{{.Detail}}{{end}}", 'step "a" failed'),
        ("{{with .Build.Results}}yes{{else}}no {{.Build.Id}}{{end}}", "no 1"),
        ("{{with $f := .Build.FailureInfo}}{{$f.Detail | len}}{{end}}", "15"),
        ('{{ (index .Build.Steps 1).Name | printf "%s-%d!" "x" 3 }}', None),
        ('{{ printf "%s-%03d %q %v" .Build.Id 3 "x" true }}', '1-003 "x" true'),
        ('{{replace .Build.LogUrl "https" "http"}}', "http://ci.example.com/1"),
        ("{{index .Build.Substitutions `_X` | html}} {{index .Build.Tags 0}}", "y&lt;z prod"),
        ("{{ .Build.Substitutions._NOPE }}", "<no value>"),
        ("{{$x := .Build.Id}}{{$x}} {{len .Build.Steps}} {{.Build.Tags}}", "1 2 [prod b]"),
        ("{{if and .Build.Id (not .Build.Images) (ne 1 2)}}ok{{end}}", "ok"),
        ("{{if or .Build.Images .Build.Tags}}ok{{end}} {{le 1 2}}", "ok true"),
        ("{{/* no\nword */}}x{{- ` y` -}}  z", "x yz"),
        ("{% raw %} {# x #} {{.Build.Id}}}", "{% raw %} {# x #} 1}"),
        ("{{range .Build.Steps}}\n- {{.Name}}\n{{- end}}\nend", "\n- a\n- b\nend"),
        ("{{slice .Build.LogUrl 0 5}} {{print .Build.Id 2}}{{println}}", "https 12\n"),
        ("{{urlquery .Build.LogUrl}}", "https%3A%2F%2Fci.example.com%2F1"),
    ],
)
def test_go_templates_say_what_they_say_on_the_hosted_service(
    text: str, expected: str | None
) -> None:
    if expected is None:
        with pytest.raises(TemplateProblem, match=r"line 1: printf"):
            said(text, GOLANG)
        return
    assert said(text, GOLANG) == expected


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("\n{{if .Build}}", "of if, range and with have no end"),
        ("a\n{{ foo }}", "line 2: there is no function foo"),
        ("{{ .Build.Id", "line 1: there is a {{ without its }}"),
        ("{{ end }}", "line 1: there is an end of nothing"),
        ("{{ else }}", "line 1: there is an else of nothing"),
        ('{{template "x"}}', "line 1: template is not understood here"),
        ("{{ .Build.Id .Build.Id }}", "line 1: a value can't be called"),
        ("{{ eq (.Build.Id }}", "line 1: a ) is missing"),
        ("{{ }}", "line 1: a value is missing"),
        ("{{ .Build | }}", "line 1: a value is missing"),
        ("{{ %% }}", "is not understood here"),
        ("{{ = }}", "is not understood here"),
        ("{{ .Build ) }}", "line 1: ')' is not understood here"),
        ("{{if $x := .Build}}{{end}}", "declare the variable before the if"),
        ("{{if .Build}}{{else with .Build}}{{end}}", "else with .Build is not understood"),
    ],
)
def test_a_go_template_that_can_not_be_read_names_its_line(text: str, wrong: str) -> None:
    with pytest.raises(TemplateProblem) as error:
        check_template(text, GOLANG, TEMPLATE_NAMES)
    assert wrong in str(error.value)


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("a\nb {{ .Build.Nope }}", "line 2: a Build has no field Nope"),
        ("{{ .Build.Id.X }}", "line 1: '1' has no field X"),
        ("{{ index .Build.Steps 7 }}", "has no index 7"),
        ("{{ range .Build.Id }}{{end}}", "range can't go through '1'"),
        ('{{ printf "%d" .Build.Id }}', "line 1: printf"),
        ('{{ printf "%99999d" 1 }}', "not understood here"),
        ("{{ slice 1 2 }}", "slice can't be taken of '1'"),
        ("{{ replace .Build.Id }}", "missing 2 required"),
    ],
)
def test_a_go_template_that_fails_names_its_line(text: str, wrong: str) -> None:
    with pytest.raises(TemplateProblem) as error:
        said(text, GOLANG)
    assert wrong in str(error.value)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("{{ build.status }}: {{ build.failureInfo.detail }}", 'FAILURE: step "a" failed'),
        ("{{ build.failure_info.type }} [{{ build.results.images | join }}]", None),
        ("{{ title }}", "FAILURE: t, main"),
        ("{% for s in build.steps %}{{ s.name }}{{ s.id }}{% endfor %}", "abx"),
        ("{% if build.failureInfo %}bad{% endif %}{% if build.results %}x{% endif %}", "bad"),
        ("{{ params.buildStatus }} {{ trigger }} {{ ref }} {{ detail }}", None),
    ],
)
def test_jinja_templates_see_the_build(text: str, expected: str | None) -> None:
    if expected is not None:
        assert said(text, JINJA) == expected
    assert said(text, JINJA)


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("x\n{{ build.nope }}", "line 2: there is no field 'nope'"),
        ("x\n\n{{ nope }}", "line 3: 'nope' is undefined"),
        ("{{ ''.__class__.__mro__ }}", "line 1: this is not allowed"),
        ("{{ build.update({1: 2}) }}", "line 1: this is not allowed"),
        ("{% for a in range(10**9) %}x{% endfor %}", "line 1: Range too big"),
        ("{% for a in range(99999) %}{{ build.logUrl }}{% endfor %}", "more than"),
        ("{% include 'x' %}", "line 1:"),
        ("{{ 1 / 0 }}", "line 1: division by zero"),
        ("{{ lipsum() }}", "line 1: 'lipsum' is undefined"),
    ],
)
def test_a_jinja_template_can_do_no_harm_and_names_its_line(text: str, wrong: str) -> None:
    with pytest.raises(TemplateProblem) as error:
        said(text, JINJA)
    assert wrong in str(error.value)


def test_a_jinja_template_that_can_not_be_read_names_its_line() -> None:
    with pytest.raises(TemplateProblem, match="line 2: "):
        check_template("a\n{% if %}", JINJA, TEMPLATE_NAMES)


def test_a_name_that_there_never_is_is_told_at_once() -> None:
    with pytest.raises(TemplateProblem, match="there is no name titel; did you mean title"):
        check_template("{{ title }} {{ titel }}", JINJA, TEMPLATE_NAMES)
    known = "{% for n in range(2) %}{{ n }}{% set x = build %}{{ x.id }}{% endfor %}"
    check_template(
        known + "".join(f"{{{{ {name} }}}}" for name in TEMPLATE_NAMES), JINJA, TEMPLATE_NAMES
    )
    seen = template_values(Facts(build=BUILD), {}).keys()
    assert seen - {"go_root"} == TEMPLATE_NAMES


def test_a_template_has_a_limit() -> None:
    assert len(said("{{ 'x' * 200000 }}", JINJA)) < MOST_CHARACTERS
    with pytest.raises(TemplateProblem, match="more than 262144 characters"):
        said("{{ 'x' * 300000 }}", JINJA)


@pytest.mark.parametrize(
    ("kind", "first", "second", "third"),
    [
        (JINJA, "{{ detail }}", "{{ detail | tojson }}", "{{ build.steps | length }}"),
        (
            GOLANG,
            "{{.Build.FailureInfo.Detail}}",
            '{{printf "%q" .Build.FailureInfo.Detail}}',
            "{{len .Build.Steps}}",
        ),
    ],
)
def test_values_stay_values_in_json(kind: str, first: str, second: str, third: str) -> None:
    text = f'{{"a": "{first}", "b": {second}, "n": {third}}}'
    detail = 'step "a" failed'
    assert json.loads(said(text, kind, "json")) == {"a": detail, "b": detail, "n": 2}


def test_values_stay_values_in_html() -> None:
    text = "<p>{{ build.substitutions._X }}</p>"
    assert said(text, JINJA, "html") == "<p>y&lt;z</p>"


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ('{"a": 1}', True),
        ("\n[ {{ x }} ]", True),
        ('{% if x %}{"a": 1}{% endif %}', True),
        ("{{ title }}", False),
        ("{{ build | tojson }}", False),
        ('{{if .Build}}{"a": {{.Build.Id}}}{{end}}', True),
        ("[{{ ref }}] failed", False),
        ("[{{ ref }}] {{ build.status }}", False),
        ("", False),
    ],
)
def test_a_template_makes_json_if_it_begins_like_it(text: str, answer: bool) -> None:
    assert is_json(text) is answer
