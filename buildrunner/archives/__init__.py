"""Read and write tar, zip and gzip archives, with rules on what a member may be.

Start with `reader`, which finds out what an archive is and yields its members. `members` defines a
member, and which members are refused and why. No module here knows where an archive comes from or
goes to.
"""
