"""`airloop try`: one stage as its real DAG, on a sample, in a scratch store of its own."""
