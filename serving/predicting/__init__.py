"""Predictions: complete the instances, run the model, and log the answers."""
