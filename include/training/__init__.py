"""Training steps: `python -m include.training ...`."""
