"""Sources in buckets: archives, manifests of files, and staging for uploads."""
