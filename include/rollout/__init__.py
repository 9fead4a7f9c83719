"""Rollouts: deploy a version, promote it, and roll it back."""
