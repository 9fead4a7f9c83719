"""The layout of a project's data under ``<store>/<project>/``.

Paths are ``UPath``, because the store may be a folder or an object store.
"""

from upath import UPath

from include.data import storage
from include.projects.base import Project, Source
from include.settings import get_settings


def project_root(project: Project) -> UPath:
    return storage.path(get_settings().store) / project.name


def landing(project: Project, source: Source) -> UPath:
    """Return the folder to which upstream systems write the files of a source."""
    return project_root(project) / "landing" / source.name


def refused(project: Project, source: Source) -> UPath:
    """Return the folder of refused files, each with its reasons next to it."""
    return project_root(project) / "refused" / source.name


def table(project: Project, name: str) -> str:
    """Return the URI of the Delta table of a source, or of ``quarantine``."""
    return str(project_root(project) / "tables" / name)


def feature_table(project: Project, view: str) -> str:
    """Return the URI of the Delta table behind a feature view."""
    return str(project_root(project) / "features" / view)


def staging(project: Project, cutoff: str) -> UPath:
    """Return the folder of features that are computed and not yet validated."""
    return project_root(project) / "features" / "_staging" / cutoff.replace(":", "")


def training(project: Project, request: str) -> UPath:
    """Return the folder of one retrain request: training set, models, result manifests."""
    return project_root(project) / "training" / request


def predictions(project: Project) -> str:
    """Return the URI of the Delta table of batch predictions."""
    return str(project_root(project) / "predictions")


def prediction_log(project: Project) -> UPath:
    """Return the folder to which serving writes the predictions that it answered (parquet)."""
    return project_root(project) / "prediction_log"


def shadow_log(project: Project) -> UPath:
    """Return the folder to which serving writes the answers of shadows.

    They have the ids of the answers that were returned.
    """
    return project_root(project) / "shadow_log"


def report(project: Project, dag_id: str, run_id: str, task_id: str) -> UPath:
    """Return the folder of a task's report. The Report tab shows its ``index.html``."""
    return project_root(project) / "reports" / dag_id / run_id / task_id
