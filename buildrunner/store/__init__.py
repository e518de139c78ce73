"""Builds, triggers, deliveries and messages, kept.

`local` is the store of a user's own builds; `sql` is the database of a server; `protocols` is what
the server asks of it. `records` turns events into the stored Build.
"""
