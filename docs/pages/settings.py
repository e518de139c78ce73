"""Settings files and environment variables; what they mean stands in settings.toml."""

from __future__ import annotations

import tomllib
from typing import TYPE_CHECKING, Any

from buildrunner.settings import FILE_NAME
from buildrunner.settings.settings_file import KEYS, POOL_KEYS, TYPE_NAMES
from pages.markdown import code, table

if TYPE_CHECKING:
    from pathlib import Path

_HEAD = f"""\
# Settings

Settings come from these sources. Earlier ones take precedence:

1. flags of the command,
2. `{FILE_NAME}` in the folder that is built, or in the nearest folder above it,
3. `config.toml` in `$XDG_CONFIG_HOME/buildrunner` (`~/.config/buildrunner`),
4. environment variables,
5. defaults.

Tables are merged key by key. A `{FILE_NAME}` counts only if it belongs to you, to root, or to the owner of
the folder that is built. Without your trust it can only lower the rights of builds: [trust the
file](../how-to/submit.md#settings-of-a-project) to use its other settings. Servers read `config.toml` only.
An unknown key is an error; `buildrunner doctor` checks the files.

```toml
[project]
id = "my-project"

[images]
aliases = {{ "gcr.io/cloud-builders/docker" = "registry.example.com/tools/docker" }}

[sandbox]
docker_socket = true
privileged = false

[secrets]
"projects/my-project/secrets/api-key/versions/latest" = "env:API_KEY"
db-password = "file:secrets/db-password"

[secret_sources]    # in config.toml only
google = true
```

## Keys

"""


def texts(path: Path) -> dict[str, Any]:
    """What settings.toml says."""
    with path.open("rb") as file:
        return tomllib.load(file)


def keys() -> dict[str, str]:
    """Every key of a settings file, with what it takes."""
    found = {
        f"{name}.{key}": TYPE_NAMES[kind]
        for name, entries in KEYS.items()
        for key, kind in entries.items()
    }
    pools = {f"pools.NAME.{key}": TYPE_NAMES[kind] for key, kind in POOL_KEYS.items()}
    return found | {
        "secrets.NAME": "a string that starts with `env:` or `file:`",
        "projects.NAME.TABLE": "a table",
        **pools,
    }


def page(path: Path) -> str:
    """The page.

    Args:
        path: settings.toml.
    """
    said = texts(path)
    rows = [(code(key), kind, said["keys"][key]) for key, kind in keys().items()]
    parts = [_HEAD, table(("key", "takes", "meaning"), rows), "\n## Environment variables\n"]
    for title, variables in said["environment"].items():
        entries = [(code(name), meaning) for name, meaning in variables.items()]
        parts.append(f"\n**{title}**\n\n{table(('variable', 'meaning'), entries)}")
    return "".join(parts)
