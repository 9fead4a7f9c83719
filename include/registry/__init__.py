"""Model versions in MLflow, their aliases, and the promotion gate."""
