"""Only authorized users see the page and act on it, and no user acts in another user's name."""

import json
import sys

import pytest

from include import ledger
from include.registry import versions
from include.rollout import promotion
from tests.integration.rollout_page.browsing import CUTOFF, PAGE, PROJECT, act, champion, made_token, token, words

pytestmark = [pytest.mark.timeout(1200)]


@pytest.mark.parametrize("name", ["eddie", "olga", "ada"])
def test_who_may_start_deploy_rolls_back_and_is_on_record(as_, name):
    done = act(as_(name), "roll_back")
    assert done.status_code == 200, words(done)
    assert "Version 2 is taken back; champion is version 1." in words(
        done
    ) and "Serving answers with version 1." in words(done)
    assert versions.aliases(PROJECT) == {"champion": "1"}
    ended = json.loads(versions.get_version(PROJECT, "2").tags["rollout"])
    assert ended["reason"] == f"rolled back by {name} in the UI: it refunds everybody"
    last = ledger.decisions("flights", "deploy")[-1]
    assert last["verdict"] == "rolled_back" and last["reasons"] == [f"{ended['reason']}; champion is version 1 again"]
    again = act(as_(name), "roll_back")
    assert again.status_code == 200 and "version 2 is rolled back already" in words(again) and champion() == "1"


@pytest.mark.parametrize("what", ["roll_back", "freeze", "thaw"])
def test_a_viewer_sees_why_not_and_may_not(as_, airflow, what):
    if what == "thaw":
        ledger.freeze("flights", by="jo", why="audit")
    viewer = as_("vera")
    page = viewer.get(PAGE)
    assert (
        "<form" not in page.text
        and "<fieldset disabled>" in page.text
        and "flights__deploy" in words(page)
        and "You may look." in words(page)
    )
    for given in ("", token(as_("olga")), made_token("vera")):
        refused = viewer.post(f"{PAGE}{what}", data={"token": given, "reason": "x"})
        assert refused.status_code == 403 and "your account may not start" in words(refused)
    assert champion() == "2" and bool(ledger.freeze_of("flights")) == (what == "thaw")


@pytest.mark.parametrize("cookies", [{}, {"_token": "forged"}], ids=["nobody", "a forged token"])
def test_nobody_sees_and_does_nothing(as_, cookies):
    given, nobody = token(as_("olga")), as_(None)
    nobody.cookies.update(cookies)
    for answer in (nobody.get(PAGE), nobody.post(f"{PAGE}roll_back", data={"token": given, "reason": "x"})):
        assert answer.status_code == 401 and "version" not in answer.text
    assert champion() == "2"


def test_who_may_not_read_the_dag_sees_nothing(as_, monkeypatch):
    from airflow.api_fastapi.auth.managers.simple.simple_auth_manager import SimpleAuthManager

    monkeypatch.setattr(
        SimpleAuthManager, "is_authorized_dag", lambda self, *, details=None, **_: details.id == "flights__ingest"
    )
    assert as_("olga").get("/airloop-rollout/flights__ingest/").status_code == 200
    for answer in (
        as_("olga").get(PAGE),
        as_("olga").post(f"{PAGE}freeze", data={"reason": "x", "token": made_token("olga")}),
    ):
        assert answer.status_code == 403 and "version 2" not in answer.text
    assert ledger.freeze_of("flights") is None


def test_who_may_start_another_dag_of_the_project_only_may_not(as_, monkeypatch):
    """A user who may only start another DAG of the project may not roll back.

    A site may define such a role, for example for ingest. Airflow's auth manager is asked about
    each DAG, and answers accordingly.
    """
    from airflow.api_fastapi.auth.managers.simple.simple_auth_manager import SimpleAuthManager

    asked = SimpleAuthManager.is_authorized_dag

    def only(self, *, method, details=None, **rest):
        return (method == "GET" or details.id == "flights__ingest") and asked(
            self, method=method, details=details, **rest
        )

    monkeypatch.setattr(SimpleAuthManager, "is_authorized_dag", only)
    page = "/airloop-rollout/flights__ingest/"
    assert "<form" not in as_("eddie").get(page).text
    assert (
        as_("eddie").post(f"{page}roll_back", data={"reason": "x", "token": made_token("eddie")}).status_code == 403
        and champion() == "2"
    )


# --- requests in the name of another user ---------------------------------------------------------


@pytest.mark.parametrize("site", ["cross-site", "same-site", "none"])
def test_a_form_of_another_site_is_refused_even_with_the_right_token(as_, site):
    refused = act(as_("olga"), "roll_back", headers={"Sec-Fetch-Site": site})
    assert refused.status_code == 403 and "Nothing was done." in words(refused) and champion() == "2"


@pytest.mark.parametrize("forged", ["none", "made up", "another user's", "another project's", "an old one"])
def test_a_form_that_the_page_did_not_give_this_user_is_refused(as_, forged, monkeypatch):
    """A form without the token that the page gave this user is refused.

    A page on another port or subdomain sends the cookie, too, and an old browser does not send the
    page's origin.
    """
    plugin, olga = sys.modules["airloop_rollout"], as_("olga")
    good = token(olga)
    given = {
        "none": "",
        "made up": good[:-3] + "AAA",
        "another user's": token(as_("ada")),
        "another project's": made_token("olga", project="another"),
        "an old one": good,
    }[forged]
    if forged == "an old one":
        monkeypatch.setattr(plugin, "TOKEN_AGE_S", -1)
    for what in ("roll_back", "freeze"):
        refused = olga.post(
            f"{PAGE}{what}", data={"token": given, "reason": "x"}, headers={"Origin": "http://elsewhere.example"}
        )
        assert refused.status_code == 403 and "Nothing was done." in words(refused)
    assert champion() == "2" and ledger.freeze_of("flights") is None
    assert act(olga, "freeze").status_code == (403 if forged == "an old one" else 200)


def test_what_has_changed_since_it_was_looked_at_is_looked_at_again(as_):
    olga = as_("olga")
    seen = token(olga)
    promotion.promote(PROJECT, "3", dag_run="run 3", cutoff=CUTOFF, by_person=False)
    promotion.confirm(PROJECT, "3", "run 3")
    late = act(olga, "roll_back", token=seen)
    assert (
        late.status_code == 409
        and "has changed since you looked: version 3 is champion" in words(late)
        and champion() == "3"
    )
    versions.move_alias(PROJECT, "champion", "1")  # by a person in MLflow
    assert act(olga, "roll_back", token=seen).status_code == 409
    versions.move_alias(PROJECT, "champion", "3")
    assert act(olga, "roll_back").status_code == 200 and champion() == "2"
