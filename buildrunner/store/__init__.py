"""Stored builds, triggers, deliveries and messages.

`local` is the store of a user's own builds; `sql` is the database of a server; `protocols` are its
interface to the server. `records` turns events into the stored Build.
"""
