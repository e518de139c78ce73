"""Pages of triggers: list, one trigger, its editor, deliveries and trends."""
