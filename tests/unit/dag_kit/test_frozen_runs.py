"""A run of ``train`` in a frozen project leaves a record and a page."""

from types import SimpleNamespace

import pytest

from include import ledger
from include.dag_kit.requests import tell_frozen
from include.data import layout
from include.projects import get_project

CUTOFF = "2013-05-01T10:00:00Z"
TI = SimpleNamespace(run_id="run", dag_id="flights__train", task_id="claim_request")
pytestmark = pytest.mark.usefixtures("own_ledger")


def test_it_names_the_freeze_and_the_requests_that_wait():
    request = ledger.request_retraining("flights", cutoff=CUTOFF, reason="person", asked_by="jo <jo@example.com>")
    ledger.freeze("flights", by="jo", why="audit")
    text = tell_frozen("flights", ledger.freeze_of("flights"), TI)
    assert "by jo: audit" in text and "1 retrain request waiting" in text
    decision = ledger.decisions("flights", "train")[-1]
    assert (decision["verdict"], decision["subject"], decision["reasons"]) == ("frozen", "run", [text])
    assert decision["cutoff"] == CUTOFF
    folder = layout.report(get_project("flights"), "flights__train", "run", "claim_request")
    page = (folder / "index.html").read_text()
    assert request.id in page and "person" in page and "jo &lt;jo@example.com&gt;" in page and "flights: frozen" in page


def test_without_a_request_it_is_recorded_at_the_present():
    ledger.set_clock("flights", CUTOFF)
    ledger.freeze("flights", by="jo", why="audit")
    assert "0 retrain requests waiting" in tell_frozen("flights", ledger.freeze_of("flights"), TI)
    assert ledger.decisions("flights", "train")[-1]["cutoff"] == CUTOFF
