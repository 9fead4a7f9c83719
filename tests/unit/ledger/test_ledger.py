"""The ledger's requests, claims and episodes are consistent for any order of Airflow's events.

The tests run on SQLite and Postgres.
"""

from concurrent.futures import ThreadPoolExecutor

import pytest

from include import ledger

CUTOFF = "2013-05-01T10:00:00Z"
pytestmark = pytest.mark.usefixtures("own_ledger")


def ask(**changes):
    return ledger.request_retraining(
        "flights", **{"cutoff": CUTOFF, "reason": "drift", "asked_by": "monitor", "episode": "e1", **changes}
    )


def test_asking_twice_in_one_episode_is_one_request():
    assert ask().id == ask(cutoff="2013-06-01T10:00:00Z").id
    assert len(ledger.requests("flights")) == 1


def test_requests_that_differ_in_their_parameters_are_two():
    ask(episode=None, reason="person")
    ask(episode=None, reason="person", parameters={"last_days": 92})
    assert len(ledger.requests("flights")) == 2


def test_a_request_is_claimed_by_one_run_whoever_races():
    ask()
    with ThreadPoolExecutor(8) as pool:
        claims = list(pool.map(lambda n: ledger.claim_request("flights", f"run{n}"), range(8)))
    assert sum(claim is not None for claim in claims) == 1


def test_a_run_that_is_tried_again_gets_its_own_request_back():
    ask()
    ask(episode="e2")
    first = ledger.claim_request("flights", "run")
    assert ledger.claim_request("flights", "run").id == first.id
    assert [r.state for r in ledger.requests("flights")].count("claimed") == 1


def test_a_run_that_is_tried_twice_at_once_claims_one_request():
    for episode in "abcd":
        ask(episode=episode)
    with ThreadPoolExecutor(8) as pool:
        claims = list(pool.map(lambda _: ledger.claim_request("flights", "run").id, range(8)))
    assert len(set(claims)) == 1
    assert [r.state for r in ledger.requests("flights")].count("claimed") == 1


def test_a_run_can_claim_one_request_only():
    ask()
    wanted = ask(episode="e2")
    assert ledger.claim_request("flights", "run", only="none of them") is None
    assert ledger.claim_request("flights", "run", only=wanted.id).id == wanted.id


@pytest.mark.parametrize(
    "state", ["claimed", "passed", "refused", "deploying", "deployed", "rolled_back", "superseded", "failed"]
)
def test_only_an_open_request_is_claimed_also_by_its_id(state):
    request = ask()
    ledger.claim_request("flights", "run")
    path = {
        "refused": ["refused"],
        "failed": ["failed"],
        "rolled_back": ["rolled_back"],
        "deployed": ["deployed"],
        "claimed": [],
    }
    for step in path.get(state, ["passed", state]):
        ledger.settle_request(request.id, step)
    assert (
        ledger.claim_request("flights", "other", only=request.id) is None
        and ledger.claim_request("flights", "other") is None
    )
    assert (ledger.get_request(request.id).state, ledger.get_request(request.id).dag_run) == (state, "run")


def test_a_request_that_is_given_back_is_open_for_another_run():
    request = ask()
    ledger.claim_request("flights", "first")
    assert ledger.keep_request(request.id, "first")
    assert not ledger.release_request(request.id, "second")
    assert ledger.release_request(request.id, "first") and not ledger.release_request(request.id, "first")
    assert not ledger.keep_request(request.id, "first") and ledger.keep_request("of nobody", "first")
    assert ledger.claim_request("flights", "second").id == request.id


def test_an_ended_request_is_not_given_back():
    request = ask()
    ledger.claim_request("flights", "run")
    ledger.settle_request(request.id, "passed")
    assert not ledger.release_request(request.id, "run") and ledger.get_request(request.id).state == "passed"


def test_what_train_and_deploy_write_at_once_is_all_there():
    request = ask()
    ledger.claim_request("flights", "run")
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda n: ledger.settle_request(request.id, "passed", **{f"fact{n}": n}), range(8)))
    assert ledger.get_request(request.id).outcome == {f"fact{n}": n for n in range(8)}


def test_people_write_as_much_as_they_like():
    request = ask(episode=None, reason="because " * 100, asked_by="manual__" + "x" * 240)
    assert ledger.get_request(request.id).reason == "because " * 100


def test_a_figure_that_is_no_number_is_none():
    request = ask()
    ledger.claim_request("flights", "run")
    ledger.settle_request(request.id, "refused", metric=float("nan"), reasons=[{"value": float("inf")}, 1.5])
    assert ledger.get_request(request.id).outcome == {"metric": None, "reasons": [{"value": None}, 1.5]}


def test_one_project_does_not_claim_the_request_of_another():
    ask()
    assert ledger.claim_request("other", "run") is None


def test_settling_adds_to_what_is_known():
    request = ask()
    ledger.claim_request("flights", "run")
    ledger.settle_request(request.id, "passed", version="2")
    ledger.settle_request(request.id, "deployed", served_at="x")
    assert ledger.get_request(request.id).outcome == {"version": "2", "served_at": "x"}


def test_there_is_one_open_episode_at_most_whoever_races():
    with ThreadPoolExecutor(8) as pool:
        opened = set(
            pool.map(lambda n: ledger.open_episode("flights", at=f"2013-05-0{n + 1}T10:00:00Z", evidence={}), range(8))
        )
    assert len(opened) == 1 and len(ledger.episodes("flights")) == 1


def test_after_an_episode_is_closed_another_one_can_open():
    first = ledger.open_episode("flights", at=CUTOFF, evidence={})
    ledger.close_episode("flights", at="2013-06-01T10:00:00Z")
    assert ledger.open_episode("flights", at="2013-07-01T10:00:00Z", evidence={}) != first


def test_a_time_without_zone_is_refused():
    with pytest.raises(ValueError, match="no time zone"):
        ledger.iso("2013-05-01T10:00:00")


def test_the_clock_is_the_replays_where_there_is_one():
    ledger.set_clock("flights", CUTOFF)
    assert ledger.iso(ledger.now("flights")) == CUTOFF
    assert ledger.now("other").year > 2013


def test_records_and_decisions_are_replaced_not_doubled():
    for verdict in ("healthy", "drifting"):
        ledger.decide("flights", "monitor", CUTOFF, verdict=verdict, reasons=[], cutoff=CUTOFF)
        ledger.record_stage("flights", "score", CUTOFF, dag_run="r", summary={"verdict": verdict})
    assert [d["verdict"] for d in ledger.decisions("flights")] == ["drifting"]
    assert ledger.stage_record("flights", "score", CUTOFF)["summary"] == {"verdict": "drifting"}


def test_a_file_is_known_by_its_project_source_and_content():
    for project, source, content in (
        ("flights", "schedule", "a"),
        ("flights", "schedule", "b"),
        ("other", "schedule", "a"),
    ):
        ledger.record_file(
            project, source, content, file=f"{content}.csv", status="ingested", counts={}, reasons=[], cutoff=CUTOFF
        )
    assert ledger.file_record("flights", "schedule", "b")["file"] == "b.csv"
    assert ledger.file_record("flights", "outcomes", "b") is None
    assert ledger.file_record("other", "schedule", "b") is None
    assert (ledger.count_files("flights"), ledger.count_files("other"), ledger.count_files("none")) == (2, 1, 0)
