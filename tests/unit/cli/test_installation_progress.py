from __future__ import annotations

from buildrunner.builders.catalog import BUILDERS
from buildrunner.builders.image_factory import StoredImage
from buildrunner.cli.terminal.installation_progress import InstallationProgress

IMAGE = StoredImage(id="id", labels={}, size_bytes=118_000_000)


def test_the_root_file_system_is_counted_among_the_images(capsys) -> None:
    progress = InstallationProgress(BUILDERS[:1])
    for name in ("debian", "base"):
        progress.started(name)
        progress.finished(name, IMAGE, 1.0, made=True)
    progress.summarise()
    last = capsys.readouterr().out.splitlines()[-2:]
    assert last == ["base  made and tested in 1.0 s, 118 MB [2/2]", "2 made, 0 up to date"]
