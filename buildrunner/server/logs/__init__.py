"""Build logs over HTTP: `live` streams of running builds, and ranges of stored logs in `view`."""
