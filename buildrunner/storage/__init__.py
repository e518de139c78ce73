"""Objects in buckets: Cloud Storage, or folders of this machine that stand for buckets."""
