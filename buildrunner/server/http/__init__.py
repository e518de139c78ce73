"""What all routes stand on: access, sessions, errors, limits, the listener."""
