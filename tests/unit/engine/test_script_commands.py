"""Which commands of a script run in any case."""

from __future__ import annotations

import time
import tracemalloc

import pytest

from buildrunner.engine.deploy_commands import commands_of_script, suggested
from buildrunner.plan.build_plan import StepPlan

KUBECTL = "kubectl apply -f k8s"


def commands(script: str, **env: str) -> list[list[str]]:
    return list(commands_of_script(script, env))


@pytest.mark.parametrize(
    "before",
    [
        "cat > deploy.sh <<EOF\n{}\nEOF",
        "cat > deploy.sh <<'EOF'\n{}\nEOF",
        'cat > deploy.sh << "EOF"\n{}\nEOF',
        "cat > deploy.sh <<-EOF\n{}\n\tEOF",
        "cat <<ONE <<TWO\n{}\nONE\n{}\nTWO",
        "if false; then\n{}\nfi",
        "if false\nthen\n{}\nelse\n{}\nfi",
        "if a; then\nif b; then\n{}\nfi\n{}\nfi",
        "for one in $LIST; do\n{}\ndone",
        "for ((n=0; n<3; n++)); do\n{}\ndone",
        "while read -r one; do\n{}\ndone < list",
        "until true; do {}; done",
        'case "$1" in\nstart|stop)\n{}\n;;\n(other) {};;\nesac',
        "deploy() {{\n{}\n}}",
        "deploy ( )\n{{\n{}\n}}",
        "function deploy {{\n{}\n}}",
        "function deploy() {{\n{}\n}}",
        "deploy() (\n{}\n)",
        "false || {{\n{}\n}}",
        "[ $# -gt 9 ] || {{\n{}\n}}",
        "(\n{}\n)",
        "NAME=$(\n{}\n)",
        "false ||\n{}",
        "true | # a comment\n{}",
        '[ -n "$TAG" ] && {}',
        "[[ $TAG =~ (a|b) ]] &&\n{}",
        "echo '\n{}\n'",
        'echo "\n{}\n"',
        "echo \\\n{}",
        "# don't\n# {}",
        "echo it is ; # ( {}",
        "  {}",
        "true & {}",
    ],
)
def test_a_command_in_another_part_of_a_script_counts_not_and_the_one_behind_does(
    before: str,
) -> None:
    script = f"{before.format(KUBECTL, KUBECTL)}\nhelm upgrade web .\n"
    found = [one[0] for one in commands(script)]
    assert "kubectl" not in found
    assert found[-1] == "helm"


@pytest.mark.parametrize(
    "script",
    [
        f"cat <<EOF\n{KUBECTL}",
        f"echo 'open\n{KUBECTL}",
        f"exit\n{KUBECTL}",
        f"true; exit 0; {KUBECTL}",
        f"  exit\n{KUBECTL}",
        f"if true; then\n{KUBECTL}",
        f"{'(' * 101}true{')' * 101}\n{KUBECTL}",
        f"{KUBECTL}\n{'#' * (1 << 20)}",
    ],
)
def test_a_script_that_leaves_a_doubt_has_no_such_command(script: str) -> None:
    assert "kubectl" not in [one[0] for one in commands(script)]


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("a 'b c' \"d e\" f\\ g", ["a", "b c", "d e", "f g"]),
        ("a \"$X\" '$X' ${X} \\$X $Y", ["a", "x y", "$X", "x y", "$X", "$Y"]),
        ('a "\\"b\\"" "c\\\n d"', ["a", '"b"', "c d"]),
        ("a b#c $#", ["a", "b#c", "$#"]),
        ("a '(' '<<EOF' 'if'", ["a", "(", "<<EOF", "if"]),
        ("a b=$(cat c | d) e > f g", ["a", "b=$"]),
        ("a <<EOF b\nc\nEOF\n", ["a"]),
        ("{ a; }; if b; then c; fi", []),
        (f"a {'b' * 4096} {'b' * 4097}", ["a", "b" * 4096, "$"]),
    ],
)
def test_a_command_has_its_words(script: str, words: list[str]) -> None:
    assert commands(script, X="x y") == ([words] if words else [])


@pytest.mark.parametrize(
    "script",
    [
        "kubectl " + "a" * (1 << 19) + " " + "'a'" * 100_000,
        "kubectl apply " + "$A$A" * 100_000,
        'kubectl "' + "\\a" * 400_000,
        "kubectl " + "'\"" * 400_000,
        "kubectl\n" + "cat <<a\n" * 100_000,
        "kubectl " + "".join(f"<<e{number} " for number in range(80_000)) + "\na\n",
        "kubectl " + "(" * 900_000,
        "kubectl\n" + "if " * 300_000,
        "kubectl " + "ab " * 300_000,
    ],
    ids=[
        "word",
        "variables",
        "open",
        "quotes",
        "documents",
        "ends",
        "parentheses",
        "blocks",
        "words",
    ],
)
def test_a_script_costs_little_time_and_memory(script: str) -> None:
    step = StepPlan(index=0, image="i", script=script, env=("A=" + "a" * 1000,))
    began = time.process_time()
    suggested(step, "p")
    assert time.process_time() - began < 5
    tracemalloc.start()
    try:
        for words in commands_of_script("kubectl apply " + "$A$A" * 10_000, {"A": "a" * 10_000}):
            assert words[-1] == "$"
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()
