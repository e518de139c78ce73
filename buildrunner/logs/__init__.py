"""Where a build's log goes, how it is read back, how it is shown."""
