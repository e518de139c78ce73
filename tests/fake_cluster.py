"""A server that answers the requests of `buildrunner.kubernetes.api` as Kubernetes does."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

LISTS = {"jobs": "JobList", "pods": "PodList", "events": "EventList"}
PATH = re.compile(
    r"/(?:api/v1|apis/batch/v1|apis/rbac.authorization.k8s.io/v1)"
    r"/namespaces/(?P<namespace>[^/]+)/(?P<kind>jobs|pods|events|roles)(?:/(?P<name>[^/]+))?"
)


class FakeCluster(ThreadingHTTPServer):
    """A cluster whose Jobs make Pods that stay Pending.

    Attributes:
        namespaces: those that exist.
        objects: Jobs, Pods, events and Roles by kind, namespace and name.
        quota: how many Jobs a namespace may have; None for no quota.
        denied: names of Jobs that an admission controller denies.
        refused: verbs that the server's account may not use: ``create``, ``list``, ``delete``.
        broken: HTTP status and body of every answer; None answers as Kubernetes does.
        requests: method and path of all requests.
        keys: the public keys of service accounts, as JSON Web Keys.
    """

    daemon_threads = True

    def __init__(self) -> None:
        self.namespaces = {"ci"}
        self.objects: dict[tuple[str, str, str], dict[str, Any]] = {}
        self.quota: int | None = None
        self.refused: set[str] = set()
        self.denied: set[str] = set()
        self.broken: tuple[int, str] | None = None
        self.requests: list[str] = []
        self.keys: list[dict[str, Any]] = []
        self.number = 0
        super().__init__(("127.0.0.1", 0), _Api)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def kubeconfig(self, folder: Path) -> str:
        """Write a kubeconfig of this server; return its path."""
        path = folder / "kubeconfig"
        config = {
            "clusters": [{"name": "c", "cluster": {"server": self.url}}],
            "users": [{"name": "u", "user": {"token": "secret"}}],
            "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
            "current-context": "c",
        }
        path.write_text(json.dumps(config))
        return str(path)

    def of(self, kind: str) -> list[dict[str, Any]]:
        """All objects of a kind."""
        return [one for (found, _, _), one in list(self.objects.items()) if found == kind]

    def add(self, kind: str, namespace: str, manifest: dict[str, Any]) -> None:
        """Keep an object, as Kubernetes stores it."""
        self.number += 1
        name = manifest["metadata"]["name"]
        metadata = {
            "namespace": namespace,
            "uid": f"00000000-0000-4000-8000-{self.number:012}",
            "creationTimestamp": f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}",
            **manifest["metadata"],
        }
        self.objects[kind, namespace, name] = {"status": {}, **manifest, "metadata": metadata}

    def add_job(self, namespace: str, job: dict[str, Any]) -> None:
        """Keep a Job, and make its Pod."""
        self.add("jobs", namespace, job)
        name = f"{job['metadata']['name']}-{self.number:05}"
        labels = job["spec"]["template"]["metadata"]["labels"]
        metadata = {"name": name, "labels": {**labels, "job-name": job["metadata"]["name"]}}
        spec = job["spec"]["template"]["spec"]
        pod = {"metadata": metadata, "spec": spec, "status": {"phase": "Pending"}}
        self.add("pods", namespace, pod)

    def remove_job(self, namespace: str, name: str) -> None:
        """Remove a Job and its Pods."""
        del self.objects["jobs", namespace, name]
        for kind, space, pod in list(self.objects):
            if kind == "pods" and space == namespace and pod.startswith(f"{name}-"):
                del self.objects[kind, space, pod]


@contextmanager
def fake_cluster() -> Iterator[FakeCluster]:
    cluster = FakeCluster()
    thread = threading.Thread(target=cluster.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield cluster
    finally:
        cluster.shutdown()
        cluster.server_close()


class _Api(BaseHTTPRequestHandler):
    server: FakeCluster
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.handled("list")

    def do_POST(self) -> None:
        self.handled("create")

    def do_DELETE(self) -> None:
        self.handled("delete")

    def handled(self, verb: str) -> None:
        size = int(self.headers.get("Content-Length") or 0)
        body = json.loads(self.rfile.read(size) or b"{}")
        url = urlsplit(self.path)
        self.server.requests.append(f"{self.command} {url.path}")
        if self.server.broken is not None:
            self.answer(self.server.broken[0], self.server.broken[1].encode(), "text/html")
            return
        if self.headers.get("Authorization") != "Bearer secret":
            self.refuse(401, "Unauthorized", "Unauthorized")
        elif url.path == "/.well-known/openid-configuration":
            self.show(200, {"issuer": "https://kubernetes.default.svc"})
        elif url.path == "/openid/v1/jwks":
            self.show(200, {"keys": self.server.keys})
        elif (found := PATH.fullmatch(url.path)) is None:
            self.refuse(404, "NotFound", "the server could not find the requested resource")
        elif verb in self.server.refused:
            what = f'cannot {verb} resource "{found["kind"]}" in the namespace "{found[1]}"'
            self.refuse(403, "Forbidden", f"{found['kind']} is forbidden: User {what}")
        else:
            getattr(self, verb)(found["namespace"], found["kind"], found["name"], url.query, body)

    def list(self, namespace: str, kind: str, name: str, query: str, _body: object) -> None:
        if name:
            self.get(namespace, kind, name)
            return
        requested = parse_qs(query)
        wanted = [
            one.split("=") for one in requested.get("labelSelector", [""])[0].split(",") if one
        ]
        kinds = [
            one.split("=") for one in requested.get("fieldSelector", [""])[0].split(",") if one
        ]
        items = [
            one
            for (found, space, _), one in list(self.server.objects.items())
            if (found, space) == (kind, namespace)
            and all(one["metadata"].get("labels", {}).get(key) == value for key, value in wanted)
            and all(one.get(key) == value for key, value in kinds)
        ]
        self.show(200, {"kind": LISTS[kind], "metadata": {"resourceVersion": "1"}, "items": items})

    def get(self, namespace: str, kind: str, name: str) -> None:
        if (found := self.server.objects.get((kind, namespace, name))) is None:
            self.refuse(404, "NotFound", f'{kind} "{name}" not found')
        else:
            self.show(200, found)

    def create(
        self, namespace: str, _kind: str, _name: str, _query: str, body: dict[str, Any]
    ) -> None:
        name = body["metadata"]["name"]
        jobs = [space for kind, space, _ in list(self.server.objects) if kind == "jobs"]
        if namespace not in self.server.namespaces:
            details = {"name": namespace, "kind": "namespaces"}
            self.refuse(404, "NotFound", f'namespaces "{namespace}" not found', details)
        elif name in self.server.denied:
            self.refuse(403, "Forbidden", 'webhook "limits" denied the request: too large')
        elif ("jobs", namespace, name) in self.server.objects:
            self.refuse(409, "AlreadyExists", f'jobs.batch "{name}" already exists')
        elif self.server.quota is not None and jobs.count(namespace) >= self.server.quota:
            used = f"used: count/jobs.batch={self.server.quota}"
            self.refuse(
                403, "Forbidden", f'jobs.batch "{name}" is forbidden: exceeded quota: {used}'
            )
        else:
            self.server.add_job(namespace, body)
            self.show(201, self.server.objects["jobs", namespace, name])

    def delete(self, namespace: str, _kind: str, name: str, _query: str, _body: object) -> None:
        if ("jobs", namespace, name) not in self.server.objects:
            self.refuse(404, "NotFound", f'jobs.batch "{name}" not found')
            return
        self.server.remove_job(namespace, name)
        self.show(200, {"kind": "Status", "status": "Success"})

    def refuse(
        self, code: int, reason: str, message: str, details: dict[str, str] | None = None
    ) -> None:
        status = {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure"}
        found = {"code": code, "reason": reason, "message": message, "details": details or {}}
        self.show(code, {**status, **found})

    def show(self, code: int, document: dict[str, Any]) -> None:
        self.answer(code, json.dumps(document).encode(), "application/json")

    def answer(self, code: int, body: bytes, kind: str) -> None:
        self.send_response(code)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_arguments: object) -> None:
        """Print nothing."""
