"""With `include.assets` the only corner of the library that knows Airflow."""
