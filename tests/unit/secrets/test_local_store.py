"""The encrypted store of secrets: versions, key, damage, several processes."""

import base64
import json
import os
import stat
import subprocess
import sys

import keyring
import keyring.backend
import keyring.errors
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from buildrunner.errors import Conflict, NotFound, SecretError, UsageError
from buildrunner.plan.build_plan import SecretReference
from buildrunner.secrets.local_store import LocalSecretStore, StoredSecrets
from buildrunner.secrets.provider import ProviderChain
from buildrunner.secrets.secret_name import SecretName, parse_name
from buildrunner.secrets.secret_scope import Scope
from buildrunner.secrets.store_key import KeyFile, KeyringKey

FULL = "projects/p/secrets/api-key"


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "secrets"


@pytest.fixture
def store(folder):
    return LocalSecretStore(str(folder), KeyFile(str(folder / "key")))


def resolve(store, version="latest", env="API_KEY"):
    reference = SecretReference(env, "secretManager", f"{FULL}/versions/{version}")
    return ProviderChain([StoredSecrets(store)]).resolve(reference)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(value=st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1))
def test_a_value_comes_back_as_it_was(store, folder, value):
    store.put(SecretName("api-key"), value)
    assert resolve(store) == value
    if len(value.encode()) > 3:
        raw = value.encode()
        kept = (folder / "secrets.json").read_bytes()
        assert base64.b64encode(raw) not in kept
        sealed = [
            base64.b64decode(version["sealed"])
            for secret in json.loads(kept)["secrets"].values()
            for version in secret["versions"]
        ]
        assert not any(raw in one for one in sealed)


def test_versions_count_up_and_latest_is_the_last(store):
    assert [store.put(SecretName("api-key"), f"value {n}") for n in (1, 2, 3)] == [1, 2, 3]
    assert resolve(store) == "value 3"
    assert resolve(store, "2") == "value 2"
    store.remove(SecretName("api-key", 3))
    assert resolve(store) == "value 2"
    assert store.put(SecretName("api-key"), "value 4") == 4


def test_a_version_may_be_chosen_once(store):
    assert store.put(parse_name(f"{FULL}/versions/7"), "seven") == 7
    assert resolve(store, "7") == "seven"
    with pytest.raises(Conflict, match="versions never change"):
        store.put(parse_name(f"{FULL}/versions/7"), "other")
    assert store.put(parse_name(f"{FULL}/versions/latest"), "eight") == 8


def test_the_whole_name_wins_over_the_id_and_that_over_the_variable(store):
    store.put(SecretName("API_KEY"), "by variable")
    assert resolve(store) == "by variable"
    store.put(SecretName("api-key"), "by id")
    assert resolve(store) == "by id"
    store.put(SecretName(FULL), "by name")
    assert resolve(store) == "by name"


def test_latest_is_found_out_once_a_build(store):
    store.put(SecretName("api-key"), "old")
    build = StoredSecrets(store)
    first = SecretReference("A", "secretManager", f"{FULL}/versions/latest")
    again = SecretReference("B", "secretManager", f"{FULL}/versions/latest")
    assert build.find(first, []) == "old"
    store.put(SecretName("api-key"), "new")
    assert build.find(again, []) == "old"
    assert StoredSecrets(store).find(again, []) == "new"


@pytest.mark.parametrize(
    ("version", "part"),
    [("9", "has only other versions of api-key"), ("prod", "does not have it")],
)
def test_a_missing_version_says_what_is_there_and_what_to_do(store, version, part):
    store.put(SecretName("api-key"), "value 1")
    with pytest.raises(SecretError, match=part) as caught:
        resolve(store, version)
    assert f'"{FULL}/versions/{version}" for $API_KEY' in str(caught.value)
    assert "`buildrunner secrets set api-key`" in caught.value.hint
    assert "value 1" not in f"{caught.value}{caught.value.hint}"


def test_a_ciphertext_of_kms_is_found_by_its_variable(store):
    store.put(SecretName("PASSWORD"), "hunter22")
    reference = SecretReference("PASSWORD", "kms", "projects/p/.../cryptoKeys/k", "AbC=")
    assert ProviderChain([StoredSecrets(store)]).resolve(reference) == "hunter22"
    other = SecretReference("OTHER", "kms", "projects/p/.../cryptoKeys/k", "AbC=")
    with pytest.raises(SecretError) as caught:
        ProviderChain([StoredSecrets(store)]).resolve(other)
    assert "`buildrunner secrets set OTHER`" in caught.value.hint


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o777])
def test_everything_is_private_whatever_the_umask(store, folder, umask):
    old = os.umask(umask & ~0o700)  # the folder itself must stay usable
    try:
        store.put(SecretName("a"), "value")
    finally:
        os.umask(old)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()}
    assert (modes["key"], modes["secrets.json"]) == (0o600, 0o600)
    assert not stat.S_IMODE(folder.stat().st_mode) & 0o077
    assert sorted(modes) == ["key", "lock", "secrets.json"]


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660])
def test_a_key_that_others_may_read_is_refused(store, folder, mode):
    store.put(SecretName("api-key"), "value")
    (folder / "key").chmod(mode)
    with pytest.raises(SecretError, match=f"its mode is {mode:04o}") as caught:
        resolve(store)
    assert f"chmod 600 {folder}/key" in caught.value.hint
    (folder / "key").chmod(0o600)
    assert resolve(store) == "value"


def test_a_lost_key_is_not_replaced(store, folder):
    store.put(SecretName("api-key"), "value")
    (folder / "key").unlink()
    for act in (lambda: resolve(store), lambda: store.put(SecretName("b"), "x")):
        with pytest.raises(SecretError, match=r"the key of .* is missing"):
            act()
    assert not (folder / "key").exists()


def test_another_key_is_told_from_damage(store, folder):
    store.put(SecretName("api-key"), "value")
    (folder / "key").write_bytes(base64.b64encode(bytes(32)))
    with pytest.raises(SecretError, match="was written with another key"):
        resolve(store)
    (folder / "key").write_bytes(b"not a key")
    with pytest.raises(SecretError, match="holds no key"):
        resolve(store)


def changed(folder, change):
    path = folder / "secrets.json"
    document = json.loads(path.read_bytes())
    change(document["secrets"])
    path.write_text(json.dumps(document))


def flip(secrets):
    version = secrets["api-key"]["versions"][0]
    sealed = bytearray(base64.b64decode(version["sealed"]))
    sealed[-1] ^= 1
    version["sealed"] = base64.b64encode(sealed).decode()


def swap(secrets):
    one, other = secrets["api-key"]["versions"][0], secrets["other"]["versions"][0]
    one["sealed"] = other["sealed"]


def swap_versions(secrets):
    secrets["api-key"]["versions"] = [
        {**secrets["api-key"]["versions"][0], "version": 2},
    ]


def empty(secrets):
    secrets["api-key"]["versions"][0]["sealed"] = ""


@pytest.mark.parametrize("change", [flip, swap, swap_versions, empty])
def test_a_changed_store_is_noticed(store, folder, change):
    store.put(SecretName("api-key"), "value")
    store.put(SecretName("other"), "other value")
    changed(folder, change)
    with pytest.raises(SecretError, match=r"of api-key in .* is damaged") as caught:
        resolve(store)
    assert "buildrunner secrets set api-key" in caught.value.hint


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"secrets": 1}', b"\xff\xfe", b"\0" * 99])
def test_a_store_that_is_none_is_one_clear_error(store, folder, content):
    folder.mkdir()
    (folder / "secrets.json").write_bytes(content)
    for act in (store.secrets, lambda: resolve(store), lambda: store.put(SecretName("a"), "b")):
        with pytest.raises(SecretError, match="is damaged"):
            act()
    assert (folder / "secrets.json").read_bytes() == content


def test_a_newer_format_is_not_touched(store, folder):
    folder.mkdir()
    (folder / "secrets.json").write_text('{"format": 3}')
    with pytest.raises(SecretError, match="newer buildrunner"):
        store.secrets()


def test_what_is_not_there_can_not_be_removed(store):
    with pytest.raises(NotFound, match="no secret api-key"):
        store.remove(SecretName("api-key"))
    store.put(SecretName("api-key"), "v")
    with pytest.raises(NotFound, match="no version 2 of api-key"):
        store.remove(SecretName("api-key", 2))
    store.remove(SecretName("api-key"))
    assert store.secrets() == {}


def test_processes_that_write_at_once_lose_nothing(store, folder):
    program = (
        "import sys; from buildrunner.secrets.local_store import *;"
        "from buildrunner.secrets.store_key import KeyFile;"
        "from buildrunner.secrets.secret_name import SecretName;"
        "store = LocalSecretStore(sys.argv[1], KeyFile(sys.argv[1] + '/key'));"
        "[store.put(SecretName('api-key'), f'{sys.argv[2]} {n}') for n in range(5)]"
    )
    processes = [
        subprocess.Popen([sys.executable, "-c", program, str(folder), str(number)])
        for number in range(4)
    ]
    assert [process.wait(60) for process in processes] == [0] * 4
    versions = store.secrets()["api-key"].versions
    assert [one.version for one in versions] == list(range(1, 21))
    values = {resolve(store, str(number)) for number in range(1, 21)}
    assert values == {f"{process} {n}" for process in range(4) for n in range(5)}
    assert sorted(path.name for path in folder.iterdir()) == ["key", "lock", "secrets.json"]


class MemoryKeyring(keyring.backend.KeyringBackend):
    """A keyring as the package lets anyone write one."""

    priority = 1

    def __init__(self):
        super().__init__()
        self.kept = {}
        self.locked = False

    def get_password(self, service, username):
        if self.locked:
            raise keyring.errors.KeyringLocked("it is locked")
        return self.kept.get((service, username))

    def set_password(self, service, username, password):
        if self.locked:
            raise keyring.errors.KeyringLocked("it is locked")
        self.kept[service, username] = password


@pytest.fixture
def os_keyring():
    old = keyring.get_keyring()
    made = MemoryKeyring()
    keyring.set_keyring(made)
    yield made
    keyring.set_keyring(old)


def test_the_key_may_be_in_the_keyring(folder, os_keyring):
    store = LocalSecretStore(str(folder), KeyringKey(str(folder)))
    store.put(SecretName("api-key"), "value")
    assert resolve(LocalSecretStore(str(folder), KeyringKey(str(folder)))) == "value"
    assert sorted(path.name for path in folder.iterdir()) == ["lock", "secrets.json"]
    os_keyring.locked = True
    with pytest.raises(SecretError, match="does not give the key: it is locked"):
        resolve(store)
    os_keyring.locked = False
    os_keyring.kept.clear()
    with pytest.raises(SecretError, match="should be in the OS keyring"):
        resolve(store)


def test_a_locked_keyring_takes_no_key(folder, os_keyring):
    class TakesNone(MemoryKeyring):
        def set_password(self, service, username, password):
            raise keyring.errors.PasswordSetError("no")

    keyring.set_keyring(TakesNone())
    with pytest.raises(SecretError, match="does not take the key: no"):
        LocalSecretStore(str(folder), KeyringKey("x")).put(SecretName("a"), "value")


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("api-key", SecretName("api-key")),
        ("api-key/versions/3", SecretName("api-key", 3)),
        (f"{FULL}/versions/latest", SecretName(FULL)),
        (
            "projects/1/locations/europe-west1/secrets/s/versions/12",
            SecretName("projects/1/locations/europe-west1/secrets/s", 12),
        ),
    ],
)
def test_names_are_understood(text, name):
    assert parse_name(text) == name
    assert parse_name(name.secret).bare == name.secret.rpartition("/")[2]


@pytest.mark.parametrize(
    "text", ["", "a b", "a/b", "/a", "s/versions/0", "s/versions/x", "hunter2!", "../key", "é"]
)
def test_other_names_are_refused_without_repeating_them(text):
    with pytest.raises(UsageError) as caught:
        parse_name(text)
    assert str(caught.value) == "that is not the name of a secret"


def test_a_zero_byte_never_reaches_a_container(store):
    store.put(SecretName("api-key"), "a\0b=c")
    with pytest.raises(SecretError, match="zero byte"):
        resolve(store)


class TestScopes:
    SCOPE = Scope(projects=("shop",), refs=("refs/heads/main",))

    def test_a_scope_outlives_the_last_version_that_is_removed_by_its_number(self, store):
        """Attack: a leaked value was removed, and the next one was shared with every trigger."""
        store.put(SecretName("api-key"), "leaked", self.SCOPE)
        store.remove(SecretName("api-key", 1))
        assert store.snapshot().version_of(SecretName("api-key")) is None
        assert not store.snapshot().has("api-key")
        assert store.put(SecretName("api-key"), "new") == 2
        assert store.snapshot().scope_of("api-key") == self.SCOPE

    def test_a_scope_is_kept_until_it_is_replaced(self, store):
        store.put(SecretName("api-key"), "one", self.SCOPE)
        store.put(SecretName("api-key"), "two")
        assert store.snapshot().scope_of("api-key") == self.SCOPE
        store.set_scope("api-key", Scope(projects=("web",)))
        assert store.scopes() == {"api-key": Scope(projects=("web",))}
        store.set_scope("api-key", Scope())
        assert store.snapshot().scope_of("api-key") is None

    def test_it_goes_with_its_secret_and_no_later_one_inherits_it(self, store):
        store.put(SecretName("api-key"), "one", self.SCOPE)
        store.put(SecretName("api-key"), "two")
        store.remove(SecretName("api-key", 1))
        assert store.scopes() == {"api-key": self.SCOPE}
        store.remove(SecretName("api-key"))
        assert store.scopes() == {}

    def test_what_is_at_google_only_has_one_too(self, store):
        store.set_scope(FULL, self.SCOPE)
        assert store.secrets() == {}
        assert store.snapshot().scope_of(FULL) == self.SCOPE

    @pytest.mark.parametrize(
        "change",
        [
            lambda scopes: scopes["api-key"]["scope"]["projects"].append("evil"),
            lambda scopes: scopes["api-key"]["scope"].pop("refs"),
            lambda scopes: scopes.update({"other": scopes["api-key"]}),
            lambda scopes: scopes["api-key"].update(seal=scopes["other"]["seal"]),
        ],
        ids=["wider", "without a limit", "of another secret", "another's seal"],
    )
    def test_nobody_widens_one_without_the_key(self, store, folder, change):
        store.put(SecretName("api-key"), "one", self.SCOPE)
        store.put(SecretName("other"), "two", Scope(projects=("evil",)))
        path = folder / "secrets.json"
        document = json.loads(path.read_text())
        change(document["scopes"])
        path.write_text(json.dumps(document))
        changed = (
            "api-key" if document["scopes"]["other"]["scope"]["projects"] == ["evil"] else "other"
        )
        with pytest.raises(SecretError, match=f"the scope of {changed} .* is damaged"):
            store.snapshot().scope_of(changed)

    def test_a_store_from_before_scopes_is_read_and_an_older_program_does_not_lose_them(
        self, store, folder
    ):
        store.put(SecretName("api-key"), "one")
        path = folder / "secrets.json"
        document = json.loads(path.read_text())
        assert document["format"] == 2
        old = {name: value for name, value in document.items() if name != "scopes"}
        path.write_text(json.dumps({**old, "format": 1}))
        assert resolve(store) == "one"
        assert store.scopes() == {}
        store.set_scope("api-key", self.SCOPE)
        assert json.loads(path.read_text())["format"] == 2
