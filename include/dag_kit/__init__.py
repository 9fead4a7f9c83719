"""The part of the library that depends on Airflow, together with `include.assets`."""
