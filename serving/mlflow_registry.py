"""MLflow's registry, whichever way it is reached: over its REST API, or, where that is not enough, by its own client."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from serving.mlflow_rest import MlflowRest, mlflow_by_itself


def client_of(uri: str) -> Any:
    """What asks the registry at this address."""
    if uri.startswith(("http://", "https://")):
        return MlflowRest(uri)
    return mlflow_by_itself(uri)  # a registry in a file, or one that only MLflow's own client reaches


def named_models(client: Any, names: tuple[str, ...]) -> Iterator[Any]:
    """The registered models of these names that there are."""
    if isinstance(client, MlflowRest):
        yield from (found for name in names if (found := client.registered_model(name)))
        return
    from mlflow.exceptions import MlflowException

    for name in names:
        try:
            yield client.get_registered_model(name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise


def all_models(client: Any) -> Iterator[Any]:
    if isinstance(client, MlflowRest):
        yield from client.registered_models()
        return
    token = None
    while True:
        page = client.search_registered_models(page_token=token)
        yield from page
        token = page.token
        if not token:
            return


def download(client: Any, uri: str, name: str, version: str, into: Path) -> Path:
    """The folder of a version's files, below ``into``."""
    if isinstance(client, MlflowRest):
        fetched = client.download(name, version, into / "files")
        if fetched is not None:
            return fetched
        client = mlflow_by_itself(uri)
    import mlflow

    # Not models:/<name>/<version>: MLflow looks that up in its global registry, whatever URIs it is given (mlflow 3.17).
    where = client.get_model_version_download_uri(name, version)
    return Path(mlflow.artifacts.download_artifacts(artifact_uri=where, dst_path=str(into), tracking_uri=uri, registry_uri=uri))
