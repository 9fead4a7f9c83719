"""The embedded stack: Airflow, MLflow and serving as processes of this machine.

`airloop up|down|status` starts, stops and monitors them.
"""
