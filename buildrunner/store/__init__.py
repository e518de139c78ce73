"""Stored builds, triggers, deliveries and messages.

`local` is the store of a user's own builds; `sql` is the database of a server; `model` has the
values that the database returns. `records` turns events into the stored Build.
"""
