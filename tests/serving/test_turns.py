"""A request of many rows lets other requests proceed in between."""

import asyncio
import gc
import time
from datetime import UTC, datetime

import pytest

from serving import turns
from serving.http import json_api
from serving.models.bundle import Bundle
from serving.models.loaded_model import LoadedModel
from serving.predicting.predict import predict
from tests.serving.harness import NAME, expected, write_bundle

GIVEN = {"sales_7d": 1.5, "late_rate": 0, "temp": -3, "orders": 2, "shop": "a"}
LACKING = {"shop": "a", "customer": 7}


@pytest.mark.parametrize("given", [GIVEN, LACKING], ids=["whole", "to look up"])
def test_others_are_answered_between_the_turns_of_a_big_request(tmp_path, lookup, given):
    served = LoadedModel(NAME, "1", "models:/m-1", Bundle.load(write_bundle(tmp_path)), datetime.now(UTC))
    instances = [{**given, "hour": hour % 24} for hour in range(1000)]

    async def ask():
        steps, ended = [], asyncio.Event()

        async def other():
            since = time.thread_time()
            while not ended.is_set():
                await asyncio.sleep(0)
                steps.append((now := time.thread_time()) - since)
                since = now

        task = asyncio.create_task(other())
        await asyncio.sleep(0)
        predictions = await predict(served, lookup, instances)
        documents = await turns.in_turns(json_api.tell, predictions)
        ended.set()
        await task
        return steps, predictions, documents

    # Warms up the store and the graph.
    asyncio.run(ask())
    # A collection would traverse all objects of the test process.
    gc.disable()
    try:
        steps, predictions, documents = asyncio.run(ask())
    finally:
        gc.enable()
    # CPU time of the event loop between two steps of another task.
    assert max(steps) < 0.15 * sum(steps)
    assert [p.key["hour"] for p in predictions] == [instance["hour"] for instance in instances]
    assert [one["prediction_id"] for one in documents] == [p.prediction_id for p in predictions]
    if given is GIVEN:
        assert [p.prediction for p in predictions] == [expected(instance) for instance in instances]


@pytest.mark.parametrize("items", [0, 1, turns.ROWS, turns.ROWS + 1, 3 * turns.ROWS])
def test_each_item_has_one_turn(items):
    sizes = []

    def make(part):
        sizes.append(len(part))
        return [item * 2 for item in part]

    assert asyncio.run(turns.in_turns(make, range(items))) == [item * 2 for item in range(items)]
    assert max(sizes) <= turns.ROWS and sum(sizes) == items


def test_a_turn_that_fails_ends_the_request():
    def make(part):
        return [1 // (item - 70) for item in part]

    with pytest.raises(ZeroDivisionError):
        asyncio.run(turns.in_turns(make, range(200)))
