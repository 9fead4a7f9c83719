"""Edge bundles: a model version in one signed file, for devices that cannot call an API."""
