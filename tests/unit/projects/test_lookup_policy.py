"""A project's policies for incomplete look-ups, which training and serving interpret alike."""

import pytest
from pydantic import ValidationError

from include.projects.flights import project as flights
from include.projects.lookup import LookupPolicy
from include.training.bundle import contract_of
from serving.models import contract


def project(**policy):
    return flights.model_validate({**flights.model_dump(), "lookup": policy})


def test_the_policy_travels_in_the_contract_and_is_read_as_it_was_said():
    policy = {
        "unknown_entity": "baseline",
        "defaults": {"plane_seats": 150},
        "views": {"plane": {"unknown_entity": "default"}},
    }
    read = contract.Contract.model_validate(contract_of(project(**policy))).lookup
    assert (
        read.action("unknown_entity", "origin_weather") == "baseline"
        and read.takes("baseline")
        and not read.takes("refuse")
    )
    assert read.action("unknown_entity", "plane") == read.action("stale_feature", "plane") == "default"
    assert read.defaults == {"plane_seats": 150}
    assert LookupPolicy().model_dump() == contract.LookupPolicy().model_dump()
    assert (
        LookupPolicy.model_json_schema()["properties"].keys()
        == contract.LookupPolicy.model_json_schema()["properties"].keys()
    )


@pytest.mark.parametrize(
    ("policy", "message"),
    [
        pytest.param(
            {"views": {"weather": {"stale_feature": "refuse"}}},
            "lookup.views names 'weather'; its feature_views are origin_dep",
            id="no such view",
        ),
        pytest.param(
            {"defaults": {"hour": 1}},
            "lookup.defaults names 'hour', which is not an input that is looked up",
            id="it comes with the request",
        ),
        pytest.param({"defaults": {"origin": "JFK"}}, "lookup.defaults names 'origin'", id="a join key"),
        pytest.param(
            {"defaults": {"temp": "warm"}}, "lookup.defaults: 'temp' must be a number or None", id="text for a number"
        ),
        pytest.param(
            {"stale_feature": "use"}, "Input should be 'refuse', 'default' or 'baseline'", id="no such action"
        ),
        pytest.param({"views": {"plane": {"gone": "refuse"}}}, "unknown_entity", id="no such kind"),
    ],
)
def test_a_policy_that_cannot_be_kept_is_refused_by_name(policy, message):
    with pytest.raises(ValidationError, match=message):
        project(**policy)
