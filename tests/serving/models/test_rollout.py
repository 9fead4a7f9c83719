"""Routing by the rollout document: canaries, A/B arms, shadows, and failed arms."""

import asyncio
import json
import time
from datetime import UTC, datetime

import numpy as np
import pytest

from serving.features.lookup import FeatureLookup
from serving.models.bundle import Bundle
from serving.models.loaded_model import LoadedModel, Member, Route
from serving.models.registry import ModelRegistry
from serving.models.rollout import Arm, Breaker, Shadow, place, traffic_of
from serving.predicting import predict as data_plane
from serving.problems import ProblemError
from tests.serving.harness import NAME, expected, write_bundle

RAW = {"shop": "b", "hour": 1, "sales_7d": 1.5, "late_rate": 0, "temp": -3, "orders": 2}


@pytest.fixture(scope="module")
def versions(tmp_path_factory):
    """Register the champion as version 1, and further versions with other biases."""
    folder = tmp_path_factory.mktemp("bundles")

    def make(version: str, arm: str = "champion", bias: float = 0) -> LoadedModel:
        return LoadedModel(
            NAME,
            version,
            f"models:/m-{version}",
            Bundle.load(write_bundle(folder / f"{version}-{arm}", bias)),
            datetime.now(UTC),
            arm,
        )

    return make


def routed(versions, **arm) -> tuple[Route, Member]:
    canary = Arm.model_validate({"name": "canary", "version": "2", "weight": 0.05} | arm)
    member = Member(canary, versions("2", "canary", bias=100), Breaker(canary))
    return Route(versions("1"), "salt", (member,)), member


def ask(route: Route, *instances: dict, lookup=None) -> list[data_plane.Prediction]:
    return asyncio.run(data_plane.answer(route, lookup or FeatureLookup(None), instances))


def customers(count: int) -> list[dict]:
    return [{**RAW, "customer": number} for number in range(count)]


def test_an_arm_answers_its_share_and_an_entity_keeps_its_arm(versions):
    route, _ = routed(versions)
    first, again = ask(route, *customers(4000)), ask(route, *reversed(customers(4000)))
    by_canary = [p.served.arm == "canary" for p in first]
    assert 0.035 < np.mean(by_canary) < 0.065
    assert by_canary == [p.served.arm == "canary" for p in reversed(again)]
    assert all(p.prediction == expected(RAW, 100 if p.served.arm == "canary" else 0) for p in first)


def test_a_greater_weight_keeps_those_that_it_had_and_another_salt_takes_others():
    few, more = ({n for n in range(3000) if place("a", [n]) < share} for share in (0.05, 0.2))
    assert few < more
    assert len(few & {n for n in range(3000) if place("b", [n]) < 0.05}) < 30
    assert place("a", ["x", 1]) == place("a", ["x", 1]) != place("a", ["x", 2])


class Broken:
    """Replacement of a graph that behaves like a bad canary."""

    def __init__(self, inner: Bundle, do) -> None:
        self.inputs, self.contract, self.seconds, self._inner, self._do = (
            inner.inputs,
            inner.contract,
            inner.seconds,
            inner,
            do,
        )

    def run(self, numbers, texts):
        return self._do(self._inner.run(numbers, texts))


def throw(_answers):
    raise RuntimeError("out of cheese")


def slow(answers):
    time.sleep(0.3)
    return answers


@pytest.mark.parametrize(
    ("does", "words"),
    [(throw, "fails on these inputs"), (lambda a: a * np.nan, "answers nan"), (slow, "no answer within 0.05 s")],
)
def test_a_canary_that_throws_or_is_slow_or_gives_nan_is_taken_out_and_nobody_notices(versions, does, words):
    route, member = routed(versions, max_seconds=0.05)
    member.served.batcher.graph = Broken(member.served.bundle.graph, does)
    its = [customer for customer in customers(4000) if route.arm_of(customer) is member]
    assert len(its) > 100

    async def one_after_another() -> int:
        for number, customer in enumerate(its):
            (answered,) = await data_plane.answer(route, FeatureLookup(None), [customer])
            assert (answered.served.version, answered.prediction) == (
                "1",
                expected(RAW),
            )  # the champion answered in its place
            row = data_plane.AnsweredRequest.columns([data_plane.AnsweredRequest([answered], at=0, latency_ms=1)])
            assert (row["arm"], row["failed_arm"]) == (["champion"], ["canary"])  # the log names the failed arm
            if member.breaker.stopped:
                return number + 1
        raise AssertionError("it was never taken out")

    assert asyncio.run(one_after_another()) <= 200
    assert words in member.breaker.stopped and "5 of its last 5 requests failed" in member.breaker.stopped
    assert {p.served.arm for p in ask(route, *its)} == {"champion"}


def test_a_request_that_is_wrong_is_not_the_arms_fault(versions):
    route, member = routed(versions, weight=1.0)
    for _ in range(10):
        with pytest.raises(ProblemError, match="'hour' must be a number"):
            ask(route, {**RAW, "hour": "nine"})
    assert member.breaker.stopped is None
    assert {p.served.arm for p in ask(route, *customers(20))} == {"canary"}


def test_few_failures_among_many_requests_leave_it_in():
    breaker = Breaker(Arm(name="a", version="1", weight=0.1))
    for number in range(1000):
        breaker.note("bad luck" if number % 30 == 0 else None)
    assert breaker.stopped is None
    for _ in range(2):
        breaker.note("worse")
    assert "5 of its last 100 requests failed; the last one: worse" in breaker.stopped


def answered_and_shadowed(route: Route) -> tuple[list[data_plane.Prediction], list[dict]]:
    """Return three instances' answers, and the shadow's log entries once they are written."""
    kept: list[dict] = []

    def keep(entry: data_plane.AnsweredRequest) -> None:
        columns = data_plane.AnsweredRequest.columns([entry])
        kept.extend(dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True))

    async def story() -> list[data_plane.Prediction]:
        answered = await data_plane.answer(route, FeatureLookup(None), customers(3))
        data_plane.shadow(route, customers(3), data_plane.AnsweredRequest(answered, 0, 0.0), FeatureLookup(None), keep)
        while len(kept) < 3:
            await asyncio.sleep(0.01)
        return answered

    return asyncio.run(asyncio.wait_for(story(), 60)), kept


def test_shadows_are_logged_under_the_answered_id_and_told_nobody(versions):
    shadow = versions("3", "next", bias=7)
    route = Route(versions("1"), shadows=((Shadow(name="next", version="3"), shadow),))
    answered, kept = answered_and_shadowed(route)
    assert {p.prediction for p in answered} == {expected(RAW)}
    assert [(row["prediction_id"], row["arm"], row["model_version"], row["prediction"]) for row in kept] == [
        (p.prediction_id, "next", "3", expected(RAW, 7)) for p in answered
    ]


@pytest.mark.parametrize("does", [throw, lambda a: a * np.nan])
def test_a_shadow_that_gives_no_answer_is_logged_as_asked_in_vain(versions, does):
    shadow = versions("3", "next", bias=7)
    shadow.batcher.graph = Broken(shadow.bundle.graph, does)
    route = Route(versions("1"), shadows=((Shadow(name="next", version="3"), shadow),))
    answered, kept = answered_and_shadowed(route)
    assert {p.prediction for p in answered} == {expected(RAW)}
    assert [(row["prediction_id"], row["arm"], np.isnan(row["prediction"])) for row in kept] == [
        (p.prediction_id, "next", True) for p in answered
    ]


@pytest.mark.parametrize(
    ("document", "problem"),
    [
        (None, None),
        ('{"version": "3", "state": "serving"}', None),
        ("{", "rollout document: not JSON"),
        ("[]", "rollout document: must be a JSON object, is an array"),
        ('{"traffic": {"arms": [{"name": "a", "version": "2", "weight": 1.5}]}}', "traffic.arms.0.weight"),
        ('{"traffic": {"arms": [{"name": "champion", "version": "2", "weight": 0.1}]}}', "different names"),
        (
            (
                '{"traffic": {"arms": [{"name": "a", "version": "2", "weight": 0.6}, {"name": "b", "version": "3",'
                ' "weight": 0.6}]}}'
            ),
            "add up to 1.2",
        ),
    ],
)
def test_a_document_that_cannot_be_followed_is_told_and_leaves_the_champion_alone(document, problem):
    traffic, error = traffic_of(document)
    assert traffic.entries == ()
    assert error is None if problem is None else problem in error


def test_the_registrys_document_is_followed(registry, tmp_path):
    for bias in (1, 2, 3):
        registry.add(bias=bias, champion=bias == 1)
    bad = registry.add(bias=4, golden={"predictions": [9e9, 9e9, 9e9]}, champion=False)
    models = ModelRegistry(registry.uri, tmp_path / "cache", poll_seconds=0.001)

    def follow(**traffic) -> dict:
        registry.client.set_registered_model_tag(
            NAME, "rollout", json.dumps({"state": "promoting", "traffic": traffic})
        )
        models.poll()
        return models.document(NAME)

    canary = {"name": "canary", "version": "2", "weight": 0.5}
    document = follow(arms=[canary], shadows=[{"name": "next", "version": "3"}])
    assert [(arm["name"], arm["version"], arm["state"]) for arm in document["arms"]] == [
        ("canary", "2", "ready"),
        ("next", "3", "ready"),
    ]
    route = models.route(NAME)
    assert {(p.served.arm, p.prediction) for p in ask(route, *customers(50))} == {
        ("champion", expected(RAW, 1)),
        ("canary", expected(RAW, 2)),
    }
    assert [served.version for _, served in route.shadows] == ["3"]

    models.poll()
    assert models.route(NAME) is route  # nothing changed
    route.arms[0].breaker.note("x")
    for _ in range(4):
        route.arms[0].breaker.note("it fails")
    assert models.document(NAME)["arms"][0]["state"] == "stopped"
    models.poll()
    assert {p.served.arm for p in ask(models.route(NAME), *customers(50))} == {"champion"}  # and stays removed
    document = follow(arms=[{**canary, "weight": 0.6}])
    assert document["arms"][0]["state"] == "ready"  # until the document changes for it

    document = follow(arms=[{**canary, "version": bad}])
    assert document["arms"][0]["state"] == "refused" and "golden request" in document["arms"][0]["error"]
    assert models.route(NAME).arms == ()
    assert follow(arms=[{**canary, "version": "99"}])["arms"][0]["state"] == "error"
    assert follow()["arms"] == []


def test_a_version_is_held_to_its_hashes(registry, tmp_path):
    from hashlib import sha256

    def tag(version: str) -> None:
        files = registry.artifacts(version)
        hashes = {
            name: sha256((files / name).read_bytes()).hexdigest()
            for name in ("model.onnx", "contract.json", "golden.json")
        }
        registry.client.set_model_version_tag(NAME, version, "bundle_sha256", json.dumps(hashes))

    first = registry.add(bias=1)
    tag(first)
    models = ModelRegistry(registry.uri, tmp_path / "cache", poll_seconds=0.001)
    models.poll()
    assert (models.document(NAME)["version"], models.document(NAME)["hash_checked"]) == (first, True)

    second = registry.add(bias=2, champion=False)
    tag(second)
    # It is complete and answers its golden requests. Only the hash differs.
    write_bundle(registry.artifacts(second), bias=3)
    registry.point(second)
    models.poll()
    document = models.document(NAME)
    assert (document["version"], document["state"]) == (first, "refused")
    assert "model.onnx is not the file that was registered" in document["error"]
