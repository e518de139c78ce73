"""The files of a build: from a `folder`, a `git` repository, a `bucket`, or an upload.

A source yields files (`fetched_files`) and does not know where they go. `policy` decides which
sources a server allows.
"""
