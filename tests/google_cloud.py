"""A stand-in for Google Cloud: answers the real gcloud, and runs what gcloud deploys.

gcloud reaches it as its HTTP proxy, so each API keeps its own host name: only the scheme of the
endpoints changes (`ENVIRONMENT`). The APIs answer as their reference pages say; a comment names the
page. A request that no handler knows is answered with 400 and is kept in `unknown`.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Final, NamedTuple
from urllib.parse import unquote, urlsplit

APIS: Final = (
    *("appengine", "cloudbuild", "cloudfunctions", "cloudresourcemanager"),
    *("run", "serviceusage", "storage"),
)

Document = dict[str, Any]
Answer = tuple[int, Document]
Content = Callable[[str], bytes]
"""Returns the object at an address ``https://storage.googleapis.com/BUCKET/OBJECT``."""
_TYPES = "type.googleapis.com"
_BUILDER = "123456789012-compute@developer.gserviceaccount.com"


def environment(address: str) -> dict[str, str]:
    """Return the variables by which gcloud and curl use the stand-in at an address."""
    suffix = {"storage": "storage/v1/"}
    overrides = {
        f"CLOUDSDK_API_ENDPOINT_OVERRIDES_{api.upper()}": (
            f"http://{api}.googleapis.com/{suffix.get(api, '')}"
        )
        for api in APIS
    }
    return {
        **overrides,
        "http_proxy": f"http://{address}",
        "CLOUDSDK_AUTH_DISABLE_CREDENTIALS": "1",
        "CLOUDSDK_CORE_DISABLE_FILE_LOGGING": "1",
    }


class Request(NamedTuple):
    """A request that changes something."""

    method: str
    host: str
    path: str
    body: Document


def missing(name: str) -> Answer:
    """The error of every Google API for an unknown resource."""
    return 404, {"error": {"code": 404, "message": f"{name} not found", "status": "NOT_FOUND"}}


class CloudRun:
    """Services of Cloud Run. Each image runs once its revision gets a request.

    Source: reference of the Cloud Run Admin API v1 (``namespaces.services``), and v1
    ``projects.locations.services.setIamPolicy``.
    """

    hosts = re.compile(r"([a-z0-9-]+-)?run\.googleapis\.com")
    apps = re.compile(r"([a-z0-9-]+)\.a\.run\.app")

    def __init__(self, start: Callable[[str], str]) -> None:
        self._start = start
        self._services: dict[str, Document] = {}
        self._images: dict[str, str] = {}  # revision -> image
        self._running: dict[str, str] = {}  # revision -> address

    def answer(self, method: str, path: str, body: Document) -> Answer | None:
        name = path.rpartition("/")[2]
        if path.endswith(":getIamPolicy"):
            return 200, {"version": 1, "etag": "BwXhqDJsT4c="}
        if path.endswith(":setIamPolicy"):
            return 200, body["policy"]
        match method:
            case "GET" if name in self._services:
                return 200, self._services[name]
            case "GET":
                return missing(name)
            case "POST" if path.endswith("/services"):
                return 200, self._put(body["metadata"]["name"], body)
            case "PUT":
                return 200, self._put(name, body)
        return None

    def _put(self, name: str, service: Document) -> Document:
        """Make a revision if the template changed, and direct the traffic."""
        before = self._services.get(name, {})
        generation = before.get("metadata", {}).get("generation", 0) + 1
        latest = before.get("status", {}).get("latestReadyRevisionName", "")
        (container,) = service["spec"]["template"]["spec"]["containers"]
        if service["spec"]["template"] != before.get("spec", {}).get("template"):
            latest = f"{name}-{generation:05}-abc"
            self._images[latest] = container["image"]
        traffic = service["spec"].setdefault("traffic", [{"latestRevision": True, "percent": 100}])
        url = f"http://{name}-5qz2.a.run.app"
        service["metadata"] |= {
            "generation": generation,
            "resourceVersion": f"AAX{generation}",
            "selfLink": f"/apis/serving.knative.dev/v1/namespaces/shop/services/{name}",
            "uid": "0a1b",
            "creationTimestamp": "2026-01-01T00:00:00Z",
        }
        service["status"] = {
            "observedGeneration": generation,
            "latestCreatedRevisionName": latest,
            "latestReadyRevisionName": latest,
            "url": url,
            "address": {"url": url},
            "conditions": [
                {"type": kind, "status": "True"}
                for kind in ("Ready", "ConfigurationsReady", "RoutesReady")
            ],
            "traffic": [{"revisionName": latest, **one} for one in traffic],
        }
        self._services[name] = service
        return service

    def address(self, host: str) -> str:
        """Return where the revision runs that gets the traffic."""
        service = self._services[host.partition(".")[0].removesuffix("-5qz2")]
        (target,) = service["status"]["traffic"]
        revision = target["revisionName"]
        if revision not in self._running:
            self._running[revision] = self._start(self._images[revision])
        return self._running[revision]


class AppEngine:
    """The services and versions of one App Engine application.

    Source: reference of the App Engine Admin API v1 (``apps``, ``apps.services.versions``).
    """

    hosts = re.compile(r"appengine\.googleapis\.com")
    apps = re.compile(r"([a-z0-9-]+)-dot-shop\.ew\.r\.appspot\.com")

    def __init__(self, start: Callable[[dict[str, bytes], str], str], content: Content) -> None:
        self.traffic: dict[str, float] = {}
        self.versions: dict[str, Document] = {}
        self._start = start
        self._content = content
        self._running: dict[str, str] = {}  # version -> address

    def answer(self, method: str, path: str, body: Document) -> Answer | None:
        below = path.removeprefix("/v1/apps/shop").strip("/")
        name = below.rpartition("/")[2]
        match method, below.split("/"):
            case "GET", [""]:
                return 200, {
                    "name": "apps/shop",
                    "id": "shop",
                    "codeBucket": "staging.shop.appspot.com",
                    "defaultHostname": "shop.ew.r.appspot.com",
                    "locationId": "europe-west",
                    "servingStatus": "SERVING",
                }
            case "GET", ["services"]:
                return 200, {"services": [self._service()] if self.versions else []}
            case "GET", ["services", "default"]:
                return 200, self._service()
            case "PATCH", ["services", "default"]:
                self.traffic = body["split"]["allocations"]
                return self._done(self._service())
            case "GET", ["services", "default", "versions"]:
                return 200, {"versions": list(self.versions.values())}
            case "POST", ["services", "default", "versions"]:
                return self._done(self._create(body))
            case "GET", ["services", "default", "versions", _]:
                return (200, self.versions[name]) if name in self.versions else missing(name)
            case "DELETE", ["services", "default", "versions", _]:
                del self.versions[name]
                return self._done({})
        return None

    def _service(self) -> Document:
        split = {"allocations": self.traffic}
        return {"name": "apps/shop/services/default", "id": "default", "split": split}

    def _create(self, version: Document) -> Document:
        for path, file in version["deployment"]["files"].items():
            digest = hashlib.sha1(self._content(file["sourceUrl"])).hexdigest()
            assert digest == file["sha1Sum"].replace("_", ""), path
        name = version["id"]
        self.versions[name] = {
            **version,
            "name": f"apps/shop/services/default/versions/{name}",
            "servingStatus": "SERVING",
            "createTime": "2026-01-01T00:00:00Z",
            "versionUrl": f"http://{name}-dot-shop.ew.r.appspot.com",
        }
        self.traffic = self.traffic or {name: 1}
        return self.versions[name]

    def _done(self, response: Document) -> Answer:
        return 200, {
            "name": "apps/shop/operations/9e89f3a2",
            "metadata": {"@type": f"{_TYPES}/google.appengine.v1.OperationMetadataV1"},
            "done": True,
            "response": {"@type": f"{_TYPES}/google.appengine.v1.Version", **response},
        }

    def address(self, host: str) -> str:
        """Return where a version runs."""
        name = host.partition("-dot-")[0]
        if name not in self._running:
            files = self.versions[name]["deployment"]["files"]
            content = {path: self._content(one["sourceUrl"]) for path, one in files.items()}
            self._running[name] = self._start(content, name)
        return self._running[name]


class CloudFunctions:
    """Functions of the second generation.

    Source: reference of the Cloud Functions API v2 (``projects.locations.functions``).
    """

    hosts = re.compile(r"(cloudfunctions|cloudbuild|cloudresourcemanager|run)\.googleapis\.com")
    apps = re.compile(r"([a-z0-9-]+)-ew\.a\.run\.app")

    def __init__(self, start: Callable[[bytes], str], content: Content) -> None:
        self._start = start
        self._content = content
        self._functions: dict[str, Document] = {}
        self._operation: Document = {}
        self._running: dict[str, str] = {}  # object of the source -> address

    def answer(self, method: str, path: str, body: Document) -> Answer | None:
        below = path.removeprefix("/v2/projects/shop/locations/europe-west1/")
        name = below.rpartition("/")[2]
        match method, below.split("/"):
            case "GET", ["runtimes"]:
                return 200, {
                    "runtimes": [
                        {
                            "name": "python312",
                            "environment": "GEN_2",
                            "stage": "GA",
                            "displayName": "Python 3.12",
                        }
                    ]
                }
            case "GET", [*_, "defaultServiceAccount"]:
                return 200, {"serviceAccountEmail": f"projects/shop/serviceAccounts/{_BUILDER}"}
            case "GET", [*_, "projects", "shop"]:
                return 200, {"projectId": "shop", "projectNumber": "123456789012"}
            case "POST", [*_, "shop:getIamPolicy"]:
                role = "roles/cloudbuild.builds.builder"
                bindings = [{"role": role, "members": [f"serviceAccount:{_BUILDER}"]}]
                return 200, {"version": 1, "etag": "BwXhqDJsT4c=", "bindings": bindings}
            case "GET", ["functions", _]:
                return (200, self._functions[name]) if name in self._functions else missing(name)
            case "GET", ["operations", _]:
                return 200, self._operation
            case "GET", [*_, "services", service] if service.endswith(":getIamPolicy"):
                return 200, {"version": 1, "etag": "BwXhqDJsT4c="}
            case "POST", [*_, "services", service] if service.endswith(":setIamPolicy"):
                return 200, body["policy"]
            case "POST", ["functions"]:
                return self._put(body["name"].rpartition("/")[2], body)
            case "PATCH", ["functions", _]:
                return self._put(name, body)
        return None

    def _put(self, name: str, function: Document) -> Answer:
        self._functions[name] = function | {
            "environment": "GEN_2",
            "state": "ACTIVE",
            "serviceConfig": {
                **function.get("serviceConfig", {}),
                "service": f"projects/shop/locations/europe-west1/services/{name}",
                "uri": f"http://{name}-ew.a.run.app",
            },
        }
        self._operation = {
            "name": "projects/shop/locations/europe-west1/operations/operation-1",
            "metadata": {
                "@type": f"{_TYPES}/google.cloud.functions.v2.OperationMetadata",
                "apiVersion": "v2",
                "stages": [{"name": one, "state": "COMPLETE"} for one in ("BUILD", "SERVICE")],
            },
            "done": True,
            "response": {
                "@type": f"{_TYPES}/google.cloud.functions.v2.Function",
                **self._functions[name],
            },
        }
        return 200, self._operation

    def address(self, host: str) -> str:
        """Return where the function's present source runs."""
        function = self._functions[host.partition(".")[0].removesuffix("-ew")]
        source = function["buildConfig"]["source"]["storageSource"]
        place = f"https://storage.googleapis.com/{source['bucket']}/{source['object']}"
        if place not in self._running:
            self._running[place] = self._start(self._content(place))
        return self._running[place]


class GoogleCloud(ThreadingHTTPServer):
    """The server.

    Attributes:
        requests: all requests that change something, in their order.
        unknown: requests that it has no answer for.
        refuse: (method, end of the path) -> the error that answers such requests.
    """

    daemon_threads = True

    def __init__(self, host: str, *products: Any, storage: str = "") -> None:
        self.requests: list[Request] = []
        self.unknown: list[str] = []
        self.refuse: dict[tuple[str, str], Answer] = {}
        self._products = products
        self._storage = storage
        self._lock = threading.Lock()
        super().__init__((host, 0), _Handler)

    @property
    def address(self) -> str:
        """``HOST:PORT``."""
        return f"{self.server_address[0]!s}:{self.server_port}"

    def answer(self, method: str, host: str, path: str, body: bytes) -> Answer:
        """Answer a request to an API."""
        document = json.loads(body) if body.startswith(b"{") else {}
        with self._lock:
            if method != "GET":
                self.requests.append(Request(method, host, path, json.loads(body or b"{}")))
            for (refused, end), error in self.refuse.items():
                if method == refused and path.endswith(end):
                    return error
            if host == "serviceusage.googleapis.com":
                return 200, {"name": path.removeprefix("/v1/"), "state": "ENABLED"}
            for product in self._products:
                if product.hosts.fullmatch(host):
                    answer = product.answer(method, path, document)
                    if answer is not None:
                        return answer
            self.unknown.append(f"{method} {host}{path}")
        return 400, {"error": {"code": 400, "message": f"{method} {path} is not known here"}}

    def upstream(self, host: str) -> str:
        """Return the ``HOST:PORT`` that serves a host: an app or Cloud Storage; "" for an API."""
        if host == "storage.googleapis.com":
            return self._storage
        with self._lock:
            for product in self._products:
                if product.apps.fullmatch(host):
                    return str(product.address(host))
        return ""


class _Handler(BaseHTTPRequestHandler):
    server: GoogleCloud
    protocol_version = "HTTP/1.1"

    def do_CONNECT(self) -> None:
        """Keep the connection: some of gcloud's clients use a tunnel for plain HTTP, too."""
        self.send_response_only(200)
        self.end_headers()

    def _handle(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        url = urlsplit(self.path)
        host = (url.netloc or str(self.headers["Host"])).partition(":")[0]
        if upstream := self.server.upstream(host):
            target = f"{url.path}?{url.query}" if url.query else url.path
            return self._forward(upstream, target, body)
        status, document = self.server.answer(self.command, host, unquote(url.path), body)
        return self._send(status, "application/json", json.dumps(document).encode())

    def _forward(self, upstream: str, target: str, body: bytes) -> None:
        headers = {
            name: value
            for name, value in self.headers.items()
            if name.lower() not in ("connection", "proxy-connection", "transfer-encoding")
        }
        connection = HTTPConnection(upstream, timeout=30)
        try:
            connection.request(self.command, target, body or None, headers)
            answer = connection.getresponse()
            kind = answer.getheader("Content-Type", "text/plain")
            self._send(answer.status, kind, answer.read())
        except OSError as error:  # the app has just been started
            self._send(503, "text/plain", str(error).encode())
        finally:
            connection.close()

    def _send(self, status: int, kind: str, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _handle  # noqa: N815

    def log_message(self, *_: object) -> None:
        """Print nothing."""


@contextmanager
def google_cloud(host: str, *products: Any, storage: str = "") -> Iterator[GoogleCloud]:
    """Run the stand-in on a free port of an address.

    Args:
        host: the address.
        products: `CloudRun`, `AppEngine` or `CloudFunctions`.
        storage: ``HOST:PORT`` of a fake-gcs-server.
    """
    server = GoogleCloud(host, *products, storage=storage)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
