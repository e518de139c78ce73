"""What a project's settings file may do by itself, and what its user has to trust it for."""

import pytest

from buildrunner.errors import ConfigError
from buildrunner.settings import (
    TrustedFiles,
    UntrustedFile,
    load_settings,
    own_settings,
    read_project_file,
)

KEY = "-----BEGIN OPENSSH PRIVATE KEY-----"


class Place:
    """A folder of a project, a folder of its user."""

    def __init__(self, path):
        self.folder = path / "project"
        self.folder.mkdir()
        self.environ = {"HOME": str(path / "home"), "XDG_CONFIG_HOME": str(path / "config")}
        (path / "home").mkdir()
        (path / "home" / "id_ed25519").write_text(KEY)

    def write(self, text):
        (self.folder / ".buildrunner.toml").write_text(text)

    def own(self, text):
        folder = self.folder.parent / "config" / "buildrunner"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.toml").write_text(text)

    def load(self, folder=None, **options):
        return load_settings(str(folder or self.folder), self.environ, **options)

    def read(self):
        return read_project_file(str(self.folder), self.environ)[0]

    @property
    def trusted(self):
        return TrustedFiles(self.environ)


@pytest.fixture
def place(tmp_path):
    return Place(tmp_path)


NEEDS = [
    ('[project]\nid = "prod"', "project.id", "project prod"),
    ('[images]\naliases = {a = "evil/b"}', 'images.aliases."a"', "evil/b for a"),
    ("[sandbox]\nprivileged = true", "sandbox.privileged", "run privileged"),
    (
        '[secrets]\nk = "env:AWS_SECRET_ACCESS_KEY"',
        'secrets."k"',
        "environment variable AWS_SECRET_ACCESS_KEY",
    ),
    ('[secrets]\nk = "file:~/id_ed25519"', 'secrets."k"', "outside of the folder"),
    ('[secrets]\nk = "file:../home/id_ed25519"', 'secrets."k"', "outside of the folder"),
    ('[secrets]\nk = "file:/etc/shadow"', 'secrets."k"', "outside of the folder"),
    ('[secrets]\nk = "file:a/../../home/id_ed25519"', 'secrets."k"', "outside of the folder"),
    ('[secrets]\nk = "file:link"', 'secrets."k"', "outside of the folder"),
    ('[secrets]\nk = "file:linked/id_ed25519"', 'secrets."k"', "outside of the folder"),
    ('[secrets]\nk = "file:."', 'secrets."k"', "outside of the folder"),
    (
        '[artifacts.repositories]\n"https://a/" = "https://evil/"',
        'artifacts.repositories."https://a/"',
        "published to https://evil/",
    ),
]


@pytest.mark.parametrize(("text", "path", "what"), NEEDS)
def test_what_could_raise_rights_needs_trust(place, text, path, what):
    home = place.folder.parent / "home"
    (place.folder / "link").symlink_to(home / "id_ed25519")
    (place.folder / "linked").symlink_to(home)
    place.write(text)
    with pytest.raises(UntrustedFile) as caught:
        place.load()
    (problem,) = caught.value.problems
    assert problem.path == path
    assert what in problem.message
    assert f"buildrunner trust {place.folder}" in problem.hint
    assert isinstance(caught.value, ConfigError)
    place.trusted.add(place.read())
    place.load()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[sandbox]\nprivileged = false\ndocker_socket = false",
        "[sandbox]\ndocker_socket = true",
        '[secrets]\nk = "file:secrets/key"',
        '[secrets]\nk = "file:./inner/../key"',
    ],
)
def test_what_only_lowers_rights_needs_none(place, text):
    place.write(text)
    place.load()


def test_a_secret_s_file_is_the_one_that_was_judged(place):
    (place.folder / "key").write_text("mine")
    (place.folder / "link").symlink_to("key")
    place.write('[secrets]\nk = "file:link"')
    settings = place.load()
    (place.folder / "link").unlink()
    (place.folder / "link").symlink_to(place.folder.parent / "home/id_ed25519")
    assert settings.secrets == {"k": f"file:{place.folder}/key"}


def test_what_the_user_s_own_file_says_already_needs_no_trust(place):
    place.own('[project]\nid = "p"\n[sandbox]\nprivileged = true\n')
    place.write('[project]\nid = "p"\n[sandbox]\nprivileged = true\n')
    assert place.load().privileged


def test_the_socket_that_the_user_withholds_is_not_given_back(place):
    place.own("[sandbox]\ndocker_socket = false\n")
    place.write("[sandbox]\ndocker_socket = true\n")
    with pytest.raises(UntrustedFile, match="engine's socket"):
        place.load()


def test_the_user_s_own_file_keeps_all_rights(place):
    place.own(
        '[project]\nid = "p"\n[images]\naliases = {a = "b"}\n[sandbox]\nprivileged = true\n'
        '[secrets]\nk = "env:KEY"\nf = "file:~/id_ed25519"\n'
    )
    settings = place.load()
    assert settings.privileged
    assert settings.secrets["k"] == "env:KEY"
    assert settings == own_settings(place.environ)


def test_trust_is_for_a_file_as_it_was_read(place):
    place.write('[project]\nid = "a"')
    place.trusted.add(place.read())
    assert place.load().project_id == "a"
    place.write('[project]\nid = "b"')
    with pytest.raises(UntrustedFile):
        place.load()
    place.write('[project]\nid = "a"')
    assert place.load().project_id == "a"
    assert place.trusted.remove(str(place.folder / ".buildrunner.toml"))
    assert not place.trusted.remove(str(place.folder / ".buildrunner.toml"))
    with pytest.raises(UntrustedFile):
        place.load()


def test_trust_is_for_one_folder_under_all_its_names(place, tmp_path):
    place.write('[project]\nid = "a"')
    place.trusted.add(place.read())
    (tmp_path / "name").symlink_to(place.folder)
    assert place.load(tmp_path / "name").project_id == "a"
    other = tmp_path / "other"
    other.mkdir()
    (other / ".buildrunner.toml").symlink_to(place.folder / ".buildrunner.toml")
    with pytest.raises(UntrustedFile):
        place.load(other)


def test_a_confirmation_counts_for_this_time_only(place):
    place.write('[project]\nid = "a"')
    requested = []

    def confirm(file):
        requested.append(file.needs)
        return True

    assert place.load(confirm=confirm).project_id == "a"
    assert requested == [{"project.id": "builds are of the project a"}]
    with pytest.raises(UntrustedFile):
        place.load()


def test_a_damaged_list_trusts_nothing(place):
    place.write('[project]\nid = "a"')
    place.trusted.add(place.read())
    (listed,) = (place.folder.parent / "config/buildrunner").iterdir()
    assert listed.stat().st_mode & 0o077 == 0
    listed.write_text("{")
    with pytest.raises(UntrustedFile):
        place.load()
