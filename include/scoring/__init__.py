"""Batch predictions, equal to serving's answers, for all due examples."""
