"""The catalog of the image cache, and the files that show cached images to a nested engine."""

import hashlib
import io
import json
import tarfile

import pytest

from buildrunner.sandboxes.nested.image_catalog import (
    Catalog,
    SharedImages,
    chain_ids,
    read_catalog,
    shared_images,
)

HOST_IDS = {name: f"sha256:{hashlib.sha256(name.encode()).hexdigest()}" for name in "abc"}


class Store:
    """The files of a cache engine."""

    def __init__(self) -> None:
        self.files: dict[str, str] = {}
        self.names: dict[str, str] = {}

    def image(self, host_id: str, *diffs: str) -> str:
        """Add an image with these layers; its id in the store."""
        config = json.dumps({"host": host_id, "rootfs": {"type": "layers", "diff_ids": diffs}})
        identity = hashlib.sha256(config.encode()).hexdigest()
        self.files[f"imagedb/content/sha256/{identity}"] = config
        self.names[f"cached:{host_id[7:]}"] = f"sha256:{identity}"
        below: list[str] = []
        for chain, diff in zip(chain_ids(diffs), diffs, strict=True):
            folder = f"layerdb/{chain.replace(':', '/')}"
            parts = {"cache-id": f"folder-{diff[7:]}", "diff": diff, "size": "1"}
            if below:
                parts["parent"] = below[-1]
            self.files |= {f"{folder}/{name}": text for name, text in parts.items()}
            below.append(chain)
        return f"sha256:{identity}"

    def tar(self) -> bytes:
        names = {"Repositories": {"cached": self.names, "left": {"left:1": "sha256:none"}}}
        files = {**self.files, "repositories.json": json.dumps(names)}
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w") as tar:
            for path, text in files.items():
                entry = tarfile.TarInfo(path)
                entry.size = len(text)
                tar.addfile(entry, io.BytesIO(text.encode()))
        return buffer.getvalue()

    def catalog(self) -> Catalog:
        return read_catalog(self.tar(), "made today")


@pytest.fixture
def store() -> Store:
    return Store()


class Unpacked:
    """What a nested engine finds."""

    def __init__(self, shared: SharedImages) -> None:
        with tarfile.open(fileobj=io.BytesIO(shared.files)) as tar:
            self.entries = {one.name: one for one in tar.getmembers()}
            self.texts = {
                one.name: content.read().decode()
                for one in tar.getmembers()
                if (content := tar.extractfile(one) if one.isreg() else None) is not None
            }

    def link(self, path: str) -> str:
        return self.entries[path].linkname

    def image_file(self, path: str) -> str:
        return self.texts[f"var/lib/docker/image/overlay2/{path}"]

    def names(self) -> dict[str, dict[str, str]]:
        names: dict[str, dict[str, str]] = json.loads(self.image_file("repositories.json"))
        return names["Repositories"]


def test_a_layers_chain_names_all_below_it():
    chains = chain_ids(["sha256:a", "sha256:b"])
    assert chains[0] == "sha256:a"
    assert chains[1] == "sha256:" + hashlib.sha256(b"sha256:a sha256:b").hexdigest()
    assert chain_ids([]) == []


def test_an_image_has_in_the_cache_the_id_of_its_config_whatever_the_hosts_id_is(store):
    inside = store.image(HOST_IDS["a"], "sha256:d1", "sha256:d2")
    catalog = store.catalog()
    assert catalog.images[HOST_IDS["a"]].id == inside
    assert "sha256:" + hashlib.sha256(catalog.images[HOST_IDS["a"]].config).hexdigest() == inside
    shared = shared_images(catalog, {"app:1": HOST_IDS["a"], "app:2": HOST_IDS["a"]})
    assert shared.names == {"app:1": inside, "app:2": inside}
    assert shared.ids == {HOST_IDS["a"]: inside}
    assert shared.diff_ids == {"sha256:d1", "sha256:d2"}


def test_a_nested_engine_finds_an_image_under_the_names_and_digests_of_the_host(store):
    inside = store.image(HOST_IDS["a"], "sha256:d1")
    digest = f"localhost:5000/team/app@sha256:{'1' * 64}"
    names = {"localhost:5000/team/app:1": HOST_IDS["a"], digest: HOST_IDS["a"]}
    found = Unpacked(shared_images(store.catalog(), names))
    assert found.names() == {
        "localhost:5000/team/app": {"localhost:5000/team/app:1": inside, digest: inside}
    }


def test_layers_are_mounted_and_never_copied(store):
    inside = store.image(HOST_IDS["a"], "sha256:d1", "sha256:d2")
    shared = shared_images(store.catalog(), {"app:1": HOST_IDS["a"]})
    found = Unpacked(shared)
    assert found.texts["run/layers/mounts"].splitlines() == [
        f"/run/images/overlay2/{folder}/diff /run/layers/{folder}/diff none bind 0 0"
        for folder in ("folder-d1", "folder-d2")
    ]
    assert found.link("var/lib/docker/overlay2/folder-d1") == "/run/layers/folder-d1"
    short = found.texts["run/layers/folder-d1/link"]
    assert found.texts["run/layers/folder-d2/lower"] == f"l/{short}"
    assert found.link(f"var/lib/docker/overlay2/l/{short}") == "../folder-d1/diff"
    assert "run/layers/folder-d1/lower" not in found.texts
    assert json.loads(found.image_file(f"imagedb/content/{inside.replace(':', '/')}"))


def test_what_a_push_needs_of_a_layer_lies_in_the_cache(store):
    store.image(HOST_IDS["a"], "sha256:d1", "sha256:d2")
    found = Unpacked(shared_images(store.catalog(), {"app:1": HOST_IDS["a"]}))
    below, top = (one.replace(":", "/") for one in chain_ids(["sha256:d1", "sha256:d2"]))
    path = f"image/overlay2/layerdb/{top}/tar-split.json.gz"
    assert found.link(f"var/lib/docker/{path}") == f"/run/images/{path}"
    assert found.image_file(f"layerdb/{top}/parent") == below.replace("/", ":")
    assert found.image_file(f"layerdb/{top}/diff") == "sha256:d2"


def test_layers_of_several_images_are_there_once(store):
    store.image(HOST_IDS["a"], "sha256:d1")
    store.image(HOST_IDS["b"], "sha256:d1", "sha256:d2")
    names = {"base:1": HOST_IDS["a"], "app:1": HOST_IDS["b"]}
    mounts = Unpacked(shared_images(store.catalog(), names)).texts["run/layers/mounts"]
    assert mounts.count("/run/layers/folder-d1/diff") == 1


def test_an_image_that_is_not_cached_or_has_no_name_or_is_retired_is_left_out(store):
    store.image(HOST_IDS["a"], "sha256:d1")
    store.image(HOST_IDS["b"], "sha256:d2")
    catalog = store.catalog()
    catalog.retired[HOST_IDS["b"]] = 1.0
    shared = shared_images(catalog, {"app:1": HOST_IDS["c"], "old:1": HOST_IDS["b"]})
    assert (shared.names, shared.ids, shared.diff_ids) == ({}, {}, frozenset())
    assert "run/layers/folder-d1/diff" not in Unpacked(shared).entries


def test_a_cache_that_lost_a_file_is_an_error(store):
    store.image(HOST_IDS["a"], "sha256:d1")
    del store.files["layerdb/sha256/d1/cache-id"]
    with pytest.raises(KeyError, match="cache-id"):
        store.catalog()
