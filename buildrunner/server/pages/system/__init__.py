"""Pages about the server itself: its state, and the outbox."""
