"""Routes of the REST API and of webhooks: thin, one module for each resource."""
