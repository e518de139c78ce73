"""What forges send: one module each, that proves who sent it and reads it. Pure."""
