"""A repository that accepts files by HTTP PUT."""

import base64
import email.utils
import http.client
import json
import re
import sys
import time
import urllib.error
import urllib.parse
import urllib.request

_TRIES = 4
_FIRST_WAIT_S = 0.5
_TIMEOUT_S = 120.0
_LONGEST_WAIT_S = 60.0
_LARGEST_ANSWER = 64 << 20  # bytes of a list of versions, or of another answer
_LARGEST_REASON = 64 << 10
_MAY_PASS = frozenset({408, 429, 500, 502, 503, 504})
_IMAGES = re.compile(r"/v2/+.+/+(manifests|blobs)/", re.IGNORECASE)


class Refused(Exception):
    """The package can't be published; the text is one sentence."""

    def __init__(self, message: str, *, unauthorized: bool = False) -> None:
        super().__init__(message)
        self.unauthorized = unauthorized


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects with the same request; the login goes to the repository's own host only.

    Other redirects than 307 and 308 would turn a PUT into a GET, and one from https to http would
    show the file to everybody on the network: these are errors.
    """

    def redirect_request(
        self,
        req: urllib.request.Request,
        _fp: object,
        code: int,
        _msg: str,
        _headers: object,
        newurl: str,
    ) -> urllib.request.Request | None:
        """Return the next request; None makes the redirect an error."""
        if req.get_method() != "GET" and code not in (307, 308):
            return None
        before, after = urllib.parse.urlsplit(req.full_url), urllib.parse.urlsplit(newurl)
        if after.scheme != "https" and (before.scheme, after.scheme) != ("http", "http"):
            return None
        following = urllib.request.Request(  # noqa: S310  (the handler knows http and https only)
            newurl.replace(" ", "%20"), data=req.data, headers=req.headers, method=req.get_method()
        )
        login = req.unredirected_hdrs.get("Authorization")
        if login and before[:2] == after[:2]:
            following.add_unredirected_header("Authorization", login)
        return following


class Repository:
    """One repository and the login for it: a username with a password, a token, or none."""

    def __init__(self, url: str, username: str = "", password: str = "", token: str = "") -> None:
        if not url.startswith(("https://", "http://")):
            raise Refused(f"{url} is no address of a repository")
        self.url = url
        self.username = username
        self.password = password
        self._token = token
        self._opener = urllib.request.build_opener(_Redirects)

    def get(self, path: str) -> bytes | None:
        """Return a small file of the repository; None if the repository has no such file."""
        return self._ask(self._request("GET", self.address(path)), path)

    def put(self, path: str, content: bytes) -> str:
        """Upload a file, with retries where they may help. Returns its address."""
        address = self.address(path)
        self.send(address, content, "application/octet-stream", shown=path)
        return address

    def send(self, address: str, content: bytes, kind: str, *, shown: str) -> None:
        """Upload content of a media type to an address of the repository; ``shown`` is for errors.

        Raises:
            Refused: the repository refuses the file, or holds images. With the login for images,
                a file could be put where attestations of an image are.
        """
        if _IMAGES.search(urllib.parse.unquote(urllib.parse.urlsplit(address).path)):
            raise Refused(f"{address} is an address of images, which `images` pushes")
        request = self._request("PUT", address, content)
        request.add_header("Content-Type", kind)
        if self._ask(request, shown) is None:
            raise Refused(f"{self.url} has no place for {shown}: HTTP 404")

    def address(self, path: str) -> str:
        """Return the address of a file."""
        return f"{self.url}/{urllib.parse.quote(path, safe='/@!~+')}"

    @staticmethod
    def say(text: str) -> None:
        """Write a line to the log of the build."""
        sys.stdout.write(f"{text}\n")
        sys.stdout.flush()

    def _request(
        self, method: str, address: str, content: bytes | None = None
    ) -> urllib.request.Request:
        request = urllib.request.Request(  # noqa: S310  (http and https only, see above)
            address, data=content, method=method
        )
        if self._token:
            request.add_unredirected_header("Authorization", f"Bearer {self._token}")
        elif self.username:
            pair = base64.b64encode(f"{self.username}:{self.password}".encode()).decode()
            request.add_unredirected_header("Authorization", f"Basic {pair}")
        return request

    def _ask(self, request: urllib.request.Request, shown: str) -> bytes | None:
        delay_s = _FIRST_WAIT_S
        for left in range(_TRIES - 1, -1, -1):
            wait_s = delay_s
            try:
                return self._once(request, shown)
            except urllib.error.HTTPError as error:
                if error.code == 404:
                    return None
                if error.code not in _MAY_PASS or not left:
                    why = f"HTTP {error.code} {error.reason}"
                    if 300 <= error.code < 400:  # urllib's reason has several lines
                        why = f"HTTP {error.code}, a redirect: name the address that it leads to"
                    elif said := _said(error):
                        why = f"{why}: {said}"
                    raise Refused(
                        f"{self.url} refused {shown}: {why}",
                        unauthorized=error.code in (401, 403),
                    ) from error
                wait_s = max(delay_s, _asked_wait_s(error.headers.get("Retry-After", "")))
                self.say(f"HTTP {error.code} for {shown}: trying again in {wait_s:g} s")
            except (OSError, http.client.HTTPException) as error:
                reason = _reason(error)
                if not left:
                    raise Refused(f"{self.url} can't be reached: {reason}") from error
                self.say(f"{reason}: trying again in {wait_s:g} s")
            time.sleep(wait_s)
            delay_s *= 2
        raise AssertionError

    def _once(self, request: urllib.request.Request, shown: str) -> bytes:
        with self._opener.open(request, timeout=_TIMEOUT_S) as answer:
            said = bytes(answer.read(_LARGEST_ANSWER + 1))
            if len(said) > _LARGEST_ANSWER:
                raise Refused(f"{self.url} answers {shown} with more than 64 MiB")
            if answer.length:  # a limited read does not check this
                raise http.client.IncompleteRead(said, answer.length)
        return said


def _reason(error: OSError | http.client.HTTPException) -> str:
    if isinstance(error, http.client.HTTPException) and not isinstance(error, OSError):
        return f"its answer breaks off, or is no HTTP ({type(error).__name__})"
    return str(getattr(error, "reason", error))


def _said(error: urllib.error.HTTPError) -> str:
    """Return the reason in the JSON of a refusal, as npm's registries give one; empty for none."""
    try:
        answer = json.loads(error.read(_LARGEST_REASON))
    except (OSError, http.client.HTTPException, ValueError, RecursionError):
        return ""
    reason = answer.get("reason") or answer.get("error") if isinstance(answer, dict) else ""
    return " ".join(reason.split())[:300] if isinstance(reason, str) else ""


def _asked_wait_s(header: str) -> float:
    """Return the wait in ``Retry-After`` (seconds, or a date), at most our own limit."""
    if header.strip().isdecimal():
        return min(float(header), _LONGEST_WAIT_S)
    try:
        at = email.utils.parsedate_to_datetime(header).timestamp()
    except ValueError:
        return 0.0
    return max(0.0, min(at - time.time(), _LONGEST_WAIT_S))
