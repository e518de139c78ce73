r"""Ignore rules for files of a local folder: ``.gcloudignore``.

The syntax is gitignore's, with ``#!include:FILE`` added. Only the rules file of the root counts;
files of the same kind further down are ordinary files.

Every rule becomes one alternative of a regular expression, newest rule first, so that the first
alternative that matches is the last rule that matches. The expressions hold no ambiguity (each
``*`` is atomic up to the text that follows it), so matching takes linear time with any rules.

Source: semantics of ``gcloud topic gcloudignore`` and gitignore(5). Where the gcloud of today
differs from gitignore by accident (``a/b`` is not anchored there, ``a/**`` also ignores ``a``
itself, ``\*`` is a wildcard), gitignore is followed, as the page of gcloudignore promises.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence

import msgspec

from buildrunner.errors import SourceError, UsageError

IGNORE_FILE = ".gcloudignore"
_INCLUDE = "!include:"
_DEFAULT_RULES = (".gcloudignore", ".git", ".gitignore")


class Rule(msgspec.Struct, frozen=True):
    """One line of a rules file.

    Attributes:
        regex: expression that matches the whole name, or the whole path if ``anchored``.
        anchored: match the path from the root rather than the name alone.
        negated: a match includes the file again.
        directories_only: only directories match.
    """

    regex: str
    anchored: bool
    negated: bool
    directories_only: bool


class IgnoreRules:
    """A compiled set of rules. Immutable, so that any thread may use it.

    Attributes:
        origin: where the rules are from, for messages: a file name, ``generated defaults``, or
            empty if nothing is ignored.
    """

    __slots__ = ("_directories", "_files", "origin")

    def __init__(self, rules: Sequence[Rule], origin: str = "") -> None:
        self.origin = origin
        self._directories = _Matcher(rules)
        self._files = _Matcher([rule for rule in rules if not rule.directories_only])

    @property
    def empty(self) -> bool:
        """Return whether nothing can be ignored."""
        return self._directories.empty

    def ignores(self, path: str, *, is_directory: bool) -> bool:
        """Return whether the rules ignore ``path``.

        Its parents must not be ignored themselves: a walk never descends into an ignored folder,
        which is why a rule can't include a file of an ignored folder again.

        Args:
            path: relative to the root, with ``/`` between names; undecodable bytes as surrogates.
            is_directory: it is a directory, or a symbolic link to one (as for gcloud).
        """
        matcher = self._directories if is_directory else self._files
        return matcher.ignores(path)


class _Matcher:
    """Rules for one kind of file, as two expressions: by name and by path."""

    __slots__ = ("_names", "_negated", "_paths", "empty")

    def __init__(self, rules: Sequence[Rule]) -> None:
        self.empty = all(rule.negated for rule in rules)
        newest_first = tuple(reversed(rules))
        # Group N of either expression is rule N-1 of newest_first: `()` keeps the numbers equal.
        self._names = _compile([None if rule.anchored else rule.regex for rule in newest_first])
        self._paths = _compile([rule.regex if rule.anchored else None for rule in newest_first])
        self._negated = tuple(rule.negated for rule in newest_first)

    def ignores(self, path: str) -> bool:
        if self.empty:
            return False
        newest = 0
        if self._names is not None:
            match = self._names.fullmatch(path, path.rfind("/") + 1)
            if match is not None:
                newest = match.lastindex or 0
        if self._paths is not None:
            match = self._paths.fullmatch(path)
            if match is not None and (not newest or (match.lastindex or 0) < newest):
                newest = match.lastindex or 0
        return bool(newest) and not self._negated[newest - 1]


def _compile(alternatives: Sequence[str | None]) -> re.Pattern[str] | None:
    """Join patterns into one expression whose group names the match; None without patterns."""
    if not any(alternative is not None for alternative in alternatives):
        return None
    groups = (r"((?!))" if regex is None else f"({regex})" for regex in alternatives)
    return re.compile("|".join(groups), re.DOTALL)


def parse_rule(line: str) -> Rule | None:
    """Return the rule of a line; None for blank, comment and unparsable lines."""
    if line.startswith("#"):
        return None
    line = _strip_trailing_spaces(line)
    negated = line.startswith("!")
    if negated:
        line = line[1:]
    directories_only = line.endswith("/")
    if directories_only:
        line = line[:-1]
    if not line:
        return None
    anchored = "/" in line

    try:
        regex = translate_glob(line.removeprefix("/"), across_directories=anchored)
    except BadPattern:
        return None
    return Rule(regex, anchored, negated, directories_only)


def _strip_trailing_spaces(line: str) -> str:
    """Return ``line`` without trailing spaces, except one after a backslash."""
    stripped = line.rstrip(" ")
    backslashes = len(stripped) - len(stripped.rstrip("\\"))
    return stripped + " " if backslashes % 2 and len(stripped) < len(line) else stripped


def parse_rules(text: str, directory: str, *, includes: bool = True) -> list[Rule]:
    """Return the rules in ``text``.

    Args:
        text: content of a rules file.
        directory: folder that ``#!include:`` reads from.
        includes: follow ``#!include:``; False inside an included file (one level only).

    Raises:
        SourceError: an included file can't be read or is in another folder.
    """
    rules: list[Rule] = []
    for line in text.splitlines():
        directive = line[1:].lstrip() if line.startswith("#") else ""
        if directive.startswith(_INCLUDE):
            if includes:
                rules += _included_rules(directive.removeprefix(_INCLUDE), directory)
            continue
        rule = parse_rule(line)
        if rule is not None:
            rules.append(rule)
    return rules


def _included_rules(name: str, directory: str) -> list[Rule]:
    if "/" in name:
        raise SourceError(
            f"#!include:{name} names a file of another folder",
            hint="only files beside the rules file can be included",
        )
    text = _read_rules(os.path.join(directory, name))
    if text is None:
        raise SourceError(
            f"#!include:{name}: there is no such file in {directory}",
            hint="create it or remove the line",
        )
    return parse_rules(text, directory, includes=False)


def _read_rules(path: str) -> str | None:
    """Return the text of a rules file without its byte order mark; None if there is no file."""
    try:
        with open(path, encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
            return file.read()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise SourceError(f"can't read ignore rules {path}: {error.strerror}") from error


def load_ignore_rules(
    directory: str, *, ignore_file: str = "", enabled: bool = True
) -> IgnoreRules:
    """Return the rules for the folder ``directory``.

    The first of these counts: ``ignore_file``; ``.gcloudignore`` of the folder; if the folder has
    ``.git`` or ``.gitignore``, a default that ignores both, ``.gcloudignore`` and everything that
    ``.gitignore`` ignores. Otherwise nothing is ignored.

    Args:
        directory: the source folder.
        ignore_file: ``--ignore-file``, relative to the folder; empty for none.
        enabled: False ignores nothing (gcloud's ``gcloudignore/enabled``), unless ``ignore_file``
            is given.

    Raises:
        UsageError: ``ignore_file`` does not exist.
        SourceError: rules can't be read, or an include is invalid.

    Source: ``gcloud builds submit --ignore-file`` and ``gcloud topic gcloudignore``.
    """
    if ignore_file:
        path = os.path.join(directory, ignore_file)
        text = _read_rules(path)
        if text is None:
            raise UsageError(
                f"--ignore-file: there is no {ignore_file} in {directory}",
                hint="name a file relative to the source folder",
            )
        return IgnoreRules(parse_rules(text, os.path.dirname(path)), ignore_file)
    if not enabled:
        return IgnoreRules(())
    text = _read_rules(os.path.join(directory, IGNORE_FILE))
    if text is not None:
        return IgnoreRules(parse_rules(text, directory), IGNORE_FILE)
    return _default_rules(directory)


def _default_rules(directory: str) -> IgnoreRules:
    has_gitignore = os.path.exists(os.path.join(directory, ".gitignore"))
    if not has_gitignore and not os.path.exists(os.path.join(directory, ".git")):
        return IgnoreRules(())
    lines = list(_DEFAULT_RULES)
    if has_gitignore:
        lines.append("#!include:.gitignore")
    return IgnoreRules(parse_rules("\n".join(lines), directory), "generated defaults")


_DIGITS = "0123456789"
_LOWER = "abcdefghijklmnopqrstuvwxyz"
_UPPER = _LOWER.upper()
_POSIX_CLASSES = {
    "alnum": _LOWER + _UPPER + _DIGITS,
    "alpha": _LOWER + _UPPER,
    "blank": " \t",
    "cntrl": "".join(map(chr, (*range(32), 127))),
    "digit": _DIGITS,
    "graph": "".join(map(chr, range(33, 127))),
    "lower": _LOWER,
    "print": "".join(map(chr, range(32, 127))),
    "punct": "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~",
    "space": " \t\n\r\v\f",
    "upper": _UPPER,
    "xdigit": _DIGITS + "abcdefABCDEF",
}


class BadPattern(ValueError):
    """The glob can't match anything: an open bracket, a backslash at the end, an unknown class."""


def translate_glob(glob: str, *, across_directories: bool) -> str:
    """Return a regular expression (for fullmatch, with DOTALL) equivalent to ``glob``.

    Args:
        glob: without the leading and trailing ``/`` of its line.
        across_directories: ``glob`` is matched against a path, and ``**`` between slashes crosses
            directories; False when it is matched against one name.

    Raises:
        BadPattern: the glob can't match anything.

    Source: gitignore(5), "PATTERN FORMAT".
    """
    if not across_directories:
        return _translate_name(glob)
    names = _split(glob)
    parts: list[str] = []
    segment = ""  # names since the last `**`, each with its slash
    crossing = False
    for position, name in enumerate(names):
        last = position == len(names) - 1
        if name == "**" and not last:
            parts.append(_join(crossing, segment, atomic=True))
            segment, crossing = "", True
        elif name == "**":
            # Matches the content of the directory, never the directory itself.
            segment += ".+"
        else:
            segment += _translate_name(name) + ("" if last else "/")
    parts.append(_join(crossing, segment, atomic=False))
    return "".join(parts)


def _split(glob: str) -> list[str]:
    """Split ``glob`` at its slashes, except those inside brackets."""
    names: list[str] = []
    start = position = 0
    while position < len(glob):
        character = glob[position]
        position += 1
        if character == "/":
            names.append(glob[start : position - 1])
            start = position
        elif character == "\\":
            position += 1
        elif character == "[":
            _, position = _translate_class(glob, position)
    names.append(glob[start:])
    return names


def _join(crossing: bool, segment: str, *, atomic: bool) -> str:
    """Return ``segment``, after any number of directories if ``crossing``.

    The first match of a segment is as good as any later one, so a segment that others follow is
    atomic: this keeps matching linear.
    """
    if not crossing:
        return segment
    if not segment:
        return ""
    if atomic:
        return f"(?>(?:[^/]*/)*?{segment})"
    return f"(?:[^/]*/)*?{segment}"


def _translate_name(glob: str) -> str:
    """Translate one name of a path, or a glob for names only: no wildcard matches a slash."""
    fixed: list[str] = [""]  # the parts between the stars
    position = 0
    while position < len(glob):
        character = glob[position]
        position += 1
        if character == "*":
            if fixed[-1] or len(fixed) == 1:
                fixed.append("")
        elif character == "?":
            fixed[-1] += "[^/]"
        elif character == "[":
            text, position = _translate_class(glob, position)
            fixed[-1] += text
        elif character == "\\":
            if position == len(glob):
                raise BadPattern("nothing follows the backslash")
            fixed[-1] += re.escape(glob[position])
            position += 1
        else:
            fixed[-1] += re.escape(character)
    if len(fixed) == 1:
        return fixed[0]
    middle = "".join(f"(?>[^/]*?{text})" for text in fixed[1:-1])
    return f"{fixed[0]}{middle}[^/]*{fixed[-1]}"


def _translate_class(glob: str, position: int) -> tuple[str, int]:
    """Return the regular expression of the class whose ``[`` is before ``position``.

    The second value is the position after the class.
    """
    negated = glob[position : position + 1] in ("!", "^")
    position += negated
    members: list[str] = []
    first = True
    while first or glob[position : position + 1] != "]":
        if glob.startswith("[:", position):
            end = glob.find(":]", position)
            name = glob[position + 2 : end] if end > 0 else ""
            if name not in _POSIX_CLASSES:
                raise BadPattern(f"unknown class [:{name}:]")
            members.append("".join(map(re.escape, _POSIX_CLASSES[name])))
            position = end + 2
        else:
            low, position = _class_member(glob, position)
            if glob[position : position + 1] == "-" and glob[position + 1 : position + 2] != "]":
                high, position = _class_member(glob, position + 1)
                if low <= high:  # an empty range matches nothing
                    members.append(f"{re.escape(low)}-{re.escape(high)}")
            else:
                members.append(re.escape(low))
        first = False
    position += 1
    text = "".join(members)
    if negated:
        return f"[^/{text}]", position
    return (f"(?!/)[{text}]" if text else "(?!)"), position


def _class_member(glob: str, position: int) -> tuple[str, int]:
    """Return one character of a class, and the position after it."""
    if position < len(glob) and glob[position] == "\\":
        position += 1
    if position >= len(glob):
        raise BadPattern("the bracket is never closed")
    return glob[position], position + 1


def exposed_secrets(folder: str, ignore_file: str, secrets: Mapping[str, str]) -> list[str]:
    """Return a warning for each file of a secret that would be in the workspace.

    Args:
        folder: the source.
        ignore_file: ``--ignore-file``.
        secrets: name -> ``env:VARIABLE`` or ``file:ABSOLUTE/PATH``.

    Raises:
        UsageError: the ignore file does not exist.
        SourceError: ignore rules can't be read.
    """
    root = os.path.realpath(folder)
    files = {
        name: os.path.relpath(os.path.realpath(source.removeprefix("file:")), root)
        for name, source in secrets.items()
        if source.startswith("file:")
    }
    inside = {name: path for name, path in files.items() if path.partition("/")[0] != ".."}
    if not inside:
        return []

    rules = load_ignore_rules(root, ignore_file=ignore_file)
    return [
        f"{path} holds the secret {name} and is a part of the source, where every step can read it:"
        " leave it out with a line in .gcloudignore"
        for name, path in inside.items()
        if os.path.isfile(os.path.join(root, path))
        and not is_left_out(path, rules, is_directory=False)
    ]


def is_left_out(path: str, rules: IgnoreRules, *, is_directory: bool) -> bool:
    """Return whether the rules ignore a file or folder, or one of its parents."""
    folders = path.split("/")[:-1]
    above = ("/".join(folders[:depth]) for depth in range(1, len(folders) + 1))
    return rules.ignores(path, is_directory=is_directory) or any(
        rules.ignores(one, is_directory=True) for one in above
    )
