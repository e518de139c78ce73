"""Alembic revisions of the server's database. Never change one that was released: add one.

A new one: change `sql_schema`, write ``versions/rNNNN_what.py`` by the example of the last one,
append its number to `sql_migrate.REVISIONS`, and give tests/contract/test_server_store_faults.py
rows as that revision would have them. Tests then upgrade from every older one, with data, on both
databases, and compare what came of it with `sql_schema`. All that is missing runs in one
transaction: a revision must need no second one.
"""
