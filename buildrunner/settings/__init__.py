"""Settings outside the build config: the only reader of environment and settings files.

Start with `settings_file`. `environment` reads variables; `folder_trust` decides whether the
settings file of a project may be used.
"""

from buildrunner.settings.environment import (
    ServerVariables,
    WorkerSettings,
    cache_folder,
    config_folder,
    data_folder,
    google_endpoint,
    lock_folder,
    sandbox_folder,
    secrets_folder,
    server_database,
    server_variables,
    terminal,
    traces_wanted,
    worker_environment,
    worker_settings,
)
from buildrunner.settings.folder_trust import ProjectFile, TrustedFiles, UntrustedFile
from buildrunner.settings.settings_file import (
    DEFAULT_PROJECT,
    FILE_NAME,
    GitSettings,
    Settings,
    load_settings,
    own_settings,
    read_project_file,
    setting_origins,
    settings_for_workers,
    settings_of_worker,
)

__all__ = [
    "DEFAULT_PROJECT",
    "FILE_NAME",
    "GitSettings",
    "ProjectFile",
    "ServerVariables",
    "Settings",
    "TrustedFiles",
    "UntrustedFile",
    "WorkerSettings",
    "cache_folder",
    "config_folder",
    "data_folder",
    "google_endpoint",
    "load_settings",
    "lock_folder",
    "own_settings",
    "read_project_file",
    "sandbox_folder",
    "secrets_folder",
    "server_database",
    "server_variables",
    "setting_origins",
    "settings_for_workers",
    "settings_of_worker",
    "terminal",
    "traces_wanted",
    "worker_environment",
    "worker_settings",
]
