"""Which version of a product is installed, by whichever of its distributions: Airflow's image has MLflow's client, not its server."""

from importlib.metadata import PackageNotFoundError, version

DISTRIBUTIONS = {"airloop": ("airloop",), "mlflow": ("mlflow", "mlflow-skinny"), "feast": ("feast",), "airflow": ("apache-airflow", "apache-airflow-core")}


def installed(product: str) -> str:
    """Its version; "unknown" where it is not installed as a distribution (our own code, in an image)."""
    for name in DISTRIBUTIONS[product]:
        try:
            return version(name)
        except PackageNotFoundError:
            continue
    return "unknown"
