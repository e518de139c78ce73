"""The interface of a server's database, one protocol for each subject."""
