"""`airloop check` reports each fault of a project and imports no heavy library for it.

A report names file, line, rule, value and the nearest valid name.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from include.checks.check import check
from include.cli import app
from include.settings import REPOSITORY, get_settings

HEAVY = (
    "airflow",
    "deltalake",
    "duckdb",
    "feast",
    "great_expectations",
    "mlflow",
    "onnx",
    "pandas",
    "sklearn",
    "torch",
)
PROJECT, FEAST = "parcels/__init__.py", "parcels/feast.py"


def report_of(project):
    return check(get_settings(), project.name)


def test_a_made_project_has_no_fault(parcels):
    report = report_of(parcels)
    assert report.findings == [] and "nothing is ingested yet" in report.skipped[0]


# Edited text -> file, rule, value, nearest valid name, stage.
FAULTS = {
    "a metric that there is not": ("__init__", 'name="auc"', 'name="acu"', (PROJECT, "metric", "acu", "auc", "train")),
    "a metric of another kind": ("__init__", 'name="auc"', 'name="rmse"', (PROJECT, "metric", "rmse", None, "train")),
    "a metric's other direction": (
        "__init__",
        "higher_is_better=True",
        "higher_is_better=False",
        (PROJECT, "metric", "auc", None, "train"),
    ),
    "a trainer that there is not": (
        "__init__",
        'trainer="hist_gradient_boosting"',
        'trainer="hist_gradient_bosting"',
        (PROJECT, "trainer", "hist_gradient_bosting", "hist_gradient_boosting", "train"),
    ),
    "a parameter that it does not take": (
        "__init__",
        '"max_iter": 120',
        '"max_iters": 120',
        (PROJECT, "parameter", "max_iters", "max_iter", "train"),
    ),
    "a value that it does not take": (
        "__init__",
        '"learning_rate": 0.06',
        '"learning_rate": 0',
        (PROJECT, "parameter", "learning_rate", None, "train"),
    ),
    "more workers than its trainer has": (
        "__init__",
        'trainer="hist_gradient_boosting",',
        'trainer="hist_gradient_boosting", workers=2,',
        (PROJECT, "workers", "hist_gradient_boosting", None, "train"),
    ),
    "an input from nowhere": (
        "__init__",
        '"customer_outcomes_28d",\n            "product',
        '"customer_outcome_28d",\n            "product',
        (PROJECT, "inputs", "customer_outcome_28d", "customer_outcomes_28d", "train"),
    ),
    "an input named twice": (
        "__init__",
        '"hour",\n            "customer',
        '"hour", "amount",\n            "customer',
        (PROJECT, "inputs", "amount", None, "train"),
    ),
    "a view that Feast does not have": (
        "__init__",
        '"parcels_product_history")',
        '"parcels_products_history")',
        (PROJECT, "feature views", "parcels_products_history", "parcels_product_history", "build_features"),
    ),
    "a service of another version": (
        "feast",
        'name="parcels_v1"',
        'name="parcels_v2"',
        (FEAST, "feature service", "parcels_v1", "parcels_v2", "train"),
    ),
    "an entity that the project does not have": (
        "__init__",
        '"parcels_product")',
        '"parcels_produce")',
        (FEAST, "entities", "parcels_product", "parcels_produce", "build_features"),
    ),
    "a feature in two views": (
        "feast",
        '"product_outcomes_28d"',
        '"customer_outcomes_28d"',
        (FEAST, "features", "customer_outcomes_28d", None, "train"),
    ),
    "a Feast module that raises": (
        "feast",
        "OBJECTS = [",
        "OBJECTS = [nobody, ",
        (FEAST, "feature views", "parcels", None, "build_features"),
    ),
    "a function that the loop calls": (
        "features",
        "def labels(",
        "def label(",
        ("parcels/features.py", "function", "labels", "label", "build_features"),
    ),
    "an argument that the loop passes": (
        "features",
        "def compute(tables, *, since: datetime | None, cutoff: datetime)",
        "def compute(tables, *, cutoff: datetime, since_when=None)",
        ("parcels/features.py", "function", "compute", None, "build_features"),
    ),
    "a file that does not parse": (
        "feed",
        "def last_moment(",
        "def last_moment((",
        ("parcels/feed.py", "syntax", "invalid syntax", None, "ingest"),
    ),
    "a project that cannot be loaded": (
        "__init__",
        "project = Project(",
        "nobody\nproject = Project(",
        (PROJECT, "project", "parcels", None, "ingest"),
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_named_with_its_place_and_the_nearest_valid_name(parcels, fault):
    part, old, new, wanted = FAULTS[fault]
    parcels.edit(part, old, new)
    findings = [one._replace(file=one.file.removeprefix(f"{parcels.projects}/")) for one in report_of(parcels).findings]
    if fault == "a file that does not parse":
        wanted = (*wanted[:2], findings[0].value, *wanted[3:])
    assert wanted in [(one.file, one.rule, one.value, one.nearest, one.stage) for one in findings], findings
    there = next(one for one in findings if (one.file, one.rule) == wanted[:2])
    if wanted[1] not in ("feature service",):
        assert there.line, there


def test_all_faults_are_listed_in_text_and_in_json_with_exit_status_1(parcels):
    parcels.edit("__init__", 'name="auc"', 'name="acu"')
    parcels.edit("__init__", '"max_iter": 120', '"max_iters": 120')
    parcels.edit(
        "__init__",
        '"amount", "pieces", "weekday", "hour",\n            "customer',
        '"amout", "pieces", "weekday", "hour",\n            "customer',
    )
    result = CliRunner().invoke(app, ["check", "parcels"])
    assert result.exit_code == 1
    assert (
        f"{parcels.projects}/{PROJECT}, line " in result.output.replace("\n", "")
        and "metric: 'acu' is no metric of binary projects" in result.output
        and "Did you mean 'auc'?" in result.output
    )
    document = CliRunner().invoke(app, ["check", "parcels", "--json"])
    content = json.loads(document.output)
    assert document.exit_code == 1 and [(one["rule"], one["value"], one["nearest"]) for one in content["findings"]] == [
        ("metric", "acu", "auc"),
        ("parameter", "max_iters", "max_iter"),
        ("inputs", "amout", "amount"),
        ("request features", "amount", "amout"),
    ]


def test_the_check_of_the_declaration_imports_no_heavy_library(parcels):
    program = (
        "import sys; from include.checks.check import check; from include.settings import get_settings;"
        "report = check(get_settings(), 'parcels'); assert report.findings == [], report;"
        f"print([name for name in {HEAVY!r} if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout.strip()) == (0, "[]"), done.stderr


def test_the_real_project_has_no_fault_and_stand_ins_leave_feast_alone(parcels):
    from include.checks.feast_objects import declared

    flights = declared("flights")
    assert "include.projects.flights.feast" not in sys.modules
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AIRLOOP_FEAST_SOURCES", get_settings().store)
        from feast import FeatureView

        from include.projects.flights.feast import OBJECTS

        views = [one for one in OBJECTS if isinstance(one, FeatureView)]
    assert [
        (view.name, tuple(view.join_keys), tuple(f.name for f in view.features), view.batch_source.path)
        for view in views
    ] == list(flights.views)


def test_what_the_stand_ins_cannot_do_is_read_with_feast(parcels):
    parcels.edit("feast", "OBJECTS = [", "assert customer.value_type.value == 2\nOBJECTS = [")
    assert report_of(parcels).findings == []


@pytest.mark.parametrize("stage", ["train", "score"])
def test_a_try_of_a_stage_that_would_fail_runs_nothing(parcels, stage):
    parcels.edit("__init__", 'name="auc"', 'name="acu"')
    result = CliRunner().invoke(app, ["try", "parcels", stage])
    assert (
        result.exit_code == 1
        and "Did you mean 'auc'?" in " ".join(result.output.split())
        and "Nothing was run" in result.output
    )
    assert not Path(parcels.home / "try").exists()


def test_doctor_checks_the_projects(parcels):
    from include.operations.doctor.projects import checked

    parcels.edit("__init__", 'name="auc"', 'name="acu"')
    states = [(one.name, one.state) for one in checked(get_settings())]
    assert states == [("flights", "ok"), ("parcels", "fault")]
