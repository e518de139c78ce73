"""Build logs over HTTP: live streams, and ranges of stored logs."""
