"""The steps of a rollout, against a real registry, real log files and a test clock.

The tests show what passes, what is removed, and what pauses.
"""

import json
from contextlib import nullcontext
from datetime import timedelta

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from deltalake import write_deltalake

from include import ledger
from include.data import layout
from include.ledger import FrozenError, moment
from include.monitoring import answers
from include.projects.base import Source
from include.projects.rollout import Analysis, LabelPolicy, RolloutPolicy, Step
from include.registry import versions
from include.rollout import promotion, steps
from include.rollout.document import OvertakenError, SupersededError, rollout_document
from include.rollout.manual_rollback import roll_back
from include.rollout.steps import RuleBreachedError
from tests.unit.rollout.harness import Clock, answered
from tests.unit.rollout.test_promotion import CUTOFF, Killed, kill_after

pytestmark = pytest.mark.slow

MINUTES = 10


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def careful(deployed, serving):
    """Return the deployed project with a shadow and two weights before a full promotion."""
    policy = RolloutPolicy(
        steps=(Step(name="next", shadow=1.0), Step(weight=0.05), Step(weight=0.5, looks=2)),
        analysis=Analysis(min_samples=100, inconclusive_limit=1),
    )
    return deployed.model_copy(update={"rollout": policy})


def advance(project, clock, version="2", run="run", by_person=False):
    return steps.advance(project, version, dag_run=run, cutoff=CUTOFF, by_person=by_person, clock=clock)


def traffic(project):
    return rollout_document(project).traffic


def answers_of(project, clock, arm="canary", rows=150, **how):
    """Advance one interval in which champion and arm answer."""
    clock.pass_(minutes=MINUTES, seconds=5)
    at = clock.now - steps.SETTLED
    answered(project, "champion", "1", 1000, at, seed=1)
    if rows:
        answered(project, arm, "2", rows, at, seed=2, **how)


def shadows_of(project, clock, rows=150, **how):
    clock.pass_(minutes=MINUTES, seconds=5)
    at = clock.now - steps.SETTLED
    ids = answered(project, "champion", "1", 1000, at, seed=1)
    answered(project, "next", "2", rows, at, ids=ids[:rows], shadow=True, seed=2, **how)


def to_the_canary(project, clock):
    advance(project, clock)
    advance(project, clock)
    shadows_of(project, clock)
    assert "passed" in advance(project, clock).message
    assert "serving follows" in advance(project, clock).message


def test_a_good_version_goes_step_by_step_and_is_promoted(careful, clock):
    assert "serving follows" in advance(careful, clock).message
    assert traffic(careful) == {"salt": "2", "arms": [], "shadows": [{"name": "next", "version": "2", "share": 1.0}]}
    assert "looks passed 0 of 1" in advance(careful, clock).message  # it is not time yet
    shadows_of(careful, clock)
    assert "passed" in advance(careful, clock).message
    (canary,) = traffic(careful)["arms"]
    assert (
        canary == {"name": "canary", "version": "2", "weight": 0.05, "max_failures": 5, "max_seconds": 0.5}
        and traffic(careful)["shadows"] == []
    )
    done = []
    for _ in range(3):
        advance(careful, clock)
        answers_of(careful, clock)
        progress = advance(careful, clock)
        assert "passed" in progress.message
        done.append(progress.done)
    assert done == [False, False, True] and traffic(careful)["arms"][0]["weight"] == 0.5
    assert versions.aliases(careful) == {"champion": "1"}
    assert advance(careful, clock).done  # safe to repeat

    clock.pass_(minutes=5)
    steps.last_look(careful, "2", dag_run="run", clock=clock)
    promotion.promote(careful, "2", dag_run="run", cutoff=CUTOFF, by_person=False)
    assert versions.aliases(careful) == {"champion": "2", "previous": "1"} and traffic(careful) is None
    assert promotion.confirm(careful, "2", "run").state == "serving"
    looks = [(d["subject"].rpartition("run, ")[2], d["verdict"]) for d in ledger.decisions(careful.name, "rollout")]
    assert sorted(looks) == [
        ("step 1, look 1", "passed"),
        ("step 2, look 1", "passed"),
        ("step 3, look 1", "passed"),
        ("step 3, look 2", "passed"),
    ]
    newest = json.loads(versions.get_version(careful, "2").tags["rollout_analysis"])
    assert newest["step"] == 3 and newest["found"][0].startswith("errors: passed: 0 of 150 requests failed")


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        pytest.param({"latency": 60.0}, "latency: 95th percentile", id="slow"),
        pytest.param({"shift": 0.4}, "predictions: stability index", id="other predictions"),
        pytest.param({"arm": "champion", "failed_arm": "canary"}, "errors: 150 of 150 requests failed", id="throws"),
    ],
)
def test_a_bad_canary_is_taken_out_by_itself_and_says_why(careful, clock, bad, words):
    to_the_canary(careful, clock)
    answers_of(careful, clock, **bad)
    with pytest.raises(
        RuleBreachedError,
        match=f"version 2 was taken out .*canary: 0.05 of the entities: {words}.*champion is version 1, as before",
    ):
        advance(careful, clock)
    assert versions.aliases(careful) == {"champion": "1"}
    document = rollout_document(careful)
    assert document.state == "rolled_back" and document.traffic is None and words in document.reason
    assert words in json.loads(versions.get_version(careful, "2").tags["rollout"])["reason"]
    with pytest.raises(SupersededError):
        advance(careful, clock)


def test_a_shadow_that_gives_no_answers_is_taken_out(careful, clock):
    advance(careful, clock)
    shadows_of(careful, clock, shift=float("nan"))
    with pytest.raises(RuleBreachedError, match="next: a shadow .*errors: 150 of 150"):
        advance(careful, clock)


@pytest.mark.parametrize(
    ("state", "words"), [("stopped", "5 of its last 5 requests failed"), ("refused", "golden request 3 is off")]
)
def test_what_serving_has_stopped_or_refused_is_taken_out_without_waiting_for_the_interval(
    careful, clock, serving, state, words
):
    to_the_canary(careful, clock)
    serving.states["canary"] = state, words
    with pytest.raises(RuleBreachedError, match=f"serving has {state} it: {words}"):
        advance(careful, clock)
    assert rollout_document(careful).state == "rolled_back"


def test_what_serving_never_comes_to_ask_is_taken_out(careful, clock, serving):
    serving.states["next"] = "error", "cannot be fetched"
    assert "does not follow yet: next is error: cannot be fetched" in advance(careful, clock).message
    clock.pass_(seconds=61)
    with pytest.raises(RuleBreachedError, match="did not come to ask it in time"):
        advance(careful, clock)


def test_a_service_that_goes_away_later_is_waited_for(careful, clock, serving, monkeypatch):
    to_the_canary(careful, clock)
    serving.states["canary"] = "error", "away"
    clock.pass_(hours=1)
    assert "canary is error: away" in advance(careful, clock).message
    assert rollout_document(careful).state == "trying"


def test_too_little_traffic_pauses_it_and_a_person_lets_it_go_on(careful, clock):
    to_the_canary(careful, clock)
    answers_of(careful, clock, rows=20)
    assert "inconclusive" in advance(careful, clock).message
    answers_of(careful, clock, rows=20)
    message = advance(careful, clock).message
    assert (
        "paused: step 2 of 3" in message and "40 answers, 2000 of the champion's" in message
    )  # the first interval's count is included
    assert f"airloop rollout {careful.name} --resume" in message
    answers_of(careful, clock)
    assert "paused" in advance(careful, clock).message  # for any duration
    assert steps.resume(careful, by="jo").state == "trying" and steps.resume(careful, by="jo") is None
    assert "passed" in advance(careful, clock).message


def test_a_look_that_finds_a_breach_may_be_forgiven(careful, clock):
    analysis = careful.rollout.analysis.model_copy(update={"failure_limit": 1})
    lenient = careful.model_copy(update={"rollout": careful.rollout.model_copy(update={"analysis": analysis})})
    to_the_canary(lenient, clock)
    answers_of(lenient, clock, latency=60.0)
    assert "breached" in advance(lenient, clock).message and rollout_document(lenient).state == "trying"
    answers_of(lenient, clock, latency=60.0)
    with pytest.raises(RuleBreachedError):
        advance(lenient, clock)


def test_what_goes_wrong_after_the_last_step_is_seen_before_it_is_promoted(careful, clock):
    to_the_canary(careful, clock)
    for _ in range(3):
        answers_of(careful, clock)
        progress = advance(careful, clock)
        advance(careful, clock)
    assert progress.done
    answers_of(careful, clock, latency=60.0)  # while a person decides
    with pytest.raises(RuleBreachedError, match="latency"):
        steps.last_look(careful, "2", dag_run="run", clock=clock)
    assert versions.aliases(careful) == {"champion": "1"} and traffic(careful) is None


def test_an_ab_test_has_a_control_of_the_same_size(careful, clock):
    ab = RolloutPolicy(
        steps=(Step(name="b", control="a", weight=0.2, metric="brier"),), analysis=careful.rollout.analysis
    )
    project = careful.model_copy(update={"rollout": ab})
    advance(project, clock)
    assert [(arm["name"], arm["version"], arm["weight"]) for arm in traffic(project)["arms"]] == [
        ("b", "2", 0.2),
        ("a", "1", 0.2),
    ]
    answers_of(project, clock, arm="b")
    # Answers of the champion's own arm do not count.
    assert "0 of the champion's" in advance(project, clock).message
    answered(project, "a", "1", 150, clock.now - steps.SETTLED, seed=5)
    answers_of(project, clock, arm="b")
    assert advance(project, clock).done


def tell_outcomes(project, ids, right, at):
    """Write outcomes to the table ``feedback``, as ingest does.

    ``right`` is the probability of a positive outcome for each row. It equals the row's prediction
    or its opposite.
    """
    generator = np.random.default_rng(len(ids))
    labels = (generator.uniform(size=len(ids)) < right).astype(float)
    table = pa.table(
        {"prediction_id": ids, "label": labels, "known_at": pa.array([at] * len(ids), pa.timestamp("us", tz="UTC"))}
    )
    write_deltalake(layout.table(project, "feedback"), table, mode="append")


@pytest.mark.parametrize("shadow", [False, True])
def test_one_that_is_worse_on_outcomes_is_taken_out_within_the_minimum_sample(careful, clock, shadow):
    analysis = careful.rollout.analysis.model_copy(update={"labels": LabelPolicy(min_labels=100)})
    step = Step(name="next", shadow=1.0, looks=20) if shadow else Step(weight=0.05, looks=20)
    project = careful.model_copy(
        update={
            "rollout": RolloutPolicy(steps=(step,), analysis=analysis),
            "sources": (*careful.sources, Source.feedback()),
        }
    )
    # A replay: outcomes count by its time.
    ledger.set_clock(project.name, "2013-03-01T00:00:00Z")
    advance(project, clock)
    outcome_count = 0
    # Each interval has 150 answers of the canary, and outcomes of 30 of them.
    while True:
        clock.pass_(minutes=MINUTES, seconds=5)
        at = clock.now - steps.SETTLED
        ids = answered(project, "champion", "1", 1000, at, seed=outcome_count)
        mine = answered(
            project, step.name, "2", 150, at, ids=ids[:150] if shadow else None, shadow=shadow, seed=outcome_count + 1
        )
        good = answers.answers(project, since=at - timedelta(minutes=1), until=at).set_index("prediction_id")[
            "prediction"
        ]
        both = pd.concat(
            [
                good,
                answers.shadowed(project, since=at - timedelta(minutes=1), until=at).set_index("prediction_id")[
                    "prediction"
                ],
            ]
        )
        tell_outcomes(project, ids[:300], good[ids[:300]].to_numpy() > 0.28, moment("2013-02-28T00:00:00Z"))
        if not shadow:
            tell_outcomes(project, mine[:30], both[mine[:30]].to_numpy() < 0.28, moment("2013-02-28T00:00:00Z"))
        tell_outcomes(project, [f"later-{one}" for one in ids[300:310]], np.ones(10), moment("2013-03-02T00:00:00Z"))
        outcome_count += 150 if shadow else 30
        try:
            message = advance(project, clock).message
        except RuleBreachedError as error:
            print(f"taken out after {outcome_count} outcomes: {error}")
            assert "outcomes: auc" in str(error)
            break
        assert f"outcomes: passed: not looked at yet: {outcome_count} outcomes" in message
    assert outcome_count - (150 if shadow else 30) < 100 <= outcome_count
    assert versions.aliases(project) == {"champion": "1"} and traffic(project) is None


def test_a_person_who_moves_the_alias_meanwhile_wins(careful, clock):
    to_the_canary(careful, clock)
    versions.move_alias(careful, "champion", "3")
    with pytest.raises(OvertakenError, match="moved to version 3 from outside"):
        advance(careful, clock)
    assert versions.aliases(careful)["champion"] == "3" and traffic(careful) is None


@pytest.mark.parametrize("bad", [False, True])
def test_a_person_who_rolls_back_while_a_look_is_made_is_not_overruled(careful, clock, monkeypatch, bad):
    to_the_canary(careful, clock)
    answers_of(careful, clock, latency=60.0 if bad else 5.0)
    look = steps.look

    def look_meanwhile(*arguments, **named):
        result = look(*arguments, **named)
        roll_back(careful, to=None, reason="it refunds everybody", by="jo")
        return result

    monkeypatch.setattr(steps, "look", look_meanwhile)
    with nullcontext() if not bad else pytest.raises(RuleBreachedError):
        assert not advance(careful, clock).done
    document = rollout_document(careful)
    assert (document.state, document.traffic, document.reason) == (
        "rolled_back",
        None,
        "rolled back by jo: it refunds everybody",
    )
    assert versions.aliases(careful) == {"champion": "1"}


def test_a_freeze_holds_up_what_has_not_begun_and_lets_end_what_has(careful, clock):
    ledger.freeze(careful.name, by="jo", why="audit")
    with pytest.raises(FrozenError, match="version 2 is not promoted"):
        advance(careful, clock)
    ledger.thaw(careful.name, by="jo")
    to_the_canary(careful, clock)
    ledger.freeze(careful.name, by="jo", why="audit")
    answers_of(careful, clock)
    assert "passed" in advance(careful, clock).message


@pytest.mark.parametrize("reason", ["direct", "first", "was in service"])
def test_some_go_without_steps(careful, deployed, clock, reason):
    if reason == "direct":
        assert advance(deployed, clock).done
    elif reason == "first":
        versions.move_alias(careful, "champion", None)
        versions.tag_version(careful, "2", "judged_against", "")
        assert advance(careful, clock).done
    else:
        promotion.promote(careful, "2", dag_run="other", cutoff=CUTOFF, by_person=False)
        promotion.confirm(careful, "2", "other")
        assert advance(careful, clock, version="1", by_person=True).done
    assert not rollout_document(careful).traffic


def test_a_rollout_whose_run_was_given_up_gives_way_to_the_next_one(careful, clock):
    to_the_canary(careful, clock)
    advance(careful, clock, version="3", run="by hand", by_person=True)
    assert traffic(careful)["shadows"][0]["version"] == "3" and not traffic(careful)["arms"]
    with pytest.raises(SupersededError, match=r"rollout of version 2 ended before \(overtaken\)"):
        advance(careful, clock)


@pytest.mark.parametrize("bad", [False, True])
@pytest.mark.parametrize("writes", range(1, 12))
def test_killed_after_any_write_and_run_again_it_comes_to_the_same_end(careful, clock, writes, bad):
    """A rollout that is killed after any write ends the same after a rerun.

    From the second step's look on, it ends in promotion or rollback.
    """
    to_the_canary(careful, clock)
    answers_of(careful, clock, latency=60.0 if bad else 5.0)

    def work():
        for _ in range(8):
            if advance(careful, clock).done:
                break
            answers_of(careful, clock)
        promotion.promote(careful, "2", dag_run="run", cutoff=CUTOFF, by_person=False)
        promotion.confirm(careful, "2", "run")

    with pytest.MonkeyPatch.context() as patch:
        kill_after(patch, writes)
        with pytest.raises((Killed, RuleBreachedError)):
            work()
    if bad:
        with pytest.raises(SupersededError):
            work()
        assert versions.aliases(careful) == {"champion": "1"} and rollout_document(careful).state == "rolled_back"
    else:
        work()
        assert (
            versions.aliases(careful) == {"champion": "2", "previous": "1"}
            and rollout_document(careful).state == "serving"
        )
    assert traffic(careful) is None
