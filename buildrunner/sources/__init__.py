"""Where a build's files come from: a local folder, and the rules for what of it is sent."""
