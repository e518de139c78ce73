"""A server that speaks enough of the Kubernetes API for the real kubectl."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any
from urllib.parse import parse_qs, urlsplit

VERBS = ["create", "get", "list", "patch"]
RESOURCES = {
    "/api/v1": [
        ("namespaces", "Namespace", False),
        ("pods", "Pod", True),
        ("services", "Service", True),
    ],
    "/apis/apps/v1": [("deployments", "Deployment", True)],
    "/apis/autoscaling/v2": [("horizontalpodautoscalers", "HorizontalPodAutoscaler", True)],
}


def discovery(path: str) -> dict[str, Any] | None:
    """What the server says of itself; None for other paths."""
    if path == "/api":
        return {"kind": "APIVersions", "versions": ["v1"]}
    if path == "/apis":
        groups = [
            {
                "name": group.split("/")[2],
                "versions": [version := {"groupVersion": group[6:], "version": group[-2:]}],
                "preferredVersion": version,
            }
            for group in RESOURCES
            if group.startswith("/apis/")
        ]
        return {"kind": "APIGroupList", "apiVersion": "v1", "groups": groups}
    if path in RESOURCES:
        listed = [
            {"name": name, "kind": kind, "namespaced": spaced, "verbs": VERBS, "singularName": ""}
            for name, kind, spaced in RESOURCES[path]
        ]
        version = path.removeprefix("/apis/").removeprefix("/api/")
        return {"kind": "APIResourceList", "groupVersion": version, "resources": listed}
    if path == "/openapi/v3":
        return {"paths": {one[1:]: {"serverRelativeURL": f"/openapi/v3{one}"} for one in RESOURCES}}
    if path.startswith("/openapi/v3/"):
        return schema(path.removeprefix("/openapi/v3"))
    return None


def schema(group: str) -> dict[str, Any]:
    """That the server validates fields and dry runs by itself, as kubectl looks for it."""
    parts = group.split("/")
    parameters = [{"name": name, "in": "query"} for name in ("fieldValidation", "dryRun")]
    paths = {}
    for name, kind, _ in RESOURCES[group]:
        which = {"group": parts[2] if len(parts) > 3 else "", "version": parts[-1], "kind": kind}
        patch = {"parameters": parameters, "x-kubernetes-group-version-kind": which}
        paths[f"{group}/{name}/{{name}}"] = {"patch": {**patch, "responses": {}}}
    return {"openapi": "3.0.0", "info": {"title": "k", "version": "1"}, "paths": paths}


class Cluster(ThreadingHTTPServer):
    """A server whose Deployments need three looks to become ready.

    Args:
        host: the address to listen at.
        start: starts an image, and returns its ``HOST:PORT``. Requests to a Service reach the image
            of the Deployment of the same name.

    Attributes:
        objects: what was applied, by the path of each object.
        pods: all Pods.
        writes: method and path of all requests that change something.
        ready: images whose Deployments become ready; None for all.
    """

    daemon_threads = True

    def __init__(self, host: str = "127.0.0.1", start: Callable[[str], str] | None = None) -> None:
        self.objects: dict[str, dict[str, Any]] = {}
        self.writes: list[tuple[str, str]] = []
        self.looks = 3
        self.pods: list[dict[str, Any]] = []
        self.ready: set[str] | None = None
        self._start = start
        self._running: dict[str, str] = {}  # image -> address
        super().__init__((host, 0), Api)

    def kubeconfig(self) -> str:
        """Return a kubeconfig of the server."""
        address = f"http://{self.server_address[0]!s}:{self.server_port}"
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "c", "cluster": {"server": address}}],
            "contexts": [{"name": "c", "context": {"cluster": "c", "user": ""}}],
            "current-context": "c",
        }
        return json.dumps(config)

    def image(self, path: str) -> str:
        """Return the image of a Deployment."""
        (container,) = self.objects[path]["spec"]["template"]["spec"]["containers"]
        return str(container["image"])

    def proxied(self, path: str) -> tuple[int, bytes] | None:
        """Answer a request to a Service; None if the path names none.

        Source: https://kubernetes.io/docs/tasks/access-application-cluster/access-cluster-services/
        """
        found = re.fullmatch(
            r"/api/v1/namespaces/([^/]+)/services/([^/:]+)(?::[^/]+)?/proxy(/.*)", path
        )
        if found is None or self._start is None:
            return None
        namespace, name, rest = found.groups()
        image = self.image(f"/apis/apps/v1/namespaces/{namespace}/deployments/{name}")
        if image not in self._running:
            self._running[image] = self._start(image)
        connection = HTTPConnection(self._running[image], timeout=30)
        try:
            connection.request("GET", rest)
            answer = connection.getresponse()
            return answer.status, answer.read()
        except OSError as error:  # the app has just been started
            return 503, str(error).encode()
        finally:
            connection.close()

    def shown(self, path: str) -> dict[str, Any] | None:
        if path.endswith("/pods"):
            return {"kind": "PodList", "apiVersion": "v1", "items": self.pods}
        found = self.objects.get(path)
        if found is not None and found["kind"] == "Deployment":
            self.looks -= 1
            count = found["spec"].get("replicas", 1)
            ready = {"replicas": count, "updatedReplicas": count, "observedGeneration": 1}
            is_ready = self.looks <= 0 and (self.ready is None or self.image(path) in self.ready)
            found["status"] = {**ready, "availableReplicas": count if is_ready else 0}
        return found


def merged(before: Any, patch: Any) -> Any:
    """Apply a strategic merge patch: lists of named elements are merged by name."""
    if isinstance(before, dict) and isinstance(patch, dict):
        after = dict(before)
        for key, value in patch.items():
            if value is None:
                after.pop(key, None)
            elif not key.startswith("$"):
                after[key] = merged(before.get(key), value)
        return after
    if isinstance(before, list) and patch and isinstance(patch[0], dict) and "name" in patch[0]:
        changed = {one["name"]: one for one in patch}
        kept = [merged(one, changed.pop(one["name"], {})) for one in before]
        return [*kept, *changed.values()]
    return patch


class Api(BaseHTTPRequestHandler):
    server: Cluster

    def do_GET(self) -> None:
        path = urlsplit(self.path).path
        if (proxied := self.server.proxied(path)) is not None:
            self.send(proxied[0], "text/plain", proxied[1])
            return
        answer = discovery(path) or self.server.shown(path)
        if answer is None:
            wrong = {"kind": "Status", "status": "Failure", "reason": "NotFound", "code": 404}
            self.answer(404, {**wrong, "message": f"{path} not found"})
        else:
            self.answer(200, answer)

    def do_POST(self) -> None:
        body = self.body()
        self.write(f"{urlsplit(self.path).path}/{body['metadata']['name']}", body)

    def do_PATCH(self) -> None:
        path = urlsplit(self.path).path
        self.write(path, merged(self.server.objects[path], self.body()))

    def write(self, path: str, body: dict[str, Any]) -> None:
        body["metadata"]["generation"] = 1
        self.server.writes.append((self.command, path))
        if "dryRun" not in parse_qs(urlsplit(self.path).query):
            self.server.objects[path] = body
        self.answer(201, body)

    def body(self) -> dict[str, Any]:
        read: dict[str, Any] = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        return read

    def answer(self, code: int, document: dict[str, Any]) -> None:
        self.send(code, "application/json", json.dumps(document).encode())

    def send(self, code: int, kind: str, text: bytes) -> None:
        self.send_response(code)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@contextmanager
def kubernetes_api(
    host: str = "127.0.0.1", start: Callable[[str], str] | None = None
) -> Iterator[Cluster]:
    """Run a `Cluster` on a free port."""
    server = Cluster(host, start)
    thread = Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
