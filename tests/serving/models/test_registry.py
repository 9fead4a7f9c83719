"""Serving follows the alias, and an error leaves the loaded model in place."""

import json
import shutil

import pytest

from serving.models.registry import ModelRegistry
from serving.problems import ProblemError
from tests.serving.harness import INSTANCES, NAME, expected


@pytest.fixture
def follow(registry, tmp_path):
    """Return a function that creates a ModelRegistry.

    The test drives it: poll() is what the thread does.
    """

    def make(uri: str = registry.uri, names: tuple[str, ...] = (), client=None) -> ModelRegistry:
        return ModelRegistry(uri, tmp_path / "cache", names=names, poll_seconds=0.001, client=client)

    return make


def answer(models: ModelRegistry, name: str = NAME) -> float:
    return models.serving(name).bundle.predict(INSTANCES[:1])[0]


def away(_uri):
    raise ConnectionError("nobody there")


@pytest.mark.parametrize("names", [(), (NAME,)], ids=["every model with a champion", "named models"])
def test_the_alias_is_followed_without_a_restart(registry, follow, names):
    first = registry.add(bias=1)
    models = follow(names=names)
    models.poll()
    before = models.serving(NAME)
    assert (before.version, answer(models)) == (first, expected(INSTANCES[0], 1))

    second = registry.add(bias=2)
    models.poll()
    assert (models.serving(NAME).version, answer(models)) == (second, expected(INSTANCES[0], 2))
    # A request that began earlier keeps its model.
    assert before.bundle.predict(INSTANCES[:1])[0] == expected(INSTANCES[0], 1)

    registry.point(first)
    models.poll()
    document = models.document(NAME)
    assert (document["name"], document["version"], document["state"], document["error"]) == (NAME, first, "ready", None)


def test_a_model_that_is_being_fetched_is_waited_for_not_unknown(registry, follow):
    registry.add()
    models, seen = follow(), []

    class Looking:
        def __getattr__(self, name):
            if name == "get_model_version_download_uri":
                seen.append((models.polled_at is not None, models.document(NAME)["state"]))
            return getattr(registry.client, name)

    models._client = Looking()
    models.poll()
    assert seen == [(True, "loading")]


def test_a_poll_is_one_request_while_nothing_moves(registry, follow):
    registry.add()
    registry.add(name="others")
    models = follow()
    models.poll()
    calls = []

    class Counting:
        def __getattr__(self, name):
            calls.append(name)
            return getattr(registry.client, name)

    models._client = Counting()
    models.poll()
    assert calls == ["search_registered_models"]


def test_a_version_whose_golden_requests_differ_stays_out(registry, follow):
    good = registry.add(bias=1)
    models = follow()
    models.poll()
    bad = registry.add(bias=2, golden={"predictions": [9e9, 9e9, 9e9]})
    models.poll()
    document = models.document(NAME)
    assert (document["version"], document["state"]) == (good, "refused")
    assert document["error"].startswith(f"version {bad}: golden request 0 (3 of 3): expected 9000000000.0, got ")
    assert answer(models) == expected(INSTANCES[0], 1)

    # Not requested again while the alias is unchanged.
    (registry.artifacts(bad) / "golden.json").unlink()
    for _ in range(3):
        models.poll()
        models.models = {NAME: _now(models.models[NAME])}
    assert models.document(NAME) == document

    registry.point(good)
    models.poll()
    assert (models.document(NAME)["state"], models.document(NAME)["error"]) == ("ready", None)


def test_the_first_version_can_be_refused_too(registry, follow):
    registry.add(model=b"no graph")
    models = follow()
    models.poll()
    assert (models.document(NAME)["version"], models.document(NAME)["state"]) == (None, "refused")
    with pytest.raises(ProblemError, match="version 1: model.onnx does not load") as problem:
        models.serving(NAME)
    assert problem.value.status == 503


def test_a_model_registered_under_another_projects_name_is_refused(registry, follow):
    registry.add(contract={"project": "others"})
    models = follow()
    models.poll()
    assert "is of project 'others', the registered model is 'shops'" in models.document(NAME)["error"]


def test_a_deleted_artifact_is_an_error_and_heals(registry, follow):
    good = registry.add(bias=1)
    models = follow()
    models.poll()
    lost = registry.add(bias=2)
    folder = registry.artifacts(lost)
    folder.rename(folder.with_name("elsewhere"))
    for _ in range(2):
        models.poll()
        assert (models.document(NAME)["state"], models.document(NAME)["error"]) == (
            "ready",
            None,
        )  # a possibly short network failure
        models.models = {NAME: _now(models.models[NAME])}
    models.poll()
    document = models.document(NAME)
    assert (document["version"], document["state"]) == (good, "error")
    assert document["error"].startswith(f"version {lost} cannot be fetched (3 tries)")
    assert answer(models) == expected(INSTANCES[0], 1)

    folder.with_name("elsewhere").rename(folder)
    models.models = {NAME: _now(models.models[NAME])}
    models.poll()
    assert (models.document(NAME)["version"], models.document(NAME)["state"]) == (lost, "ready")


def test_nothing_half_fetched_stays_in_the_cache(registry, follow):
    version = registry.add()
    (registry.artifacts(version) / "golden.json").unlink()
    models = follow()
    models.poll()
    assert [path.name for path in models.cache.root.rglob("*") if path.is_dir()] == [NAME]


def test_the_old_model_serves_while_the_registry_is_away(registry, follow):
    registry.add(bias=1)
    models = follow()
    models.poll()

    class Away:
        def __getattr__(self, name):
            raise ConnectionError("nobody there")

    there, models._client = models._client, Away()
    models.poll()
    document = models.document(NAME)
    assert (document["version"], document["state"], document["error"]) == (
        "1",
        "ready",
        "the registry does not answer: ConnectionError: nobody there",
    )
    assert answer(models) == expected(INSTANCES[0], 1)
    models._client = there
    models.poll()
    assert models.document(NAME)["error"] is None


def test_a_restart_without_the_registry_serves_the_last_good_model(registry, follow):
    registry.add(bias=1)
    models = follow()
    models.poll()
    registry.add(bias=2, golden={"predictions": [9e9, 9e9, 9e9]})
    models.poll()

    again = follow(client=away)
    again.poll()
    assert (again.document(NAME)["version"], again.document(NAME)["state"], answer(again)) == (
        "1",
        "ready",
        expected(INSTANCES[0], 1),
    )
    assert "nobody there" in again.document(NAME)["error"]


def test_the_registry_has_the_last_word_over_the_cache(registry, follow):
    first = registry.add(bias=1)
    registry.add(bias=2)
    follow().poll()
    registry.point(first)
    models = follow()
    models.poll()
    assert models.document(NAME)["version"] == first


def test_named_models_only_are_restored(registry, follow):
    registry.add()
    follow().poll()
    models = follow(names=("others",), client=away)
    models.poll()
    assert list(models.models) == ["others"]
    with pytest.raises(ProblemError) as problem:
        models.serving("others")
    assert problem.value.status == 503


def test_a_damaged_cache_is_fetched_again(registry, follow):
    registry.add(bias=1)
    models = follow()
    models.poll()
    (graph,) = models.cache.root.rglob("model.onnx")
    graph.write_bytes(b"damaged")
    again = follow(client=away)
    again.poll()
    assert again.models == {}  # nothing to serve, and no crash
    healed = follow()
    healed.poll()
    assert (healed.document(NAME)["state"], answer(healed)) == ("ready", expected(INSTANCES[0], 1))
    assert graph.read_bytes() != b"damaged"


def test_another_registry_with_the_same_version_number_is_another_model(registry, follow, migrated, tmp_path):
    from tests.serving.harness import Registry

    registry.add(bias=1)
    follow().poll()
    (tmp_path / "new").mkdir()
    shutil.copy(migrated, tmp_path / "new" / "mlflow.db")
    other = Registry(f"sqlite:///{tmp_path / 'new' / 'mlflow.db'}", tmp_path / "new")
    other.add(bias=5)
    models = follow(uri=other.uri)
    models.poll()
    assert (models.document(NAME)["version"], answer(models)) == ("1", expected(INSTANCES[0], 5))


def test_the_cache_keeps_the_current_version_and_the_one_before(registry, follow):
    models = follow()
    for bias in range(4):
        registry.add(bias=bias)
        models.poll()
    kept = sorted(folder.name.split("-")[0] for folder in (models.cache.root / NAME).iterdir() if folder.is_dir())
    assert kept == ["3", "4"]
    assert json.loads((models.cache.root / NAME / "current.json").read_text())["version"] == "4"


def test_a_version_that_cannot_be_looked_up_holds_up_no_other_model(registry, follow):
    registry.add(bias=1)
    registry.add(name="others")
    models = follow()
    models.poll()
    second = registry.add(bias=2)
    registry.add(name="others")

    class Failing:
        def get_model_version(self, name, version):
            if name == NAME:
                raise ConnectionError("gone again")
            return registry.client.get_model_version(name, version)

        def __getattr__(self, name):
            return getattr(registry.client, name)

    there, models._client = models._client, Failing()
    models.poll()
    assert models.document("others")["version"] == "2"
    document = models.document(NAME)
    assert (document["version"], document["state"]) == ("1", "error")
    assert document["error"] == f"version {second} cannot be looked up: ConnectionError: gone again"
    models._client = there
    models.models = {name: _now(model) for name, model in models.models.items()}
    models.poll()
    assert (models.document(NAME)["version"], models.document("others")["version"]) == (second, "2")


LOSSES = {
    "alias": lambda client: client.delete_registered_model_alias(NAME, "champion"),
    "version": lambda client: client.delete_model_version(NAME, "1"),
    "model": lambda client: client.delete_registered_model(NAME),
}


@pytest.mark.parametrize("gone", LOSSES)
def test_a_lost_champion_keeps_answering_and_is_called_lost(registry, follow, gone):
    registry.add()
    models = follow()
    models.poll()
    LOSSES[gone](registry.client)
    for _ in range(2):
        models.poll()
        document = models.document(NAME)
        assert (document["version"], document["state"]) == ("1", "lost") and answer(models) == expected(INSTANCES[0], 0)
        assert "no version has the alias 'champion' any more" in document["error"]


def test_a_champion_that_is_back_is_ready_again(registry, follow):
    registry.add()
    models = follow()
    models.poll()
    LOSSES["alias"](registry.client)
    models.poll()
    registry.point("1")
    models.poll()
    assert (models.document(NAME)["state"], models.document(NAME)["error"]) == ("ready", None)


@pytest.mark.parametrize("gone", ["alias", "version"])
@pytest.mark.parametrize("names", [(), (NAME,)], ids=["every model with a champion", "named models"])
def test_a_lost_champion_answers_after_a_restart_from_the_cache(registry, follow, gone, names):
    registry.add(bias=1)
    follow(names=names).poll()
    LOSSES[gone](registry.client)
    models = follow(names=names)
    for _ in range(2):
        models.poll()
    assert (models.document(NAME)["version"], models.document(NAME)["state"]) == ("1", "lost")
    assert answer(models) == expected(INSTANCES[0], 1) and models.waiting() == []
    registry.add(bias=2)
    models.poll()
    assert (models.document(NAME)["version"], models.document(NAME)["state"]) == ("2", "ready")


def test_a_damaged_copy_of_a_deleted_champion_does_not_answer(registry, follow, tmp_path):
    registry.add()
    follow().poll()
    LOSSES["version"](registry.client)
    (graph,) = (tmp_path / "cache").glob("*/1-*/model.onnx")
    graph.write_bytes(graph.read_bytes().replace(b"numeric", b"numerik"))
    models = follow()
    for _ in range(2):
        models.poll()
    assert models.document(NAME)["version"] is None and models.waiting() == [f"model '{NAME}' is not loaded"]


def test_a_first_champion_that_was_rolled_back_does_not_come_back_with_a_restart(registry, follow):
    registry.add()
    models = follow()
    models.poll()
    registry.client.set_registered_model_tag(
        NAME, "rollout", json.dumps({"version": "1", "previous": None, "state": "rolled_back"})
    )
    LOSSES["alias"](registry.client)
    models.poll()
    # It keeps answering as before and is not reported as lost.
    assert models.document(NAME)["state"] == "ready"
    models = follow()
    for _ in range(2):
        models.poll()
    assert NAME not in models.models


def test_another_registrys_version_of_that_number_is_not_taken_for_the_lost_one(registry, follow):
    registry.add(bias=1)
    follow().poll()
    registry.client.delete_registered_model(NAME)
    registry.add(bias=2, champion=False)
    models = follow()
    for _ in range(2):
        models.poll()
    assert models.document(NAME)["version"] is None


@pytest.mark.parametrize(
    ("tag", "shown"),
    [
        ("6f9d2c1e-0000-4000-8000-000000000001", "6f9d2c1e-0000-4000-8000-000000000001"),
        ("<b>x", None),
        ("a" * 400, None),
    ],
)
def test_the_installation_that_trains_a_model_is_shown(registry, follow, tag, shown):
    registry.add()
    registry.client.set_registered_model_tag(NAME, "airloop.installation", tag)
    models = follow()
    models.poll()
    assert (models.document(NAME)["installation"], models.document(NAME)["state"]) == (shown, "ready")


def test_a_model_without_a_champion_is_unknown_or_waited_for(registry, follow):
    registry.add(champion=False)
    models = follow()
    models.poll()
    with pytest.raises(ProblemError) as problem:
        models.model(NAME)
    assert problem.value.status == 404
    named = follow(names=(NAME,))
    named.poll()
    assert (named.document(NAME)["state"], named.document(NAME)["error"]) == (
        "loading",
        "no version has the alias 'champion'",
    )


def _now(model):
    """End the model's pause between tries."""
    from dataclasses import replace

    return replace(model, next_try=0)
