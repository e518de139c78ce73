"""What the server asks of its database, a protocol for each subject."""
