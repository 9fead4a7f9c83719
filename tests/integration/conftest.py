"""Run real DAGs in a real Airflow for the DAGs' own tests.

The fixtures provide a home with a migrated database, a fresh store for each test, and a way to run
a whole DAG. ``run_dag`` runs the real DAG file through ``dag.test()`` in this process, so that
great_expectations, feast and mlflow are imported once.
"""

import os
import subprocess
import sys
from dataclasses import dataclass, field
from datetime import datetime

import pytest

from include.settings import REPOSITORY, get_settings
from tests.homes import forget_home
from tests.integration.children import StepProcess

DAGS = REPOSITORY / "dags"


@dataclass(frozen=True)
class Run:
    """A finished DAG run.

    Attributes:
        state: of the run, e.g. ``success``.
        tasks: task id -> state.
        results: task id -> returned value.
        events: (asset name, extra) of every asset event that the run emitted.
        log: everything that its tasks logged.
    """

    run_id: str
    state: str
    tasks: dict[str, str]
    results: dict[str, object] = field(repr=False)
    events: list[tuple[str, dict]]
    log: str = field(repr=False)


@pytest.fixture(scope="session")
def airflow_home(tmp_path_factory):
    """Create AIRFLOW_HOME once, with a migrated SQLite database and the stack's configuration.

    Its DAG folder is empty, because ``dag.test()`` parses the whole folder at each call.
    ``run_dag`` gives Airflow the one file that it runs.
    """
    from include.stack.environment import airflow_environment

    home = tmp_path_factory.mktemp("airflow")
    kept = dict(os.environ)
    os.environ["AIRLOOP_HOME"] = str(home)
    get_settings.cache_clear()
    (home / "dags").mkdir()
    given = {"AIRFLOW__LOGGING__LOGGING_LEVEL": "INFO", "AIRFLOW__CORE__DAGS_FOLDER": str(home / "dags")}
    environment = airflow_environment(get_settings()) | given
    subprocess.run(
        [sys.executable, "-m", "airflow", "db", "migrate"], env=environment, cwd=home, check=True, capture_output=True
    )
    os.environ.update(environment)
    # Reads the environment. If another test imported it before, it is configured again.
    from airflow import settings

    settings.configure_vars()
    settings.dispose_orm(do_log=False)
    settings.configure_orm()
    yield home
    settings.dispose_orm(do_log=False)
    os.environ.clear()
    os.environ.update(kept)
    get_settings.cache_clear()


@pytest.fixture
def fresh_store(tmp_path, monkeypatch, stores):
    """Create a new AIRLOOP_HOME and return its path.

    It has no files and tables, an empty ledger, and the other stores that ``stores`` chooses.
    """
    home = tmp_path / "home"
    for name in ("AIRLOOP_DATA_ROOT", "AIRLOOP_LEDGER_URL", "AIRLOOP_PROJECTS"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {"AIRLOOP_HOME": str(home), **stores.variables}.items():
        monkeypatch.setenv(name, value)
    forget_home()
    yield home
    monkeypatch.undo()
    forget_home()


@pytest.fixture
def run_dag(airflow_home, fresh_store, capfd, caplog, monkeypatch):
    """Return a function that runs a DAG to its end, as the scheduler would, and returns its Run.

    Example: ``run_dag("flights__ingest", {"cutoff": "2013-01-03T10:00:00Z"})``. A second call with
    the same time ``at`` is the same run with all tasks cleared. A training step is a fork of a
    process that has imported the heavy libraries.
    """
    from include.dag_kit import compute

    monkeypatch.setattr(compute, "start", StepProcess)

    def run(dag_id: str, conf: dict | None = None, at: datetime | None = None) -> Run:
        from airflow.dag_processing.bundles.manager import DagBundlesManager
        from airflow.dag_processing.dagbag import BundleDagBag, sync_bag_to_db
        from airflow.models.asset import AssetEvent
        from airflow.models.xcom import XComModel
        from airflow.utils.session import create_session

        bag = BundleDagBag(DAGS / f"{dag_id.partition('__')[2]}.py", bundle_path=DAGS, bundle_name="dags-folder")
        assert not bag.import_errors, bag.import_errors
        DagBundlesManager().sync_bundles_to_db()
        sync_bag_to_db(bag, "dags-folder", None)
        dag = bag.dags[dag_id]
        for one in dag.tasks:
            one.retries = 0  # fail without retries
        capfd.readouterr()
        caplog.clear()
        ended = dag.test(run_conf=conf, **({"logical_date": at, "run_after": at} if at else {}))
        log = "".join(capfd.readouterr()) + caplog.text
        with create_session() as session:
            tasks = {t.task_id: str(t.state) for t in ended.get_task_instances(session=session)}
            events = [
                (e.asset.name, e.extra)
                for e in session.query(AssetEvent).filter(AssetEvent.source_run_id == ended.run_id)
            ]
            returned = XComModel.get_many(run_id=ended.run_id, dag_ids=dag_id, key="return_value")
            results = {x.task_id: XComModel.deserialize_value(x) for x in session.scalars(returned)}
        return Run(ended.run_id, str(ended.state), tasks, results, events, log)

    return run
