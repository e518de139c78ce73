"""`buildrunner submit`: build a folder, an archive or a repository.

Start with `command`. `run` builds on this machine with the output of `session`; `remote`
uploads the source, has a server build it, and follows the build.
"""
