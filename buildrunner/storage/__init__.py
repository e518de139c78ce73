"""Objects in buckets: Cloud Storage, or local folders in place of buckets.

Start with `object_store`, the protocol. `gcs` implements it; `stores` implements it for
folders, and finds the store of each bucket.
"""
