"""The files of a build: from a `local_folder`, a `git` repository, a `bucket`, or an upload.

A source yields files (`fetched_files`) and does not know where they go. `ignore_rules` leaves files
of a folder out; `policy` decides which sources a server allows.
"""
