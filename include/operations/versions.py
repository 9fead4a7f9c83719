"""Find the installed version of a product, from any of its distributions.

For example, Airflow's image has MLflow's client but not its server.
"""

from importlib.metadata import PackageNotFoundError, version

DISTRIBUTIONS = {
    "airloop": ("airloop",),
    "mlflow": ("mlflow", "mlflow-skinny"),
    "feast": ("feast",),
    "airflow": ("apache-airflow", "apache-airflow-core"),
}


def installed(product: str) -> str:
    """Return the product's version, or "unknown" if it is not installed as a distribution.

    The latter applies to Airloop's own code in an image.
    """
    for name in DISTRIBUTIONS[product]:
        try:
            return version(name)
        except PackageNotFoundError:
            continue
    return "unknown"
