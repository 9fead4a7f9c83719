"""Batch predictions: what serving would have answered, for everything at once."""
