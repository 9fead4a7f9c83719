"""The environment of Airflow's processes."""

import pytest

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


@pytest.mark.parametrize(("count", "seconds"), [(1, "8"), (16, "8"), (101, "50")])
@pytest.mark.parametrize("by_name", [False, True])
def test_many_projects_are_parsed_less_often(monkeypatch, tmp_path, count, seconds, by_name):
    names = [f"project_{n}" for n in range(count)]
    for name in names:
        (tmp_path / "projects" / name).mkdir(parents=True)
        (tmp_path / "projects" / name / "__init__.py").touch()
    settings = Settings(home=tmp_path, projects=",".join(names) if by_name else f"{tmp_path}/projects")
    monkeypatch.delenv(PARSING, raising=False)
    assert airflow_environment(settings)[PARSING] == seconds
    monkeypatch.setenv(PARSING, "3")
    assert airflow_environment(settings)[PARSING] == "3"
