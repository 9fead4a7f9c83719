"""Dashboards and alerts only query existing metrics.

These are serving's own metrics and the exporter's names of Airflow's statsd metrics.
"""

import json
import re

import pytest
import yaml

from include.settings import REPOSITORY
from serving import metrics

PROMETHEUS, DASHBOARDS = REPOSITORY / "deploy/prometheus", REPOSITORY / "deploy/grafana/dashboards"
# The exporter passes on Airflow's names without a variable part, with dots replaced by underscores.
AIRFLOW = {"airflow_scheduler_heartbeat", "airflow_dag_processing_import_errors"}


def known() -> set[str]:
    mapped = {mapping["name"] for mapping in yaml.safe_load((PROMETHEUS / "statsd.yml").read_text())["mappings"]}
    ours = {
        sample
        for family in metrics.OURS.collect()
        for sample in (family.name, f"{family.name}_total", f"{family.name}_bucket")
    }
    return mapped | ours | AIRFLOW | {"up"}


def asked() -> dict[str, str]:
    """Return place -> expression."""
    rules = yaml.safe_load((PROMETHEUS / "alerts.yml").read_text())["groups"][0]["rules"]
    boards = {file.name: json.loads(file.read_text()) for file in DASHBOARDS.glob("*.json")}
    panels = {
        f"{name}: {panel['title']} {target['refId']}": target["expr"]
        for name, board in boards.items()
        for panel in board["panels"]
        for target in panel["targets"]
    }
    return {rule["alert"]: rule["expr"] for rule in rules} | panels


def test_each_alert_has_a_section_in_the_runbook():
    rules = yaml.safe_load((PROMETHEUS / "alerts.yml").read_text())["groups"][0]["rules"]
    headings = {}
    for rule in rules:
        file, _, anchor = rule["annotations"]["runbook_url"].partition("#")
        text = (REPOSITORY / file).read_text()
        sections = {
            heading.lower(): body for heading, body in re.findall(r"^## (\w+)\n(.*?)(?=^## |\Z)", text, re.M | re.S)
        }
        assert "```" in sections[anchor], f"{rule['alert']} has no commands"
        headings[anchor] = rule["alert"]
    assert len(headings) == len(rules) and headings == {alert.lower(): alert for alert in headings.values()}
    assert headings.keys() == sections.keys(), "a section without an alert"


def names(expression: str) -> set[str]:
    bare = re.sub(r"\{[^}]*\}|\b(by|without) \([^)]*\)", "", expression)
    return {name for name in re.findall(r"\b[a-z_]{2,}\b(?! ?\()", bare) if name not in {"or", "and", "sum", "by"}}


def test_what_is_asked_for_exists():
    expressions = asked()
    assert len(expressions) > 20
    assert {
        where: missing for where, expression in expressions.items() if (missing := names(expression) - known())
    } == {}


@pytest.mark.parametrize(
    "expression, metric_names",
    [
        ("sum by (le) (rate(serving_gone_bucket[5m]))", {"serving_gone_bucket"}),
        ('airflow_x{state="failed"} > 2', {"airflow_x"}),
    ],
)
def test_a_metric_that_is_not_there_is_seen(expression, metric_names):
    assert names(expression) == metric_names and not metric_names & known()


def test_dashboards_have_ids_of_their_own_and_the_provisioned_source():
    boards = [json.loads(file.read_text()) for file in DASHBOARDS.glob("*.json")]
    source = yaml.safe_load((REPOSITORY / "deploy/grafana/provisioning/datasources/prometheus.yml").read_text())[
        "datasources"
    ][0]
    assert len({board["uid"] for board in boards}) == len(boards) >= 2
    assert {panel["datasource"]["uid"] for board in boards for panel in board["panels"]} == {source["uid"]}
    assert all(len({panel["id"] for panel in board["panels"]}) == len(board["panels"]) for board in boards)
