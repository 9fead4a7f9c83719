"""A canary of the real service that throws, gives NaN or is slow: it is out within 200 of its own requests, and nobody who asks notices."""

import json

import pytest

from tests.serving.bad_models import LATE_HOUR, bad_graph
from tests.serving.stand import NAME, expected, logged, serving_process, wait_for

pytestmark = pytest.mark.stack

MOST = 200  # of its own requests, from the first bad answer to the last
RAW = {"shop": "b", "hour": 1, "sales_7d": 1.5, "late_rate": 0, "temp": -3, "orders": 2}


@pytest.mark.parametrize("how", ["throws", "nan", "slow"])
def test_a_bad_canary_is_out_within_200_of_its_requests(how, registry, features, tmp_path):
    registry.add(bias=1)
    registry.add(bias=1, model=bad_graph(how, 1), champion=False)
    arm = {"name": "canary", "version": "2", "weight": 0.05, "max_seconds": 0.05 if how == "slow" else 30}
    registry.client.set_registered_model_tag(NAME, "rollout", json.dumps({"traffic": {"salt": "2", "arms": [arm], "shadows": []}}))
    service = serving_process(tmp_path, registry.uri, features)
    try:
        wait_for(lambda: canary(service)["state"] == "ready", 240, service.log.read_text)
        asked = 0
        while canary(service)["state"] == "ready" or asked < 400:  # and a while longer: it does not come back
            assert (asked := asked + 1) < 20 * MOST, "it was never taken out"
            status, said = service.get(f"/models/{NAME}/predict", {"instances": [{**RAW, "hour": LATE_HOUR + 1, "customer": asked}]})
            assert (status, said["predictions"][0]["prediction"]) == (200, expected({**RAW, "hour": LATE_HOUR + 1}, 1))
            assert said["predictions"][0]["model_version"] == "1"
        assert canary(service)["state"] == "stopped" and "5 of its last 5 requests failed" in canary(service)["error"]
    finally:
        service.end()
    rows = logged(tmp_path / "store")
    bad = [row["predicted_at"] for row in rows if row["failed_arm"] == "canary"]
    seconds = (max(bad) - min(bad)).total_seconds()
    print(f"{how}: out after {len(bad)} of its own requests, {seconds:.2f} s from the first bad answer to the last, of {asked} asked")
    assert len(rows) == asked and {row["arm"] for row in rows} == {"champion"}
    assert len(bad) == 5 <= MOST


def canary(service) -> dict:
    status, said = service.get(f"/models/{NAME}")
    return said["arms"][0] if status == 200 and said["arms"] else {"state": "not there", "error": None}
