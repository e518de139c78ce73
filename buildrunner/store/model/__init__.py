"""Values that the server's store returns: builds, deliveries, messages, tokens."""
