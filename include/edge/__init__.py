"""Edge bundles: a model version in one signed file, for those that cannot call an API."""
