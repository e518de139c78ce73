"""The store of a user's own builds: SQLite in the user's data folder."""
