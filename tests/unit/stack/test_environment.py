"""The environment of Airflow's processes."""

from include.settings import Settings
from include.stack.environment import BEATS, airflow_environment

PARSING = "AIRFLOW__DAG_PROCESSOR__MIN_FILE_PROCESS_INTERVAL"


def test_how_often_airflow_looks_is_the_houses_choice_until_somebody_makes_his_own(tmp_path, monkeypatch):
    for name in BEATS:
        monkeypatch.delenv(name, raising=False)
    settings = Settings(home=tmp_path)
    assert airflow_environment(settings).items() >= BEATS.items()
    monkeypatch.setenv(PARSING, "300")
    assert airflow_environment(settings).items() >= (BEATS | {PARSING: "300"}).items()
    # No other variable of the user has an effect here.
    monkeypatch.setenv("AIRFLOW__CORE__EXECUTOR", "SequentialExecutor")
    assert airflow_environment(settings)["AIRFLOW__CORE__EXECUTOR"] == "LocalExecutor"
