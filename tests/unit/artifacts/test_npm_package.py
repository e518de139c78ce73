"""The document that an npm registry gets for a package."""

import base64
import hashlib
import json

import pytest

from buildrunner.artifacts.publisher import npm_package
from buildrunner.artifacts.publisher.repository import Refused, Repository

CONTENT = b"a packed package"


def document(**manifest):
    full = {"name": "@demo/thing", "version": "1.0.0", **manifest}
    return npm_package.document(full, CONTENT, "https://r.example/npm/")


def test_it_has_the_manifest_the_sums_and_the_tarball():
    made = document(description="a thing", bin={"thing": "x.js"})
    sha512 = base64.b64encode(hashlib.sha512(CONTENT).digest()).decode()
    assert made["versions"] == {
        "1.0.0": {
            "name": "@demo/thing",
            "version": "1.0.0",
            "description": "a thing",
            "bin": {"thing": "x.js"},
            "_id": "@demo/thing@1.0.0",
            "dist": {
                "integrity": f"sha512-{sha512}",
                "shasum": hashlib.sha1(CONTENT).hexdigest(),
                "tarball": "http://r.example/npm/@demo/thing/-/@demo/thing-1.0.0.tgz",
            },
        }
    }
    (attachment,) = made["_attachments"].items()
    data = base64.b64encode(CONTENT).decode()
    kind = "application/octet-stream"
    assert attachment == (
        "@demo/thing-1.0.0.tgz",
        {"content_type": kind, "data": data, "length": len(CONTENT)},
    )
    assert made["dist-tags"] == {"latest": "1.0.0"}
    assert made["access"] is None


@pytest.mark.parametrize(
    ("config", "tags", "access"),
    [
        ({"tag": "beta", "access": "public"}, {"beta": "1.0.0"}, "public"),
        ({"access": "restricted"}, {"latest": "1.0.0"}, "restricted"),
        ({"proxy": "http://evil.example"}, {"latest": "1.0.0"}, None),
        ("nonsense", {"latest": "1.0.0"}, None),
    ],
)
def test_of_the_publish_config_tag_and_access_count(config, tags, access):
    made = document(publishConfig=config)
    assert (made["dist-tags"], made["access"]) == (tags, access)


@pytest.mark.parametrize(
    ("manifest", "reason"),
    [
        ({"name": "../../api/tokens"}, "no name of an npm package"),
        ({"name": "@demo/../thing"}, "no name of an npm package"),
        ({"name": ".hidden"}, "no name of an npm package"),
        ({"name": "a?b"}, "no name of an npm package"),
        ({"name": None}, "no name of an npm package"),
        ({"version": "1.0"}, "no version of an npm package"),
        ({"version": "1.0.0/../../x"}, "no version of an npm package"),
        ({"private": True}, "is marked as private"),
        ({"publishConfig": {"access": "all"}}, "must be public or restricted"),
        ({"name": "thing", "publishConfig": {"access": "restricted"}}, "its name has no scope"),
        ({"publishConfig": {"tag": "1.x"}}, "takes it for a range"),
    ],
)
def test_what_npm_itself_would_refuse_is_refused(manifest, reason):
    with pytest.raises(Refused, match=reason):
        document(**manifest)


class Recorded(Repository):
    def __init__(self):
        super().__init__("https://r.example/npm")
        self.sent, self.said = [], []

    def send(self, address, content, kind, *, shown):
        self.sent.append((address, json.loads(content), kind, shown))

    def say(self, text):
        self.said.append(text)


def test_it_goes_to_the_address_of_its_name_and_ignored_settings_are_named(tmp_path):
    path = tmp_path / "package.tgz"
    path.write_bytes(CONTENT)
    manifest = {
        "name": "@demo/thing",
        "version": "1.0.0",
        "publishConfig": {"registry": "https://x.example", "proxy": "p", "strict-ssl": False},
    }
    repository = Recorded()
    request = {"paths": [str(path)], "manifest": manifest}
    ((uri, sha256),) = npm_package.publish(request, repository)
    assert uri == "https://r.example/npm/@demo/thing/-/thing-1.0.0.tgz"
    assert sha256 == hashlib.sha256(CONTENT).hexdigest()
    ((address, sent, kind, shown),) = repository.sent
    assert address == "https://r.example/npm/@demo%2fthing"
    assert sent == npm_package.document(manifest, CONTENT, "https://r.example/npm/")
    assert (kind, shown) == ("application/json", "@demo/thing@1.0.0")
    assert repository.said == ["publishConfig: proxy, strict-ssl of package.json has no effect"]
