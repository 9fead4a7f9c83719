"""Drift, performance on late labels, and the controller that asks for retraining."""
