"""Check what only Airflow itself can report.

This covers DAG files, pools, connections and the cluster. A separate process with Airflow's
configuration does it.
"""

import json
import subprocess
import sys
from collections.abc import Iterator

from include.operations.doctor.finding import Finding, fault, ok
from include.settings import REPOSITORY, Settings, SettingsError
from include.stack.environment import airflow_environment
from include.stack.stores.pools import PoolsError, pools_of_settings

MODULE = "include.dag_kit.checkup"
SECONDS = 300


def wiring(settings: Settings) -> Iterator[Finding]:
    try:
        environment = airflow_environment(settings) | {"AIRFLOW__LOGGING__LOGGING_LEVEL": "ERROR"}
    except SettingsError as error:
        yield fault("wiring", str(error), "complete the settings")
        return
    done = subprocess.run(
        [sys.executable, "-m", MODULE],
        cwd=REPOSITORY,
        env=environment,
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    if done.returncode != 0:
        last = "\n".join(done.stderr.strip().splitlines()[-3:])
        yield fault(
            "wiring",
            f"Airflow cannot be asked: {last}",
            "see the lines above: mostly its database; `airflow info` in its environment tells more",
        )
        return
    report = json.loads(done.stdout.strip().splitlines()[-1])
    for file, trace in report["import_errors"].items():
        yield fault("dags", f"{file} does not import: {trace}", "mend it; it is read again within seconds")
    if not report["import_errors"]:
        yield ok("dags", f"{report['dags']} DAGs, every file imports")
    yield from _pools(settings, report["pools"])
    for name, wrong in report["connections"].items():
        yield fault("connections", wrong["what"], wrong["fix"]) if wrong else ok("connections", f"{name}: usable")


def _pools(settings: Settings, there: dict[str, int] | str) -> Iterator[Finding]:
    if isinstance(there, str):
        yield fault(
            "pools", f"cannot be read from Airflow's database: {there}", "see the finding about that database above"
        )
        return
    try:
        wanted = pools_of_settings(settings)
    except PoolsError as error:
        yield fault("pools", str(error), "mend AIRLOOP_POOLS")
        return
    missing = [name for name in wanted if name not in there]
    if missing:
        what = f"there is no pool {', '.join(missing)}: training steps of that compute class would wait for ever"
        yield fault("pools", what, "make them: `airloop sync-pools` (--from-cluster counts GPUs)")
    for name in wanted.keys() & there.keys():
        if there[name] == 0:
            yield fault(
                "pools",
                f"pool {name} has no slots: its steps wait for ever",
                "`airloop sync-pools`, or give it slots in Airflow",
            )
    if not missing:
        yield ok("pools", ", ".join(f"{name} {there[name]}" for name in wanted))
