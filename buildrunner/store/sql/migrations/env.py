"""Alembic's entry point. The caller (`store.sql.migrate`) has the connection and transaction."""

from __future__ import annotations

from alembic import context

from buildrunner.store.sql.schema import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    transactional_ddl=True,
)
context.run_migrations()
