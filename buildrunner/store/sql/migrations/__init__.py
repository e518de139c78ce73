"""Alembic revisions of the server's database. A released revision never changes: add a new one.

To add a revision, change `store.sql.schema`, write a module in `versions` like the newest one,
and append its number to ``store.sql.migrate.REVISIONS``. Add rows as the revision has them to
tests/contract/test_server_store_faults.py. The tests upgrade from every older revision, with data,
on both databases, and compare the result with `store.sql.schema`. All missing revisions run in one
transaction: a revision must not need a second one.
"""
