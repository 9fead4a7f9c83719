"""A canary that throws, returns NaN or is slow is removed within 200 of its own requests.

No client of the real service notices it.
"""

import json

import pytest

from tests.serving.bad_models import LATE_HOUR, bad_graph
from tests.serving.harness import NAME, expected, logged, serving_process
from tests.waiting import wait_for

pytestmark = pytest.mark.stack

# Of its own requests, from the first bad answer to the last.
MOST = 200
RAW = {"shop": "b", "hour": 1, "sales_7d": 1.5, "late_rate": 0, "temp": -3, "orders": 2}


@pytest.mark.parametrize("how", ["throws", "nan", "slow"])
def test_a_bad_canary_is_out_within_200_of_its_requests(how, registry, features, tmp_path):
    registry.add(bias=1)
    registry.add(bias=1, model=bad_graph(how, 1), champion=False)
    arm = {"name": "canary", "version": "2", "weight": 0.05, "max_seconds": 0.05 if how == "slow" else 30}
    registry.client.set_registered_model_tag(
        NAME, "rollout", json.dumps({"traffic": {"salt": "2", "arms": [arm], "shadows": []}})
    )
    service = serving_process(tmp_path, registry.uri, features)
    try:
        wait_for(lambda: canary(service)["state"] == "ready", 240, service.log.read_text)
        sent = 0
        # Continue for a while to check that it does not come back.
        while canary(service)["state"] == "ready" or sent < 400:
            assert (sent := sent + 1) < 20 * MOST, "it was never taken out"
            status, body = service.get(
                f"/models/{NAME}/predict", {"instances": [{**RAW, "hour": LATE_HOUR + 1, "customer": sent}]}
            )
            assert (status, body["predictions"][0]["prediction"]) == (200, expected({**RAW, "hour": LATE_HOUR + 1}, 1))
            assert body["predictions"][0]["model_version"] == "1"
        assert canary(service)["state"] == "stopped" and "5 of its last 5 requests failed" in canary(service)["error"]
    finally:
        service.end()
    rows = logged(tmp_path / "store")
    bad = [row["predicted_at"] for row in rows if row["failed_arm"] == "canary"]
    seconds = (max(bad) - min(bad)).total_seconds()
    print(
        f"{how}: out after {len(bad)} of its own requests, {seconds:.2f} s from the first bad answer to the last, of"
        f" {sent} asked"
    )
    assert len(rows) == sent and {row["arm"] for row in rows} == {"champion"}
    assert len(bad) == 5 <= MOST


def canary(service) -> dict:
    status, document = service.get(f"/models/{NAME}")
    return document["arms"][0] if status == 200 and document["arms"] else {"state": "not there", "error": None}
