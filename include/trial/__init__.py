"""Run one stage as its real DAG, on a sample, in a separate scratch store: `airloop try`."""
