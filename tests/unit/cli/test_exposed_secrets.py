"""Secrets in files of the source folder: whoever submits it is warned."""

from pathlib import Path

from buildrunner.sources.ignore_rules import exposed_secrets


def warned(folder: Path, *names: str) -> list[str]:
    secrets = {Path(name).name: f"file:{folder / name}" for name in names}
    return [text.partition(" holds")[0] for text in exposed_secrets(str(folder), "", secrets)]


def test_a_secret_in_the_source_is_told_of(tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "private").mkdir(parents=True)
    for name in ("key", "private/key2", "..odd"):
        (source / name).touch()
    (tmp_path / "outside").touch()
    (tmp_path / "link").symlink_to(source)
    everything = ("key", "private/key2", "..odd", "../outside", "not-there")
    assert warned(source, *everything) == ["key", "private/key2", "..odd"]
    assert warned(tmp_path / "link", "key") == ["key"]
    assert exposed_secrets(str(source), "", {"key": "env:KEY"}) == []
    (source / ".gcloudignore").write_text("key\nprivate/\n")
    assert warned(source, *everything) == ["..odd"]
