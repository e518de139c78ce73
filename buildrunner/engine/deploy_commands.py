"""Deployments that the command of a step suggests. Pure.

For steps that succeeded and reported nothing: the arguments and the environment of a known tool
name the target, and mostly no digest. Of scripts, only the commands count that run in any case
(`commands_of_script`). No part of a script is run; in doubt, a command does not count.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Final, NamedTuple

import msgspec
from msgspec.structs import replace

from buildrunner.engine.deployments import MOST_OF_STEP, Deployment, is_reference
from buildrunner.engine.image_pulls import split_reference
from buildrunner.plan.build_plan import StepPlan

_SHELLS = frozenset({"ash", "bash", "dash", "sh"})
_SDK_IMAGES = frozenset({"cloud-sdk", "google-cloud-cli"})
_KINDS = {
    **dict.fromkeys(("deploy", "deployment", "deployments", "deployment.apps"), "Deployment"),
    **dict.fromkeys(("sts", "statefulset", "statefulsets", "statefulset.apps"), "StatefulSet"),
    **dict.fromkeys(("ds", "daemonset", "daemonsets", "daemonset.apps"), "DaemonSet"),
    **dict.fromkeys(("cj", "cronjob", "cronjobs", "cronjob.batch"), "CronJob"),
}
# Flags that take no value; other flags take the next word.
_SWITCHES = frozenset(
    {
        *("-i", "-q", "-R", "-V", "--all", "--allow-unauthenticated", "--async", "--atomic"),
        *("--cleanup-on-fail", "--create-namespace", "--debug", "--dependency-update", "--force"),
        *("--gen2", "--install", "--prune", "--promote", "--quiet", "--record", "--recursive"),
        *("--reset-values", "--reuse-values", "--server-side", "--skip-crds", "--trigger-http"),
        *("--verbose", "--wait", "--wait-for-jobs"),
    }
)
_DRY = frozenset({"-D", "--dry-run", "--server-dry-run", "--validate-only"})

_MOST_SCRIPT: Final = 1 << 20
_MOST_WORD: Final = 4096
_DEEPEST: Final = 100

_DOUBLE = r'"[^"\\]*(?:\\.[^"\\]*)*"'
_VARIABLE = r"\$(?:(?P<name>\w+)|\{(?P<braced>\w+)\})"
_TOKEN = re.compile(
    r"(?:[ \t\r]|\\\n)+|\#[^\n]*"
    r"|(?P<operator>\n|;;&|;;|;&|;|&&|&>>|&>|&|\|\||\|&|\||<<<|<<-|<<|<>|<&|<|>>|>&|>\||>|\(|\))"
    rf"|(?P<word>(?:[^\s'\"\\;&|()<>]+|\\.|'[^']*'|{_DOUBLE})+)",
    re.DOTALL,
)
_PIECE = re.compile(
    rf"'(?P<single>[^']*)'|(?P<double>{_DOUBLE})|\\(?P<escaped>.)|{_VARIABLE}|[^'\"\\$]+|\$",
    re.DOTALL,
)
_PIECE_IN_QUOTES = re.compile(rf"\\(?P<escaped>[\"\\$`\n])|{_VARIABLE}|[^\\$]+|.", re.DOTALL)

_SEPARATORS = frozenset({"\n", ";", ";;", ";&", ";;&", "&&", "||", "|", "|&", "&"})
_CONTINUED = frozenset({"&&", "||", "|", "|&"})  # a newline after one of these ends no list
_REDIRECTIONS = frozenset({"<<<", "<<-", "<<", "<>", "<&", "<", ">>", ">&", ">|", ">", "&>>", "&>"})
_BLOCKS = {
    **dict.fromkeys(("for", "select", "until", "while"), "done"),
    "if": "fi",
    "case": "esac",
    "{": "}",
}
_HEADED = frozenset({"case", "for", "select"})  # words follow, not a command
_INNER = frozenset({"!", "do", "elif", "else", "then", "time"})  # a command follows
_CONDITIONS = frozenset({"[", "[[", "false", "test"})


class _Command(NamedTuple):
    """The words of a command without its flags, and the flags' values."""

    words: tuple[str, ...]
    flags: Mapping[str, str]

    def first(self, *names: str) -> str:
        """Return the value of the first of those flags that has one."""
        return next((self.flags[name] for name in names if self.flags.get(name)), "")


def suggested(step: StepPlan, project: str) -> tuple[Deployment, ...]:
    """Return the deployments that the commands of a step suggest; empty for most steps.

    The first hundred targets count, as in a report.

    Args:
        step: a step that succeeded.
        project: the build's project, which the tools use unless a command names another.
    """
    env = {"CLOUDSDK_CORE_PROJECT": project}
    env |= dict(entry.partition("=")[::2] for entry in step.env)
    found: dict[str, Deployment] = {}
    for program, arguments in _commands(step, env):
        read = _TOOLS.get(program)
        if read is None or any(word.partition("=")[0] in _DRY for word in arguments):
            continue
        one = read(_command(arguments), env)
        if one is None or "$" in one.target:
            continue
        known = tuple(image for image in one.images if is_reference(image))
        try:  # the arguments may break the rules of a deployment
            checked = msgspec.to_builtins(replace(one, images=known))
            found[one.target] = msgspec.convert(checked, Deployment)
        except msgspec.ValidationError:
            continue
        if len(found) == MOST_OF_STEP:
            break
    return tuple(found.values())


def _commands(step: StepPlan, env: Mapping[str, str]) -> Iterable[tuple[str, Sequence[str]]]:
    """Return the programs that a step runs, with their arguments, as far as its text shows."""
    arguments = step.args or ()
    if step.script is not None:
        return _of_script(step.script, env)
    if step.entrypoint is None:
        last = split_reference(step.image)[0].rpartition("/")[2]
        if last in _SDK_IMAGES:
            last, arguments = (*arguments[:1], "")[0], arguments[1:]
    else:
        last = step.entrypoint
    last = last.rpartition("/")[2]
    if last in _SHELLS and len(arguments) > 1 and re.fullmatch("-[a-z]*c", arguments[0]):
        return _of_script(arguments[1], env)
    return [(last.removesuffix("-slim").removesuffix(".bash"), arguments)]


def _of_script(text: str, env: Mapping[str, str]) -> Iterator[tuple[str, Sequence[str]]]:
    if any(tool in text for tool in _TOOLS):
        for program, *arguments in commands_of_script(text, env):
            yield program.rpartition("/")[2], arguments


def _command(arguments: Sequence[str]) -> _Command:
    words: list[str] = []
    flags: dict[str, str] = {}
    rest = iter(arguments)
    for argument in rest:
        if argument == "--":
            break
        name, equals, value = argument.partition("=")
        if not argument.startswith("-"):
            words.append(argument)
        elif equals:
            flags[name] = value
        elif name not in _SWITCHES and not name.startswith("--no-"):
            flags[name] = next(rest, "")
    return _Command(tuple(words), flags)


def _cluster(command: _Command, env: Mapping[str, str]) -> str:
    cluster = command.first("--cluster", "-c") or env.get("CLOUDSDK_CONTAINER_CLUSTER", "")
    place = (
        command.first("--location", "-l")
        or env.get("CLOUDSDK_COMPUTE_REGION", "")
        or env.get("CLOUDSDK_COMPUTE_ZONE", "")
    )
    if not cluster or not place:
        return "kubernetes://-"
    project = command.first("--project", "-p") or env["CLOUDSDK_CORE_PROJECT"]
    return f"gke://{project}/{place}/{cluster}"


def _of_gke_deploy(command: _Command, env: Mapping[str, str]) -> Deployment | None:
    if command.words[:1] not in (("run",), ("apply",)):
        return None
    namespace = command.first("--namespace", "-n") or "default"
    image = command.first("--image", "-i")
    target = f"{_cluster(command, env)}/{namespace}"
    if image and not command.first("--filename", "-f"):
        app = command.first("--app", "-a") or split_reference(image)[0].rpartition("/")[2]
        target += f"/Deployment/{app}"
    return Deployment(target=target, images=(image,) if image else ())


def _of_kubectl(command: _Command, env: Mapping[str, str]) -> Deployment | None:
    namespace = command.first("--namespace", "-n") or "default"
    target = f"{_cluster(_Command((), {}), env)}/{namespace}"
    match command.words:
        case ("apply" | "replace", *_):
            return Deployment(target=target)
        case ("set", "image", *named) | ("rollout", "restart" | "undo", *named) if named:
            kind, slash, name = named[0].partition("/")
            values = [one.partition("=")[2] for one in named[1:] if "=" in one]
            if not slash:
                name = named[1] if len(named) > 1 else ""
            known = _KINDS.get(kind.casefold())
            if known and name:
                return Deployment(target=f"{target}/{known}/{name}", images=tuple(values))
            return None
        case _:
            return None


def _of_helm(command: _Command, env: Mapping[str, str]) -> Deployment | None:
    match command.words:
        case ("upgrade" | "install", release, _, *_):
            namespace = command.first("--namespace", "-n") or "default"
            cluster = _cluster(_Command((), {}), env)
            version = command.first("--version")
            return Deployment(
                target=f"{cluster}/{namespace}/HelmRelease/{release}", version=version
            )
        case _:
            return None


def _of_gcloud(command: _Command, env: Mapping[str, str]) -> Deployment | None:
    words = [word for word in command.words if word not in ("alpha", "beta")]
    project = command.first("--project") or env["CLOUDSDK_CORE_PROJECT"]
    image = command.first("--image", "--image-url", "--docker-repository")
    images = (image,) if image else ()
    match words:
        case ["run", "deploy", name] | ["run", "services", "update", name]:
            region = command.first("--region") or env.get("CLOUDSDK_RUN_REGION", "-")
            return Deployment(target=f"run://{project}/{region}/{name}", images=images)
        case ["functions", "deploy", name]:
            region = command.first("--region") or env.get("CLOUDSDK_FUNCTIONS_REGION", "-")
            return Deployment(target=f"functions://{project}/{region}/{name}")
        case ["app", "deploy", *_]:
            version = command.first("--version", "-v")
            return Deployment(target=f"appengine://{project}", images=images, version=version)
        case _:
            return None


_TOOLS: Final = {
    "gcloud": _of_gcloud,
    "gke-deploy": _of_gke_deploy,
    "helm": _of_helm,
    "kubectl": _of_kubectl,
}


def commands_of_script(text: str, env: Mapping[str, str]) -> Iterator[list[str]]:
    """Yield the commands of a script that run in any case, each up to its first redirection.

    Left out are commands in blocks, functions, subshells, here-documents and indented lines,
    commands behind a pipe, a test or ``||``, and all behind ``exit``.

    Args:
        text: the script. One above 1 MiB has no commands.
        env: values of variables. The names of other variables stay, with their ``$``. A word
            whose value exceeds 4 KiB is ``$``.
    """
    if len(text) > _MOST_SCRIPT:
        return
    for command in _Scanner().commands(text):
        words = [_value(word, env) for word in command]
        if words[0] == "exit":
            return
        yield words


class _Outer(NamedTuple):
    """An open block, subshell or substitution, and the command that it is part of."""

    end: str
    command: list[str]
    is_skipped: bool


class _Scanner:
    def __init__(self) -> None:
        self._outer: list[_Outer] = []
        self._command: list[str] = []
        self._is_skipped = False  # the command runs in some cases only
        self._is_closed = False  # further words do not belong to the command
        self._is_indented = False
        self._before = "\n"

    def commands(self, text: str) -> Iterator[list[str]]:
        """Yield the commands, as words with their quotes."""
        self._is_indented = text[:1].isspace()
        for word, behind in _tokens(text):
            if word in _SEPARATORS:
                yield from self._ended()
                self._separate(word, behind)
                if word == "\n" and self._before in _CONTINUED:
                    continue
            elif word == "(":
                self._begin(")", self._command)
            elif word == ")":
                self._end_parenthesis()
            elif word in _REDIRECTIONS:
                self._is_closed = True
            else:
                self._take(word)
            if len(self._outer) > _DEEPEST:
                return
            self._before = word
        yield from self._ended()

    def _ended(self) -> Iterator[list[str]]:
        command = self._command
        is_counted = command and not self._outer and not self._is_skipped
        if is_counted and (not self._is_indented or command[0] == "exit"):
            yield command

    def _separate(self, separator: str, behind: str) -> None:
        if separator in ("\n", ";"):
            is_continued = separator == "\n" and self._before in _CONTINUED
            self._is_skipped = self._is_skipped and is_continued
        elif separator != "&&" or (self._command and self._command[0] in _CONDITIONS):
            self._is_skipped = True
        if separator == "\n":
            self._is_indented = behind.isspace()
        self._command, self._is_closed = [], False

    def _begin(self, end: str, command: list[str]) -> None:
        self._outer.append(_Outer(end, command, self._is_skipped))
        self._command, self._is_closed = [], False

    def _end_parenthesis(self) -> None:
        self._command = []
        if self._outer and self._outer[-1].end == ")":  # others end a pattern of ``case``
            _, self._command, self._is_skipped = self._outer.pop()
            self._is_closed = True

    def _take(self, word: str) -> None:
        if word in _BLOCKS and self._may_begin_block():
            self._begin(_BLOCKS[word], [])
            self._command = [word] if word in _HEADED else []
        elif self._is_closed or (word in _INNER and not self._command):
            return
        elif self._outer and word == self._outer[-1].end and not self._command:
            self._is_skipped = self._outer.pop().is_skipped
            self._is_closed = True
        else:
            self._command.append(word)

    def _may_begin_block(self) -> bool:
        """Return whether a command, or the body of a function, may begin here."""
        command = self._command
        return (
            not command or self._before == ")" or (command[0] == "function" and len(command) == 2)
        )


def _tokens(text: str) -> Iterator[tuple[str, str]]:
    """Yield operators and words, each with the character behind it; nothing of here-documents.

    An open quote and a here-document without its end are the end of the script.
    """
    place, before = 0, ""
    ends: list[tuple[str, bool]] = []
    while found := _TOKEN.match(text, place):
        place = found.end()
        if found.lastgroup is None:  # a blank or a comment
            continue
        if before in ("<<", "<<-"):
            ends.append((_value(found[0], {}), before == "<<-"))
        before = found[0]
        if before == "\n":
            for end, has_tabs in ends:
                place = _behind_document(text, place, end, has_tabs)
            ends = []
        yield before, text[place : place + 1]


def _behind_document(text: str, place: int, end: str, has_tabs: bool) -> int:
    """Return the place after a here-document that begins at ``place``."""
    while place < len(text):
        newline = text.find("\n", place)
        stop = newline if newline >= 0 else len(text)
        line, place = text[place:stop], stop + 1
        if (line.lstrip("\t") if has_tabs else line) == end:
            break
    return place


def _value(word: str, env: Mapping[str, str]) -> str:
    found: list[str] = []
    room = _MOST_WORD
    for piece in _pieces(word, env, _PIECE):
        room -= len(piece)
        if room < 0:
            return "$"
        found.append(piece)
    return "".join(found)


def _pieces(text: str, env: Mapping[str, str], pattern: re.Pattern[str]) -> Iterator[str]:
    for piece in pattern.finditer(text):
        kind = piece.lastgroup
        if kind is None:
            yield piece[0]
        elif kind == "double":
            yield from _pieces(piece[0][1:-1], env, _PIECE_IN_QUOTES)
        elif kind in ("name", "braced"):
            yield env.get(piece[kind], piece[0])
        elif piece[kind] != "\n" or kind == "single":
            yield piece[kind]
