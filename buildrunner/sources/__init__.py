"""The files of a build: from a `local_folder`, a `git` repository, a `bucket`, or an upload.

A source yields files (`fetched_files`) and does not know where they go. `ignore_rules` skips files
of a folder; `policy` decides which sources a server allows.
"""
