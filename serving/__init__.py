"""The service: answers predictions of whatever model MLflow calls champion. It knows neither Airflow nor ``include``."""
