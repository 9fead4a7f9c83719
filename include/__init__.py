"""Airloop's library, used by the DAGs, the training steps and the `airloop` command.

Each package covers one concern.
"""
