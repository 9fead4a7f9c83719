"""The stack's stores: databases, buckets, migrations and Airflow's pools."""
