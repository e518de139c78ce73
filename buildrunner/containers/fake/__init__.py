"""An engine in memory that passes the contract suite of engines, for tests."""
