"""Sources in Git repositories: credentials, mirror, checkout, submodules, LFS.

Start with `source`. `command` is the only module that runs git.
"""
