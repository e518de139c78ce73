"""Terminal code that commands share: streams, signals, tables, errors, a progress bar."""
