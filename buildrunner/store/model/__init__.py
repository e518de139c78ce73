"""Values of the server's store: builds, deliveries, messages, tokens, as they are handed out."""
