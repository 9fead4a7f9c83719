"""Protect registered models of other installations from changes."""

from include import ledger
from include.projects.base import Project
from include.settings import get_settings

# Tag of a registered model: the id of the installation that trains it.
OWNER = "airloop.installation"


class OtherInstallationError(ValueError):
    """Raised when the registered model belongs to another installation.

    Nothing was changed. The message names the fix.
    """


def refuse_other(project: Project, owner: str | None) -> None:
    """Raise an error if the model belongs to another installation.

    A model without an owner was registered by an older version and is accepted.

    Args:
        owner: the registered model's tag.

    Raises:
        OtherInstallationError: the owner is another installation.
    """
    ours = ledger.known_installation() if owner else None
    if owner and ours and owner != ours:
        raise OtherInstallationError(
            f"model {project.name} in MLflow at {get_settings().mlflow_url} belongs to installation {owner}, this one"
            f" is {ours}: nothing was changed. Two installations on one machine need their own AIRLOOP_HOME and their"
            " own ports (AIRLOOP_MLFLOW_PORT, AIRLOOP_AIRFLOW_PORT, AIRLOOP_SERVING_PORT). Did this one lose its"
            f" ledger? Then `airloop adopt {project.name} --reason ...` makes the model its own"
        )
