"""Backup and restore on real stores, into empty stores of either kind.

The data is a ledger, MLflow's database with models, Feast's registry, and tables.
tests/loop/test_drill.py does this with a whole running loop. The tests here cover each possible
obstacle.
"""

import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from sqlalchemy import create_engine, inspect, text

from include import ledger
from include.data import layout, tables
from include.operations import archive, rows
from include.operations.backup import backup
from include.operations.databases import databases
from include.operations.moving import MovingError
from include.operations.restore import RestoreError, restore
from include.projects import get_project
from include.settings import REPOSITORY, Settings, get_settings
from tests.homes import forget_home
from tests.integration.published import publish
from tests.serving.conftest import migrated  # noqa: F401
from tests.serving.harness import Registry

FLIGHTS = get_project("flights")
NOON, LATER = "2013-03-01T12:00:00Z", "2013-03-02T12:00:00Z"
pytestmark = pytest.mark.timeout(900)


@dataclass
class House:
    """The home of a deployment. ``enter`` makes this process use it."""

    home: Path
    monkeypatch: pytest.MonkeyPatch
    more: dict[str, str] = field(default_factory=dict)

    def enter(self) -> Settings:
        for name in (
            "AIRLOOP_DATA_ROOT",
            "AIRLOOP_LEDGER_URL",
            "AIRLOOP_MLFLOW_DATABASE_URL",
            "AIRLOOP_FEAST_REGISTRY_URL",
            "MLFLOW_TRACKING_URI",
        ):
            self.monkeypatch.delenv(name, raising=False)
        self.monkeypatch.setenv("AIRLOOP_HOME", str(self.home))
        self.monkeypatch.setenv("AIRLOOP_PROJECTS", "flights")
        for name, value in self.more.items():
            self.monkeypatch.setenv(name, value)
        forget_home()
        return get_settings()

    def mlflow(self):
        from mlflow import MlflowClient

        uri = self.enter().mlflow_database.replace("postgresql:", "postgresql+psycopg2:")
        return MlflowClient(uri, uri)


@pytest.fixture
def old(tmp_path, monkeypatch, migrated) -> House:  # noqa: F811
    """Return a deployment in the middle of its work.

    One model is deployed, another has passed the gate, a run works on a request, and features are
    online.
    """
    house = House(tmp_path / "old", monkeypatch)
    (house.home / "mlflow").mkdir(parents=True)
    shutil.copy(migrated, house.home / "mlflow" / "mlflow.db")
    settings = house.enter()
    registry = Registry(settings.mlflow_database, house.home / "mlflow")
    for bias in (1, 2):
        registry.add(bias, name="flights", champion=bias == 1)
    registry.client.set_registered_model_alias("flights", "challenger", "2")
    fill_features(house, NOON, 1.0)

    ledger.set_clock("flights", LATER)
    for reason, state, version in (("first_model", "deployed", "1"), ("person", "passed", "2")):
        request = ledger.request_retraining("flights", cutoff=NOON, reason=reason, asked_by="a test")
        ledger.claim_request("flights", f"run of {reason}")
        ledger.settle_request(request.id, state, version=version)
    at_work = ledger.request_retraining("flights", cutoff=LATER, reason="drift", asked_by="monitor", episode="e" * 16)
    ledger.claim_request("flights", "run at work")
    for request in ledger.requests("flights"):
        folder = layout.training(FLIGHTS, request.id)
        folder.mkdir(parents=True)
        (folder / "basis.json").write_text(
            f'{{"training_set": "{settings.store}/flights/training/{request.id}/training_set.json"}}'
        )
    ledger.record_stage("flights", "ingest", NOON, dag_run="r", summary={"rows": 1, "share": 0.1 + 0.2})
    ledger.decide("flights", "gate", at_work.id, verdict="passed", reasons=["wörds"], cutoff=NOON)
    yield house
    forget_home()


def fill_features(house: House, cutoff: str, value: float, *, online: bool = True) -> None:
    house.enter()
    publish(cutoff, value, online=online)


def online_values(house: House) -> dict:
    from include.features import store

    house.enter()
    (view,) = [v for v in store.feature_views(FLIGHTS) if v.name == FLIGHTS.feature_views[0]]
    features = [f"{view.name}:{f.name}" for f in view.features]
    return store.feature_store().get_online_features(features, [dict.fromkeys(view.join_keys, "X")]).to_dict()


@pytest.fixture(params=["sqlite", "postgres"])
def new(request, old, tmp_path, monkeypatch) -> House:
    """Return an empty deployment on the same data."""
    return empty_house(request, request.param, tmp_path, monkeypatch, old)


def empty_house(request, kind, tmp_path, monkeypatch, old) -> House:
    more = {"AIRLOOP_DATA_ROOT": str(old.home / "store")}
    if kind == "postgres":
        from include.stack.stores.databases import make_databases

        server = request.getfixturevalue("postgres_server")
        urls = server.urls()
        more |= {f"AIRLOOP_{name.upper()}": url for name, url in urls.items() if name != "airflow_database_url"}
        make_databases(Settings(home=tmp_path / "new", database_admin_url=server.admin_url, **urls))
    return House(tmp_path / f"new-{kind}", monkeypatch, more)


def saved(old: House) -> Path:
    target = old.home.parent / f"backup-{time.monotonic_ns()}.zip"
    backup(old.enter(), target)
    return target


def contents(house: House) -> dict:
    by_database = {}
    for database in databases(house.enter()):
        with rows.one_moment(database.url) as connection:
            by_database[database.name] = rows.contents(connection, database.tables(connection))
    return by_database


def test_a_restored_house_has_its_models_and_its_history_and_its_work_is_taken_up(old, new):
    before = contents(old)
    target = saved(old)
    restore(new.enter(), target, say=print)

    after = contents(new)
    assert after["mlflow"] == before["mlflow"] and after["mlflow"]["model_versions"].rows == 2
    changed = {"freezes", "decisions", "retrain_requests"}
    assert {n: c for n, c in after["ledger"].items() if n not in changed} == {
        n: c for n, c in before["ledger"].items() if n not in changed
    }
    assert {name: one.rows for name, one in after["feast"].items()} == {
        name: one.rows for name, one in before["feast"].items()
    }
    client = new.mlflow()
    assert {alias: str(number) for alias, number in client.get_registered_model("flights").aliases.items()} == {
        "champion": "1",
        "challenger": "2",
    }
    assert ledger.stage_record("flights", "ingest", NOON)["summary"] == {"rows": 1, "share": 0.1 + 0.2}
    assert [d["reasons"] for d in ledger.decisions("flights", "gate")] == [["wörds"]]
    assert [v for values in online_values(new).values() for v in values if v != "X"][0] == 1.0

    # The project is frozen until a person has checked it. Then a new run replaces the lost one, and
    # the model that had passed is deployed.
    from include.operations.freezing import waiting_runs

    assert "restored from backup" in ledger.freeze_of("flights").why
    requests = {r.reason: r for r in ledger.requests("flights")}
    assert {reason: r.state for reason, r in requests.items()} == {
        "first_model": "deployed",
        "person": "passed",
        "drift": "open",
    }
    assert [(dag, conf) for dag, _, conf in waiting_runs("flights", "")] == [
        ("flights__train", {"request": requests["drift"].id}),
        ("flights__deploy", {"cutoff": NOON}),
    ]
    left = {path.name for path in layout.training(FLIGHTS, "x").parent.iterdir()}
    assert left == {"_set_aside", requests["first_model"].id, requests["person"].id}

    # The next id that Postgres assigns is new.
    client.create_experiment("another")


def test_a_dry_run_creates_no_table_and_no_file(old, new, capsys):
    target = saved(old)
    settings = new.enter()
    restore(settings, target, dry_run=True)
    assert "it can be restored: " in capsys.readouterr().out
    for database in databases(settings):
        path = Path(database.url.removeprefix("sqlite:///").partition("?")[0])
        if database.url.startswith("sqlite"):
            assert not path.exists(), path
        else:
            with rows.closing_engine(database.url) as engine:
                assert inspect(engine).get_table_names() == [], database.name


def test_killed_at_any_point_it_is_run_again_and_comes_to_the_same_end(old, new, monkeypatch):
    from include.operations import restore as module

    target = saved(old)
    whole = {
        name: getattr(module, name)
        for name in ("_load", "_check_models", "_freeze", "_restore_airflow", "_open_again", "_materialize")
    }
    loads = []

    def dies_after(name):
        def run(*arguments):
            whole[name](*arguments)
            loads.append(name)
            raise KeyboardInterrupt

        return run

    for name in (
        "_load",
        "_load",
        "_check_models",
        "_load",
        "_freeze",
        "_restore_airflow",
        "_open_again",
        "_materialize",
    ):
        monkeypatch.setattr(module, name, dies_after(name))
        with pytest.raises(KeyboardInterrupt):
            restore(new.enter(), target, say=print)
        monkeypatch.setattr(module, name, whole[name])
    assert len(loads) == 8
    restore(new.enter(), target, say=print)
    assert contents(new)["mlflow"] == contents(old)["mlflow"]
    assert {r.state for r in ledger.requests("flights")} >= {"deployed"}


def refused(house: House, target: Path, **how) -> list[str]:
    with pytest.raises(RestoreError) as caught:
        restore(house.enter(), target, say=print, **how)
    return caught.value.problems


def test_a_store_that_is_not_empty_is_refused_by_name_and_stays(old, new):
    target = saved(old)
    settings = new.enter()
    ledger.set_clock("flights", NOON)
    (problem,) = refused(new, target)
    assert (
        problem.startswith("AIRLOOP_LEDGER_URL: the ledger is not empty, there are rows in clocks")
        and "overwrites nothing" in problem
    )
    assert ledger.iso(ledger.now("flights")) == NOON
    for database in databases(settings):
        if database.name != "ledger":
            with rows.one_moment(database.url) as connection:
                assert database.in_use(connection) == []  # nothing was begun


def test_a_registry_with_models_and_a_feast_registry_with_views_are_refused(old, tmp_path, monkeypatch):
    target = saved(old)
    other = House(tmp_path / "other", monkeypatch, {"AIRLOOP_DATA_ROOT": str(old.home / "store")})
    shutil.copytree(old.home / "mlflow", other.home / "mlflow")
    shutil.copytree(old.home / "feast", other.home / "feast")
    with create_engine(other.enter().mlflow_database).begin() as connection:
        connection.execute(text("DELETE FROM registered_model_aliases"))
    with create_engine(other.enter().feast_registry).begin() as connection:
        connection.execute(text("DELETE FROM feature_services"))
    problems = refused(other, target)
    assert [problem.partition(":")[0] for problem in problems] == [
        "AIRLOOP_FEAST_REGISTRY_URL",
        "AIRLOOP_MLFLOW_DATABASE_URL",
    ]
    assert "registered_models" in problems[1] and "feature_views" in problems[0]


def change_manifest(target: Path, change) -> Path:
    """Change the manifest as if another version of Airloop had written it."""
    other = target.with_name(f"changed-{target.name}")
    with archive.reading(target) as reader, archive.writing(other) as writer:
        for name in reader.manifest["members"]:
            with reader.member(name) as content, writer.member(name) as into:
                into.write(content.read())
        manifest = dict(reader.manifest)
        change(manifest)
        writer.finish({name: value for name, value in manifest.items() if name not in {"members", "format"}})
    return other


def test_other_versions_are_refused_by_name(old, tmp_path, monkeypatch):
    target = saved(old)
    other = House(tmp_path / "other", monkeypatch, {"AIRLOOP_DATA_ROOT": str(old.home / "store")})

    def newer_ledger(manifest):
        manifest["databases"]["ledger"]["version"] = "9999"

    (problem,) = refused(other, change_manifest(target, newer_ledger))
    assert "the archive's ledger is at version 9999, this code knows 0005" in problem

    def older_mlflow(manifest):
        manifest["databases"]["mlflow"]["version"] = "abc"
        manifest["versions"]["mlflow"] = "2.9"

    (problem,) = refused(other, change_manifest(target.rename(target.with_name("again.zip")), older_mlflow))
    assert "the archive's at abc (mlflow 2.9): restore with that version of MLflow" in problem


def test_a_damaged_archive_touches_nothing(old, tmp_path, monkeypatch):
    target = saved(old)
    content = bytearray(target.read_bytes())
    content[len(content) // 3] ^= 0xFF
    target.write_bytes(content)
    other = House(tmp_path / "other", monkeypatch)
    with pytest.raises(archive.ArchiveError, match="is damaged"):
        restore(other.enter(), target, say=print)
    assert not (other.home / "ledger.db").exists()


def test_data_that_the_archive_points_at_must_be_there(old, tmp_path, monkeypatch):
    target = saved(old)
    bare = House(tmp_path / "bare", monkeypatch)
    problems = refused(bare, target)
    assert any(
        f"table flights/features/{FLIGHTS.feature_views[0]} is not here; the backup knows it at version 0" in p
        and "--data-from" in p
        for p in problems
    )

    # Another table of the same name, and the same table as before.
    fill_features(bare, NOON, 5.0, online=False)
    assert any("is another one than that of the backup" in problem for problem in refused(bare, target))
    shutil.rmtree(bare.home)
    shutil.copytree(old.home / "store", bare.home / "store")
    fill_features(old, LATER, 2.0)
    assert any("is at version 0, the backup knows 1" in problem for problem in refused(bare, saved(old)))


def test_models_that_are_gone_or_others_are_refused_before_the_ledger_is_restored(old, tmp_path, monkeypatch):
    target = saved(old)
    new = House(tmp_path / "new", monkeypatch, {"AIRLOOP_DATA_ROOT": str(old.home / "store")})
    graphs = sorted((old.home / "mlflow" / "artifacts").rglob("model.onnx"))
    assert len(graphs) == 2
    kept = graphs[0].read_bytes()
    graphs[0].write_bytes(b"another")
    graphs[1].rename(graphs[1].with_suffix(".away"))
    problems = refused(new, target)
    assert sorted(p.partition(": ")[2].partition(":")[0] for p in problems) == [
        "model.onnx is another file than that of the backup",
        "model.onnx is not here",
    ]
    assert not (new.home / "ledger.db").exists()
    graphs[0].write_bytes(kept)
    graphs[1].with_suffix(".away").rename(graphs[1])
    restore(new.enter(), target, say=print)


def test_the_data_is_brought_along_to_another_root(old, tmp_path, monkeypatch):
    target = saved(old)
    new = House(tmp_path / "new", monkeypatch)
    settings = new.enter()
    how = {"data_from": str(old.home / "store")}
    (new.home / "store" / "flights" / "features" / "_staging").mkdir(parents=True)
    restore(settings, target, say=print, **how)
    deployed = next(r for r in ledger.requests("flights") if r.state == "deployed")
    basis = (layout.training(FLIGHTS, deployed.id) / "basis.json").read_text()
    assert str(old.home) not in basis and f"{settings.store}/flights/training/{deployed.id}/training_set.json" in basis
    for view in FLIGHTS.feature_views:
        assert tables.open_table(layout.feature_table(FLIGHTS, view)).count() == 1
    shutil.rmtree(old.home / "store")
    assert [v for values in online_values(new).values() for v in values if v != "X"][0] == 1.0

    other = House(tmp_path / "third", monkeypatch)
    other.enter()
    with pytest.raises(MovingError, match="there is nothing in"):
        restore(other.enter(), target, say=print, **how)


def test_tables_may_be_ahead_of_the_backup(old, new, capsys):
    target = saved(old)
    fill_features(old, LATER, 2.0)
    restore(new.enter(), target, say=print)
    assert f"flights/features/{FLIGHTS.feature_views[0]} (1, was 0)" in capsys.readouterr().out
    # The online store is filled up to the earlier time. The next build_features continues from
    # there.
    assert [v for values in online_values(new).values() for v in values if v != "X"][0] == 1.0


WRITES = """
import sys, time
from include import ledger
from mlflow import MlflowClient
from include.settings import get_settings
client = MlflowClient(get_settings().mlflow_database, get_settings().mlflow_database)
print("begun", flush=True)
n = 0
while True:
    # The registry first, then the ledger: as the loop does.
    n += 1
    client.set_registered_model_tag("flights", "counter", str(n))
    ledger.record_stage("flights", "counter", "2013-01-01T00:00:00Z", dag_run="r", summary={"n": n})
"""


def test_a_backup_of_a_loop_that_runs_never_has_a_ledger_that_knows_more_than_the_registry(old, new):
    settings = old.enter()
    busy = subprocess.Popen(
        [sys.executable, "-c", WRITES], cwd=REPOSITORY, env=os.environ, stdout=subprocess.PIPE, text=True
    )
    try:
        assert busy.stdout.readline() == "begun\n"
        deadline = time.monotonic() + 120
        while ledger.stage_record("flights", "counter", "2013-01-01T00:00:00Z") is None:
            assert busy.poll() is None and time.monotonic() < deadline
            time.sleep(0.1)
        target = old.home.parent / "busy.zip"
        backup(settings, target)
    finally:
        busy.send_signal(signal.SIGKILL)
        busy.wait()
    restore(new.enter(), target, say=print)
    counter = ledger.stage_record("flights", "counter", "2013-01-01T00:00:00Z")["summary"]["n"]
    assert int(new.mlflow().get_registered_model("flights").tags["counter"]) >= counter > 0
