"""Drift, performance on late labels, and the controller that requests retraining."""
