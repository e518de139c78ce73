"""What commands share on a terminal: streams, signals, tables, errors, a progress bar."""
