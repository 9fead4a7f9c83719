"""The page rolls back, freezes and thaws. It reports errors, and does what it announces."""

import threading

import pytest

from include import ledger
from include.ledger import database
from include.registry import versions
from include.registry.client import registry_client
from include.rollout import manual_rollback
from include.rollout.document import changing
from include.settings import REPOSITORY, get_settings
from include.times import stamp
from tests.integration.rollout_page.browsing import CUTOFF, PAGE, PROJECT, act, champion, token, words
from tests.ports import free_port
from tests.waiting import wait_for

pytestmark = [pytest.mark.timeout(1200)]


def test_a_version_may_be_named_and_one_that_is_none_is_told(as_):
    olga = as_("olga")
    for wrong in ("99", "x", "-1"):
        refused = act(olga, "roll_back", to=wrong)
        assert refused.status_code == 409 and f"flights has no version {wrong}" in words(refused)
    assert versions.aliases(PROJECT) == {"champion": "2", "previous": "1"}
    assert act(olga, "roll_back", to="3").status_code == 200 and champion() == "3"


@pytest.mark.parametrize("reason", ["", "  \n ", "x" * 501])
@pytest.mark.parametrize("what", ["roll_back", "freeze"])
def test_a_reason_is_needed(as_, what, reason):
    refused = act(as_("olga"), what, reason=reason)
    assert refused.status_code == 422 and "state the reason" in words(refused)
    assert champion() == "2" and ledger.freeze_of("flights") is None


def test_without_anything_before_it_says_so(as_):
    registry_client().delete_registered_model_alias(PROJECT.name, "previous")
    registry_client().delete_registered_model_tag(PROJECT.name, "rollout")
    refused = act(as_("olga"), "roll_back")
    assert refused.status_code == 409 and "flights has no version before 2" in words(refused) and champion() == "2"


def test_while_a_task_changes_what_is_deployed_it_waits_and_says_so(as_, monkeypatch):
    monkeypatch.setattr(manual_rollback, "PATIENCE_S", 0.2)
    entered, leave = threading.Event(), threading.Event()

    def task():
        with changing(PROJECT):
            entered.set()
            leave.wait(120)

    working = threading.Thread(target=task)
    working.start()
    try:
        assert entered.wait(60)
        refused = act(as_("olga"), "roll_back")
        assert (
            refused.status_code == 409
            and "somebody else has been changing what is deployed" in words(refused)
            and champion() == "2"
        )
    finally:
        leave.set()
        working.join()
    assert act(as_("olga"), "roll_back").status_code == 200


def test_a_registry_that_is_away_is_told_to_people_without_its_address(as_, monkeypatch, registry, caplog):
    olga = as_("olga")
    given = token(olga)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{free_port()}")
    for answer in (olga.get(PAGE), olga.post(f"{PAGE}roll_back", data={"token": given, "reason": "x"})):
        assert (
            answer.status_code == 503
            and "The model registry (MLflow) does not answer." in words(answer)
            and "127.0.0.1" not in answer.text
        )
    assert "127.0.0.1" in caplog.text
    monkeypatch.setenv("MLFLOW_TRACKING_URI", registry)
    assert champion() == "2" and act(olga, "roll_back").status_code == 200


def test_while_the_ledger_is_away_rolling_back_works_and_freezing_says_that_it_does_not(as_, monkeypatch):
    olga = as_("olga")
    monkeypatch.setenv("AIRLOOP_LEDGER_URL", f"postgresql://airloop:very-secret-word@127.0.0.1:{free_port()}/ledger")
    get_settings.cache_clear()
    database._engines.clear()
    page = olga.get(PAGE)
    assert page.status_code == 200 and "The ledger does not answer" in words(page) and "frozen not known" in words(page)
    refused = act(olga, "freeze")
    assert refused.status_code == 503 and "The ledger did not answer" in words(refused)
    done = act(olga, "roll_back")
    assert done.status_code == 200 and "the ledger does not answer" in words(done) and champion() == "1"
    assert "very-secret-word" not in page.text + refused.text + done.text


def test_serving_that_does_not_follow_is_told(as_, deployed, monkeypatch):
    monkeypatch.setattr(manual_rollback.wait_for_served_version, "__kwdefaults__", {"timeout_s": 0.2})
    deployed.close()
    done = act(as_("olga"), "roll_back")
    assert (
        done.status_code == 200
        and champion() == "1"
        and "Serving does not answer" in words(done)
        and "does not answer:" in words(as_("vera").get(PAGE))
    )


# --- freeze and thaw ------------------------------------------------------------------------------


def test_freeze_and_thaw_are_on_record_with_the_users_name(as_):
    olga = as_("olga")
    done = act(olga, "freeze", reason="audit\n until Friday")
    assert done.status_code == 200 and "by olga in the UI: audit until Friday" in words(done)
    assert "by olga in the UI: audit until Friday (`airloop thaw flights` ends it)" in str(ledger.freeze_of("flights"))
    assert 'action="thaw"' in done.text and 'action="freeze"' not in done.text
    assert act(olga, "roll_back").status_code == 200  # also in a frozen project
    since = ledger.freeze_of("flights").since
    # Decisions are shown in the order of their time, which has a resolution of one second.
    wait_for(lambda: stamp() > since, 5)
    thawed = act(as_("eddie"), "thaw", reason="")
    assert (
        thawed.status_code == 200
        and "Thawed; it was so: flights is frozen since" in words(thawed)
        and ledger.freeze_of("flights") is None
    )
    ends = [(d["verdict"], d["subject"].partition(" by ")[2]) for d in ledger.decisions("flights", "freeze")]
    assert ends == [("frozen", "olga in the UI"), ("thawed", "eddie in the UI")]
    assert "flights was not frozen." in words(act(olga, "thaw"))


def test_a_freeze_of_everything_is_shown_and_is_not_the_projects_to_end(as_):
    ledger.freeze(ledger.EVERYTHING, by="jo", why="power cut")
    page = as_("olga").get(PAGE)
    assert "everything is frozen since" in words(page) and 'action="thaw"' not in page.text
    still = act(as_("olga"), "thaw")
    assert (
        "flights was not frozen." in words(still)
        and "Still: everything is frozen" in words(still)
        and ledger.freeze_of("flights").why == "power cut"
    )


def test_the_thaw_starts_what_waits_as_the_user_once(as_, airflow_home):
    from airflow.models import DagRun
    from airflow.utils.session import create_session

    _read_dags("train")
    act(as_("olga"), "freeze")
    request = ledger.request_retraining("flights", reason="person", cutoff=CUTOFF, asked_by="jo")
    thawed, since = act(as_("eddie"), "thaw"), ledger.decisions("flights", "freeze")[0]["cutoff"]
    assert thawed.status_code == 200 and f"Started: flights__train, thawed__{since}" in words(thawed), words(thawed)
    with create_session() as session:
        dag_runs = [
            run for run in session.query(DagRun).filter_by(dag_id="flights__train") if run.run_id.startswith("thawed__")
        ]
        runs = [(str(run.state), run.triggering_user_name, run.conf) for run in dag_runs]
    assert runs == [("queued", "eddie", {"request": request.id})]


def test_a_thaw_whose_runs_airflow_does_not_start_says_so(as_):
    act(as_("olga"), "freeze")
    ledger.request_retraining("flights", reason="person", cutoff=CUTOFF, asked_by="jo")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("airflow.api.common.trigger_dag.DagModel.get_current", lambda dag_id, session: None)
        thawed = act(as_("olga"), "thaw")
    assert (
        thawed.status_code == 200
        and "Airflow could not be asked to start flights__train" in words(thawed)
        and ledger.freeze_of("flights") is None
    )


def _read_dags(stage: str) -> None:
    """Parse the DAGs as the DAG processor does."""
    from airflow.dag_processing.bundles.manager import DagBundlesManager
    from airflow.dag_processing.dagbag import DagBag, sync_bag_to_db

    DagBundlesManager().sync_bundles_to_db()
    bag = DagBag(REPOSITORY / "dags" / f"{stage}.py", bundle_path=REPOSITORY / "dags", bundle_name="dags-folder")
    assert not bag.import_errors, bag.import_errors
    sync_bag_to_db(bag, "dags-folder", None)
