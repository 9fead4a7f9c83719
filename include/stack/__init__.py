"""The embedded stack: Airflow, MLflow and serving as processes of this machine, started, watched and ended by `airloop up|down|status`."""
