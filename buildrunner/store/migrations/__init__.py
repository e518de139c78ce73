"""Alembic revisions of the server's database. Never change one that was released: add one."""
