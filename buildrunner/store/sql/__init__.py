"""The database of a server: SQLite or PostgreSQL, by SQLAlchemy Core.

Start with `schema` and `store`; `migrations` brings an older database up to date.
"""
