"""The model of the registry answers as MLflow's own registry does."""

from typing import Any
from uuid import uuid4

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from tests.unit.loop.model_registry import ModelRegistry

NAMES, VALUES, VERSIONS = (
    st.sampled_from(["gate", "request", "rollout"]),
    st.sampled_from(["", "passed", "r-1"]),
    st.sampled_from(["1", "2", "3"]),
)
ALIASES = st.sampled_from(["champion", "previous"])
CALLS = st.lists(
    st.one_of(
        st.tuples(st.just("create_model_version"), VALUES),
        st.tuples(st.just("get_model_version"), VERSIONS),
        st.tuples(st.just("search_model_versions"), st.sampled_from(["r-1", "passed"])),
        st.tuples(st.just("set_registered_model_alias"), ALIASES, VERSIONS),
        st.tuples(st.just("delete_registered_model_alias"), ALIASES),
        st.tuples(st.just("set_registered_model_tag"), NAMES, VALUES),
        st.tuples(st.just("set_model_version_tag"), VERSIONS, NAMES, VALUES),
    ),
    max_size=12,
)


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    uri = f"sqlite:///{tmp_path_factory.mktemp('registry') / 'mlflow.db'}"
    return MlflowClient(uri, uri)


def answer(registry: Any, name: str, call: tuple[str, ...]) -> Any:
    method, *arguments = call
    try:
        match method:
            case "create_model_version":
                made = registry.create_model_version(name, "/nowhere", tags={"request": arguments[0]})
                return str(made.version), made.tags
            case "get_model_version":
                version = registry.get_model_version(name, *arguments)
                return str(version.version), version.tags
            case "search_model_versions":
                query = f"name = '{name}' and tags.request = '{arguments[0]}'"
                return sorted(
                    (str(one.version), sorted(one.tags.items())) for one in registry.search_model_versions(query)
                )
        return getattr(registry, method)(name, *arguments)
    except MlflowException as error:
        return error.error_code


@given(CALLS)
@settings(
    deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
def test_the_model_and_the_real_one_say_the_same(real, calls):
    model, name = ModelRegistry(), f"project_{uuid4().hex}"
    real.create_registered_model(name)
    model.create_registered_model(name)
    for call in calls:
        assert answer(model, name, call) == answer(real, name, call), call
    actual, modelled = real.get_registered_model(name), model.get_registered_model(name)
    assert ({alias: str(version) for alias, version in actual.aliases.items()}, dict(actual.tags)) == (
        modelled.aliases,
        modelled.tags,
    )
