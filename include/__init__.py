"""Airloop's library: what the DAGs, the training steps and the `airloop` command call, a room per concern."""
