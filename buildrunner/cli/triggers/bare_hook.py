"""The program of a bare repository's hook: reports a push to a server, signed, without waiting.

This file is copied into the repository's ``hooks`` folder by `hook`, and runs there
alone, perhaps on a machine without buildrunner: it uses the standard library only. Beside it lies
``buildrunner.json`` (readable by its owner only): the server's URL, the hook's name, the secret.

The push was accepted before this program runs. A failure here neither rejects nor delays it.
The server finds a push that was not reported when it checks the repository the next time.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import ssl
import subprocess
import sys
import time
import urllib.error
import urllib.request
import uuid

SETTINGS = "buildrunner.json"
MOST_FILES = 5000
MOST_REFS = 1000  # of one report; the server refuses more
_PAUSES_S = (0, 0.5, 2, 8)
_ANSWER_S = 10


def main(arguments: list[str]) -> int:
    """Run the previous hook, then report the push to the server from a separate process.

    With ``--installed``: report the repository to the server now. If that fails, exit with an
    error and print the reason.
    """
    hooks = os.path.dirname(os.path.abspath(__file__))
    if arguments == ["--installed"]:
        settings, parts = _settings(hooks), _parts(_all_refs())
        for number, refs in enumerate(parts, 1):
            more = number < len(parts)
            code, reason = _report(settings, {"installed": True, "more": more, "refs": refs})
            if not 200 <= code < 300:
                sys.stdout.write(reason)
                return 1
        return 0
    lines = sys.stdin.buffer.read()
    code = 0
    original = os.path.join(hooks, "post-receive.original")
    if os.access(original, os.X_OK):
        code = subprocess.run([original], input=lines, check=False).returncode
    if _is_readable(os.path.join(hooks, SETTINGS)) and _in_background():
        try:
            _tell(hooks, lines)
        finally:
            os._exit(0)
    return code


def _is_readable(path: str) -> bool:
    """Return whether the file can be read; if not, print a message for the user who pushes."""
    try:
        with open(path, "rb"):
            return True
    except OSError as error:
        sys.stderr.write(
            f"buildrunner: {_login()} can't read {path} ({error.strerror}), so this push is not "
            "reported to the server. Let the group of the users who push read it: chgrp GROUP and "
            "chmod 640.\n"
        )
        return False


def _in_background() -> bool:
    """Fork; return whether this process is the child, for which the push does not wait."""
    if os.fork():
        return False
    os.setsid()
    nothing = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):  # git waits until no process holds its pipes
        os.dup2(nothing, stream)
    return True


def _tell(hooks: str, lines: bytes) -> None:
    settings = _settings(hooks)
    refs = [_ref(*line.split(" ", 2)) for line in _utf8(lines) if line.count(" ") >= 2]
    for part in _parts(refs) if refs else ():
        identity = str(uuid.uuid4())
        for pause in _PAUSES_S:
            time.sleep(pause)
            code, _ = _report(settings, {"id": identity, "refs": part, "options": _push_options()})
            if 200 <= code < 500 and code != 429:  # the server has it, or will never accept it
                break
        else:
            return  # the server finds the rest at its next check


def _parts(refs: list[dict[str, object]]) -> list[list[dict[str, object]]]:
    """Return refs in parts that fit a report; one empty part without refs."""
    return [refs[at : at + MOST_REFS] for at in range(0, len(refs) or 1, MOST_REFS)]


def _utf8(lines: bytes) -> list[str]:
    """Return the lines in UTF-8. Refs with other names can't be reported, and are skipped."""
    text = lines.decode("utf-8", "surrogateescape")
    return [line for line in text.split("\n") if _is_utf8(line)]


def _is_utf8(line: str) -> bool:
    try:
        line.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _settings(hooks: str) -> dict[str, str]:
    with open(os.path.join(hooks, SETTINGS), encoding="utf-8") as file:
        found: dict[str, str] = json.load(file)
    return found


def _report(settings: dict[str, str], facts: dict[str, object]) -> tuple[int, str]:
    """Report to the server once. Returns the status code (0: no answer), and the error."""
    body = {
        "id": str(uuid.uuid4()),
        "time": int(time.time()),
        "repository": {"name": settings["name"], "url": settings["repository"]},
        "pusher": os.environ.get("REMOTE_USER") or os.environ.get("GL_USER") or _login(),
        **facts,
    }
    url = "{server}/hooks/git/{name}".format(**settings)
    return _sent(url, settings, json.dumps(body).encode("ascii"))


def _push_options() -> list[str]:
    """The push options: ``git push -o``, if the repository accepts them."""
    count = int(os.environ.get("GIT_PUSH_OPTION_COUNT", "0"))
    given = (os.environ[f"GIT_PUSH_OPTION_{number}"] for number in range(count))
    return [one for one in given if _is_utf8(one)]


def _all_refs() -> list[dict[str, object]]:
    """Return all branches and tags with their commits, as refs that have not moved."""
    form = "--format=%(refname) %(objectname) %(*objectname)"
    found: list[dict[str, object]] = []
    for line in _git("for-each-ref", form, "refs/heads", "refs/tags").split("\n"):
        if line.count(" ") < 2 or "\ufffd" in line:  # not a ref, or not in UTF-8
            continue
        ref, commit, peeled = line.split(" ", 2)
        found.append({"ref": ref, "before": peeled or commit, "after": peeled or commit})
    return found


def _sent(url: str, settings: dict[str, str], body: bytes) -> tuple[int, str]:
    signature = hmac.new(settings["secret"].encode(), body, hashlib.sha256).hexdigest()
    headers = {
        "Content-Type": "application/json",
        "X-Buildrunner-Signature": "sha256=" + signature,
        "User-Agent": "buildrunner-post-receive",
    }
    request = urllib.request.Request(url, data=body, headers=headers)  # noqa: S310
    # Certificates to trust in place of the system's, as text; empty: the system's.
    tls = ssl.create_default_context(cadata=settings.get("authorities") or None)
    opener = urllib.request.build_opener(
        urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=tls)
    )
    try:
        with opener.open(request, timeout=_ANSWER_S) as answer:
            return int(answer.status), ""
    except urllib.error.HTTPError as error:
        return error.code, f"it answers HTTP {error.code}"
    except OSError as error:
        return 0, str(getattr(error, "reason", error))


def _ref(before: str, after: str, ref: str) -> dict[str, object]:
    """Return the repository's own facts about a ref that was pushed."""
    is_new, is_gone = not before.strip("0"), not after.strip("0")
    commit = "" if is_gone else _git("rev-parse", "--verify", "--quiet", after + "^{commit}")
    old = "" if is_new else _git("rev-parse", "--verify", "--quiet", before + "^{commit}")
    files = _files(old, commit) if old and commit else None
    forced = bool(old and commit) and not _is_ancestor(old, commit)
    return {
        "ref": ref,
        "before": old,
        "after": commit,
        "message": _git("log", "-1", "--format=%B", commit) if commit else "",
        "files": None if forced else files,
        "forced": forced,
    }


def _files(old: str, new: str) -> list[str] | None:
    """Return the changed paths, with both names of a renamed file. None if there are too many."""
    listed = _git("diff", "--name-only", "--no-renames", "-z", old, new)
    files = [name for name in listed.split("\0") if name]
    return files if len(files) <= MOST_FILES else None


def _is_ancestor(old: str, new: str) -> bool:
    command = ["git", "merge-base", "--is-ancestor", old, new]
    return subprocess.run(command, check=False).returncode == 0


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], check=False, stdout=subprocess.PIPE)
    return done.stdout.decode("utf-8", "replace").strip("\n")


def _login() -> str:
    import pwd

    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return ""


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
