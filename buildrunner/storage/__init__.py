"""Objects in buckets: Cloud Storage, or local folders that stand for buckets.

Start with `object_store`, the protocol. `gcs` and `folder_store` implement it.
"""
