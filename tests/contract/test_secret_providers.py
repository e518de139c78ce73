"""What every provider of secrets does, and what each does when its source fails."""

import base64
import os
import sys
import traceback
from concurrent.futures import ThreadPoolExecutor

import pytest

from buildrunner import wiring
from buildrunner.errors import SecretError
from buildrunner.plan.build_plan import SecretReference
from buildrunner.secrets.decrypt_command import CommandSecrets
from buildrunner.secrets.google import (
    TRIES,
    GoogleApi,
    KmsSecrets,
    SecretManagerSecrets,
    checked_bytes,
)
from buildrunner.secrets.local_store import LocalSecretStore, StoredSecrets
from buildrunner.secrets.provider import MappedSecrets, ProviderChain
from buildrunner.secrets.secret_name import SecretName
from buildrunner.secrets.store_key import KeyFile
from buildrunner.settings import Settings
from tests.fixtures_google import TOKEN, GoogleServer

SECRET = "projects/p/secrets/api-key"
VERSION = SecretReference("API_KEY", "secretManager", f"{SECRET}/versions/latest")
KEY = "projects/p/locations/global/keyRings/r/cryptoKeys/k"
CIPHERTEXT = b"\x01sealed\xff"
SEALED = SecretReference("API_KEY", "kms", KEY, base64.b64encode(CIPHERTEXT).decode())
VALUE = 'pässword "quoted" $x\n'


@pytest.fixture
def google(tmp_path, monkeypatch):
    server = GoogleServer(tmp_path)
    for name, value in server.environ.items():
        monkeypatch.setenv(name, value)
    yield server
    server.close()


class Pauses(list):
    """Waits for nothing, and remembers how long it should have."""

    def __call__(self, seconds):
        self.append(seconds)


def api_of(server, pauses=None, token=lambda: TOKEN, timeout_s=10.0):
    pause = Pauses() if pauses is None else pauses
    return lambda _endpoint: GoogleApi(server.endpoint, token, pause, timeout_s)


def mapped_to_variable(server, tmp_path):
    return MappedSecrets({"API_KEY": "env:KEY"}, {"KEY": VALUE}), VERSION


def mapped_to_file(server, tmp_path):
    (tmp_path / "key").write_bytes(VALUE.encode())
    return MappedSecrets({"API_KEY": f"file:{tmp_path}/key"}, {}), SEALED


def stored(server, tmp_path):
    store = LocalSecretStore(str(tmp_path / "store"), KeyFile(str(tmp_path / "store" / "key")))
    store.put(SecretName("API_KEY"), VALUE)
    return StoredSecrets(store), VERSION


def secret_manager(server, tmp_path):
    server.versions[f"{SECRET}/versions/3"] = VALUE.encode()
    server.aliases[VERSION.name] = f"{SECRET}/versions/3"
    return SecretManagerSecrets(api_of(server)), VERSION


def kms(server, tmp_path):
    server.plaintexts[KEY, CIPHERTEXT] = VALUE.encode()
    return KmsSecrets(api_of(server)), SEALED


def command(server, tmp_path):
    program = (
        "import sys; assert sys.argv[1] == sys.argv[2]; data = sys.stdin.buffer.read();"
        f"assert data == {CIPHERTEXT!r}; sys.stdout.buffer.write({VALUE.encode()!r})"
    )
    return CommandSecrets([sys.executable, "-c", program, "{key}", KEY]), SEALED


class TestEveryProvider:
    @pytest.fixture(
        params=[mapped_to_variable, mapped_to_file, stored, secret_manager, kms, command]
    )
    def known(self, request, google, tmp_path):
        return request.param(google, tmp_path)

    def test_gives_the_value_as_it_is(self, known):
        provider, reference = known
        assert provider.find(reference, []) == VALUE
        assert provider.find(reference, []) == VALUE

    def test_gives_none_and_a_reason_for_what_it_does_not_know(self, known):
        provider, reference = known
        unknown = SecretReference("OTHER", "secretManager", "projects/p/secrets/o/versions/1")
        misses = []
        assert provider.find(unknown, misses) is None
        if reference.kind == "secretManager":
            assert len(misses) == 1


def test_a_token_of_the_users_credentials_goes_along(google):
    google.versions[VERSION.name] = b"from the cloud"
    google.plaintexts[KEY, CIPHERTEXT] = b"decrypted"
    resolver = wiring.secret_resolver(Settings(google_secrets=True))
    assert resolver.resolve(VERSION) == "from the cloud"
    assert resolver.resolve(SEALED) == "decrypted"
    assert google.requests == [
        ("GET", f"/v1/{VERSION.name}:access", f"Bearer {TOKEN}"),
        ("POST", f"/v1/{KEY}:decrypt", f"Bearer {TOKEN}"),
    ]


def test_google_is_not_asked_unless_told_to(google, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    google.versions[VERSION.name] = b"from the cloud"
    with pytest.raises(SecretError, match="not asked without --google-secrets"):
        wiring.secret_resolver(Settings()).resolve(VERSION)
    assert google.requests == []


def test_latest_is_asked_for_once_a_build(google):
    google.versions[VERSION.name] = b"old"
    provider = SecretManagerSecrets(api_of(google))
    assert provider.find(VERSION, []) == "old"
    google.versions[VERSION.name] = b"new"
    assert provider.find(SecretReference("B", "secretManager", VERSION.name), []) == "old"
    assert len(google.requests) == 1


def test_an_emulator_over_http_gets_no_token(google):
    def never():
        raise AssertionError("a token would go over the wire in clear")

    plain = GoogleApi(google.endpoint.replace("https", "http"), never, Pauses(), 5.0)
    with pytest.raises(SecretError, match="does not answer"):  # it speaks TLS only
        SecretManagerSecrets(lambda _endpoint: plain).find(VERSION, [])


PASSING = [429, 500, 502, 503, 504, "cut", "damaged", "html"]


@pytest.mark.parametrize("failure", PASSING)
@pytest.mark.parametrize("make", [secret_manager, kms])
def test_passing_trouble_is_waited_out(google, tmp_path, failure, make):
    known, reference = make(google, tmp_path)
    pauses = Pauses()
    provider = type(known)(api_of(google, pauses))
    google.failures = [failure, failure]
    assert provider.find(reference, []) == VALUE
    assert pauses == [0.5, 1.0]


def test_a_busy_api_is_given_the_time_it_asks_for(google, tmp_path):
    known, reference = secret_manager(google, tmp_path)
    pauses = Pauses()
    google.failures = [503, "busy for 7", 503]
    assert type(known)(api_of(google, pauses)).find(reference, []) == VALUE
    assert pauses == [0.5, 7.0, 2.0]


@pytest.mark.parametrize(
    ("failure", "part"),
    [
        (429, "Refused with 429 on purpose"),
        (500, "Refused with 500 on purpose"),
        ("cut", "not JSON"),
        ("damaged", "CRC32C"),
        ("html", "not JSON"),
    ],
)
@pytest.mark.parametrize("make", [secret_manager, kms])
def test_lasting_trouble_is_one_clear_error(google, tmp_path, failure, part, make):
    provider, reference = make(google, tmp_path)
    google.failures = [failure] * TRIES
    with pytest.raises(SecretError, match=part) as caught:
        provider.find(reference, [])
    assert len(google.requests) == TRIES
    assert reference.name in str(caught.value)
    assert "$API_KEY" in str(caught.value)


@pytest.mark.parametrize("make", [secret_manager, kms])
@pytest.mark.parametrize(
    ("code", "part", "hint"),
    [
        (400, "answered 400", ""),
        (401, "does not accept the credentials", "gcloud auth application-default login"),
        (403, "refuses access", "the role roles/"),
    ],
)
def test_a_refusal_is_not_tried_again(google, tmp_path, make, code, part, hint):
    provider, reference = make(google, tmp_path)
    google.failures = [code]
    with pytest.raises(SecretError, match=part) as caught:
        provider.find(reference, [])
    assert str(caught.value).endswith(f"Refused with {code} on purpose")
    assert hint in caught.value.hint
    assert len(google.requests) == 1


def test_base64_may_be_of_either_alphabet():
    value = b"\xfb\xef\xbe\xff\xff"
    assert base64.b64encode(value) == b"++++//8="
    assert checked_bytes("++++//8=", None) == checked_bytes("----__8=", None) == value


def test_an_unknown_secret_is_a_miss_that_names_the_cure(google):
    chain = ProviderChain([], [SecretManagerSecrets(api_of(google))])
    with pytest.raises(SecretError, match="Secret Manager has no such secret") as caught:
        chain.resolve(VERSION)
    assert "`buildrunner secrets set api-key`" in caught.value.hint


def test_an_unknown_key_of_kms_is_an_error(google):
    google.failures = [404]
    with pytest.raises(SecretError, match="answered 404"):
        KmsSecrets(api_of(google)).find(SEALED, [])


@pytest.mark.parametrize("make", [secret_manager, kms])
def test_silence_ends(google, tmp_path, make):
    provider, reference = make(google, tmp_path)
    google.failures = ["hang"] * TRIES
    with pytest.raises(SecretError, match=r"does not answer: .*timed out"):
        type(provider)(api_of(google, timeout_s=0.1)).find(reference, [])


def test_a_token_never_follows_a_redirect(google, tmp_path):
    provider, reference = secret_manager(google, tmp_path)
    google.failures = ["redirect"]
    with pytest.raises(SecretError, match="answered 302"):
        provider.find(reference, [])
    assert len(google.requests) == 1


def test_a_server_that_nobody_vouches_for_gets_no_token(google, tmp_path, monkeypatch):
    _, reference = secret_manager(google, tmp_path)
    monkeypatch.delenv("SSL_CERT_FILE")
    with pytest.raises(SecretError, match="certificate"):
        SecretManagerSecrets(api_of(google)).find(reference, [])
    assert google.requests == []


@pytest.mark.parametrize("make", [secret_manager, kms])
def test_a_name_that_is_none_asks_nobody(google, tmp_path, make):
    provider, reference = make(google, tmp_path)
    misses = []
    for name in ("projects/p/../../v1/other", "api-key", f"{reference.name}?x=y", ""):
        odd = SecretReference("A", reference.kind, name, reference.ciphertext)
        assert provider.find(odd, misses) is None
    assert len(misses) == 4
    assert google.requests == []


def test_missing_credentials_say_how_to_get_them(google, tmp_path, monkeypatch):
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "nowhere.json"))
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    with pytest.raises(SecretError, match="no usable Google credentials") as caught:
        wiring.secret_resolver(Settings(google_secrets=True)).resolve(VERSION)
    assert not str(caught.value).endswith(".")  # the hint goes on after a colon
    assert "gcloud auth application-default login" in caught.value.hint


def test_an_address_that_is_none_is_refused(monkeypatch):
    monkeypatch.setenv("CLOUDSDK_API_ENDPOINT_OVERRIDES_SECRETMANAGER", "file:///etc")
    with pytest.raises(SecretError, match="must be an address"):
        wiring.secret_resolver(Settings(google_secrets=True)).resolve(VERSION)


@pytest.mark.parametrize("value", [b"hunter22\xff", b"x" * 65537])
@pytest.mark.parametrize("kind", ["secretManager", "kms", "command"])
def test_a_value_that_can_not_be_passed_is_not_shown(google, value, kind):
    google.versions[VERSION.name] = google.plaintexts[KEY, CIPHERTEXT] = value
    program = f"import sys; sys.stdout.buffer.write({value!r})"
    provider, reference = {
        "secretManager": (SecretManagerSecrets(api_of(google)), VERSION),
        "kms": (KmsSecrets(api_of(google)), SEALED),
        "command": (CommandSecrets([sys.executable, "-c", program]), SEALED),
    }[kind]
    with pytest.raises(SecretError, match=r"UTF-8|larger than 65536") as caught:
        provider.find(reference, [])
    assert "hunter22" not in str(caught.value)
    assert caught.value.__cause__ is None


def test_an_empty_plaintext_is_a_value(google):
    google.plaintexts[KEY, CIPHERTEXT] = b""
    assert ProviderChain([], [KmsSecrets(api_of(google))]).resolve(SEALED) == ""


class TestDecryptCommand:
    def run(self, program, **options):
        return CommandSecrets([sys.executable, "-c", program], **options).find(SEALED, [])

    def test_its_last_word_is_shown_when_it_fails(self):
        with pytest.raises(SecretError, match="failed with exit code 1: PERMISSION DENIED"):
            self.run("import sys; sys.exit('trace\\nPERMISSION DENIED\\n')")

    def test_nothing_of_it_is_shown_once_it_wrote_a_part_of_the_value(self):
        program = "import sys; print('hunter'); sys.exit('can not write hunter22')"
        with pytest.raises(SecretError, match=r"failed with exit code 1$"):
            self.run(program)

    def test_one_that_does_not_end_is_ended(self):
        program = "print('hunter', end='22', flush=True); import threading as t; t.Event().wait()"
        with pytest.raises(SecretError, match=r"took longer than 0\.5s") as caught:
            self.run(program, limit_s=0.5)
        assert "hunter22" not in "".join(traceback.format_exception(caught.value))

    def test_one_that_writes_without_end_is_ended(self):
        program = "import sys\nwhile True: sys.stdout.write('x' * 4096)"
        with pytest.raises(SecretError, match="gives is larger than 65536 bytes"):
            self.run(program)

    def test_one_that_talks_without_end_before_it_gives_the_value(self):
        program = (
            "import sys\n"
            "for _ in range(1000): sys.stderr.write('x' * 4096)\n"
            "print(len(sys.stdin.buffer.read()), end='')"
        )
        assert self.run(program) == str(len(CIPHERTEXT))

    def test_one_that_does_not_want_the_ciphertext(self):
        odd = SecretReference("A", "kms", KEY, base64.b64encode(b"x" * 1_000_000).decode())
        command = CommandSecrets([sys.executable, "-c", "print('value', end='')"])
        assert command.find(odd, []) == "value"

    def test_what_it_has_started_ends_with_it(self, tmp_path):
        told = tmp_path / "told"
        os.mkfifo(told)
        # Whoever opens the pipe to read waits for its writer, and reads on until that has ended.
        program = f"sleep 1000 > {told} & wait"
        with ThreadPoolExecutor() as pool:
            read = pool.submit(told.read_bytes)
            with pytest.raises(SecretError, match=r"took longer than 0\.5s"):
                CommandSecrets(["sh", "-c", program], limit_s=0.5).find(SEALED, [])
            assert read.result(30) == b""

    def test_one_that_is_not_there_is_named(self):
        with pytest.raises(SecretError, match=r"no-such-program, for .* can't be run"):
            CommandSecrets(["no-such-program"]).find(SEALED, [])

    def test_a_ciphertext_that_is_none_runs_nothing(self):
        odd = SecretReference("A", "kms", KEY, "not base64!")
        with pytest.raises(SecretError, match="is not base64"):
            CommandSecrets(["no-such-program"]).find(odd, [])

    @pytest.mark.parametrize(
        "name",
        ["--plaintext-file=/etc/passwd", "k", f"{KEY}/../other", f"{KEY} --flag", f"{KEY}\n", "-"],
    )
    def test_a_name_that_no_key_has_is_no_argument_of_the_program(self, tmp_path, name):
        ran = tmp_path / "ran"
        command = CommandSecrets(["touch", str(ran), "{key}"])
        odd = SecretReference("A", "kms", name, base64.b64encode(CIPHERTEXT).decode())
        with pytest.raises(SecretError, match="is not the name of a KMS key"):
            command.find(odd, [])
        assert not ran.exists()
