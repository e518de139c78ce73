"""From an event to a build: triggers, what they match and what they make. Pure."""
