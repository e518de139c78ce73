"""Where a build's files come from: a `folder`, a `git` repository, a `bucket`, an upload.

A source yields files (`fetched_files`) and does not know where they go. `policy` says which sources
a place allows.
"""
