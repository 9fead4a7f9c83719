"""Where a project's data lies, under ``<store>/<project>/``. Paths are ``UPath``: the store may be a folder or an object store."""

from upath import UPath

from include.data import storage
from include.projects.base import Project, Source
from include.settings import get_settings


def project_root(project: Project) -> UPath:
    return storage.path(get_settings().store) / project.name


def landing(project: Project, source: Source) -> UPath:
    """Folder into which upstream systems drop the files of a source."""
    return project_root(project) / "landing" / source.name


def refused(project: Project, source: Source) -> UPath:
    """Folder of the files that were refused whole, each with its reasons beside it."""
    return project_root(project) / "refused" / source.name


def table(project: Project, name: str) -> str:
    """URI of the Delta table of a source, or ``quarantine``."""
    return str(project_root(project) / "tables" / name)


def feature_table(project: Project, view: str) -> str:
    """URI of the Delta table behind a feature view."""
    return str(project_root(project) / "features" / view)


def staging(project: Project, cutoff: str) -> UPath:
    """Folder of features that are computed and not yet validated."""
    return project_root(project) / "features" / "_staging" / cutoff.replace(":", "")


def training(project: Project, request: str) -> UPath:
    """Folder of what one retrain request makes: training set, models, result manifests."""
    return project_root(project) / "training" / request


def predictions(project: Project) -> str:
    """URI of the Delta table of batch predictions."""
    return str(project_root(project) / "predictions")


def prediction_log(project: Project) -> UPath:
    """Folder into which serving writes the predictions that it answered (parquet)."""
    return project_root(project) / "prediction_log"


def shadow_log(project: Project) -> UPath:
    """Folder into which serving writes what shadows would have answered, under the ids of the answers that were given."""
    return project_root(project) / "shadow_log"


def report(project: Project, dag_id: str, run_id: str, task_id: str) -> UPath:
    """Folder of the report that a task made; its ``index.html`` is what the task's Report tab shows."""
    return project_root(project) / "reports" / dag_id / run_id / task_id
