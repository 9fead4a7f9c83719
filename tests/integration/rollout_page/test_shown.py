"""The page shows its content as text."""

import subprocess
import sys

import pytest

from include import ledger
from include.projects.rollout import RolloutPolicy, Step
from include.registry.client import registry_client
from include.rollout import steps
from include.rollout.document import rollout_document
from include.settings import REPOSITORY
from tests.integration.rollout_page.browsing import CUTOFF, PAGE, PROJECT, ROLES, act, champion, words
from tests.unit.rollout.harness import Clock

pytestmark = [pytest.mark.timeout(1200)]


@pytest.mark.parametrize("name", ROLES)
@pytest.mark.parametrize("stage", ["deploy", "ingest"])
def test_who_may_read_a_dag_of_the_project_sees_what_is_deployed(as_, name, stage):
    ledger.freeze("flights", by="jo", why="audit")
    page = as_(name).get(f"/airloop-rollout/flights__{stage}/")
    assert (page.status_code, page.headers["content-type"]) == (200, "text/html; charset=utf-8")
    text = words(page)
    assert "champion version 2, trained on what was known by 2013-02-01T00:00:00Z, gate passed" in text
    assert (
        "previous version 1" in text
        and "Version 2: serving." in text
        and "serving answers with version 2, ready" in text
    )
    assert "flights is frozen since" in text and "by jo: audit" in text


def test_a_rollout_in_progress_is_shown_with_its_step_and_taken_out(as_, monkeypatch):
    policy = RolloutPolicy(steps=(Step(weight=0.1, looks=2),))
    project, clock = PROJECT.model_copy(update={"rollout": policy}), Clock()
    monkeypatch.setattr("include.dag_kit.pages.get_project", lambda name: project)
    for _ in range(2):
        steps.advance(project, "3", dag_run="run 3", cutoff=CUTOFF, by_person=False, clock=clock)
    browser = as_("eddie")
    text = words(browser.get(PAGE))
    assert (
        "Version 3 is tried since" in text
        and "step 1 of 1, " in text
        and "0 of 2 looks passed" in text
        and "beside it" in text
    )
    assert "take version 3 out" in text
    done = act(browser, "roll_back")
    assert done.status_code == 200 and "Version 3 is taken back; champion is version 2." in words(done), words(done)
    assert (
        "Serving answers with version 2." in words(done)
        and champion() == "2"
        and rollout_document(project).traffic is None
    )


def test_what_others_wrote_is_text_and_no_script_may_run(as_):
    ledger.freeze("flights", by="<b>jo</b>", why="<script>alert(1)</script>")
    page = as_("olga").get(PAGE)
    assert "<script" not in page.text and "<b>jo" not in page.text and "&lt;script&gt;alert(1)" in page.text
    policy = page.headers["content-security-policy"]
    assert "default-src 'none'" in policy and "script-src" not in policy and "frame-ancestors 'self'" in policy
    assert page.headers["cache-control"] == "no-store"


@pytest.mark.parametrize("dag_id", ["another__deploy", "flights__other", "flights", "flights__deploy__x"])
def test_a_dag_of_no_project_has_nothing_deployed(as_, dag_id):
    for answer in (
        as_("ada").get(f"/airloop-rollout/{dag_id}/"),
        as_("ada").post(f"/airloop-rollout/{dag_id}/freeze", data={"reason": "x"}),
    ):
        assert answer.status_code in (404, 405) and "version 2" not in answer.text


def test_a_project_with_nothing_deployed_says_so(as_):
    registry_client().delete_registered_model(PROJECT.name)
    page = as_("olga").get(PAGE)
    assert (
        page.status_code == 200
        and "none: nothing is deployed" in words(page)
        and "nothing was ever rolled out" in words(page)
    )
    nothing = act(as_("olga"), "roll_back")
    assert nothing.status_code == 200 and "There was nothing to take back; there is no champion." in words(nothing)


def test_the_tab_stands_on_dags(as_):
    views = [
        view for plugin in as_("eddie").get("/api/v2/plugins").json()["plugins"] for view in plugin["external_views"]
    ]
    (tab,) = [view for view in views if view["url_route"] == "rollout"]
    assert (tab["name"], tab["destination"], tab["href"]) == ("Rollout", "dag", "airloop-rollout/{DAG_ID}/")


@pytest.mark.parametrize("plugin", ["airloop_reports", "airloop_rollout"])
def test_every_component_loads_the_plugins_and_pays_nothing_for_it(plugin):
    code = (
        "import sys, airflow.plugins_manager; before = set(sys.modules)\n"
        f"import runpy; runpy.run_path('plugins/{plugin}.py')\n"
        "print(sorted(m for m in set(sys.modules) - before if m.partition('.')[0] not in sys.stdlib_module_names))"
    )
    loaded = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, timeout=300, check=False
    )
    assert loaded.stdout.splitlines()[-1:] == ["[]"], loaded.stdout + loaded.stderr
