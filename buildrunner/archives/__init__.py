"""Read and write tar, zip and gzip archives, with rules on what a member may be.

Start with `reader`, which finds out what an archive is and yields its members; `rules` says what is
refused and why. No module here knows where an archive comes from or goes to.
"""
