"""Reads a request, publishes, and writes a result, both JSON files in the folder it is given.

The result is ``{"packages": [{"uri", "sha256", "start", "end"}]}`` (instants in seconds since 1970)
or ``{"error", "unauthorized"}``.
"""

import json
import os
import time

from . import generic, go_module, maven, npm_package, python_dist
from .repository import Refused, Repository

KINDS = {
    "maven": maven.publish,
    "maven-folder": maven.publish_folder,
    "python": python_dist.publish,
    "npm": npm_package.publish,
    "go": go_module.publish,
    "generic": generic.publish,
}


def main(folder: str) -> None:
    """Publish as ``request.json`` says, and write the result or the error to ``result.json``."""
    with open(os.path.join(folder, "request.json")) as file:
        request = json.load(file)
    repository = Repository(
        request["repository"], request["username"], request["password"], request["token"]
    )
    packages: list[dict[str, object]] = []
    result: dict[str, object] = {"packages": packages}
    try:
        began = time.time()
        for uri, sha256 in KINDS[request["kind"]](request, repository):
            packages.append({"uri": uri, "sha256": sha256, "start": began, "end": time.time()})
            began = time.time()
    except Refused as refused:
        result = {"error": str(refused), "unauthorized": refused.unauthorized}
    except OSError as error:
        result = {"error": str(error), "unauthorized": False}
    with open(os.path.join(folder, "result.json"), "w") as file:
        json.dump(result, file)
