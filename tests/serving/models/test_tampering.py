"""A version answers only if its files match the hashes in the registry.

The files may be downloaded, cached, or changed in between.
"""

import json
import os
from hashlib import sha256
from pathlib import Path

import pytest

from serving.models.bundle import Bundle, BundleError
from serving.models.mlflow_rest import MlflowRest
from serving.models.registry import ModelRegistry
from serving.models.version_files import FileLimits
from tests.serving.harness import INSTANCES, NAME, expected, graph, write_bundle
from tests.serving.hostile import entry, external_graph, hostile_mlflow

mlflow = pytest.fixture(hostile_mlflow)


def hashes_of(folder: Path) -> str:
    return json.dumps({file.name: sha256(file.read_bytes()).hexdigest() for file in folder.iterdir()})


@pytest.fixture
def follow(tmp_path):
    made: list[ModelRegistry] = []

    def make(uri: str, **settings) -> ModelRegistry:
        made.append(ModelRegistry(uri, tmp_path / "cache", **{"poll_seconds": 0.001, "patience": 60, **settings}))
        return made[-1]

    yield make
    for registry in made:
        registry.close()


@pytest.fixture
def registered(mlflow, tmp_path):
    """Run a server with version 1 of a model, hashed as training does it."""
    bundle = write_bundle(tmp_path / "bundle", 1)
    mlflow.add(NAME, bundle)
    mlflow.versions[NAME] = {"tags": [{"key": "bundle_sha256", "value": hashes_of(bundle)}]}
    return mlflow


def away(_uri):
    raise ConnectionError("nobody there")


def answer(models: ModelRegistry) -> float:
    return models.serving(NAME).bundle.predict(INSTANCES[:1])[0]


def tamper(cache: Path, *, pointer: bool) -> Path:
    """Replace the model in the cache and, with ``pointer``, its hashes in the cache's own note."""
    (folder,) = [entry for entry in (cache / NAME).iterdir() if entry.is_dir()]
    write_bundle(folder, 666)
    note = cache / NAME / "current.json"
    if pointer:
        note.write_text(json.dumps(json.loads(note.read_text()) | {"hashes": hashes_of(folder)}))
    return folder


def test_a_tampered_cache_is_replaced_when_the_registry_is_back(registered, follow, tmp_path):
    follow(registered.url).poll()
    folder = tamper(tmp_path / "cache", pointer=True)
    models = follow(registered.url, client=away)
    models.poll()
    # This cannot be detected without the registry.
    assert answer(models) == expected(INSTANCES[0], 666)
    models._client = MlflowRest(registered.url)
    models.poll()
    assert answer(models) == expected(INSTANCES[0], 1)
    assert (models.document(NAME)["state"], models.document(NAME)["hash_checked"]) == ("ready", True)
    assert hashes_of(folder) == registered.versions[NAME]["tags"][0]["value"]


@pytest.mark.parametrize("hashes", [True, False], ids=["the note says hashes", "the note says none"])
def test_a_tampered_model_that_cannot_be_replaced_stops_answering(registered, follow, tmp_path, hashes):
    follow(registered.url).poll()
    tamper(tmp_path / "cache", pointer=True)
    note = tmp_path / "cache" / NAME / "current.json"
    if not hashes:
        note.write_text(json.dumps(json.loads(note.read_text()) | {"hashes": ""}))
    models = follow(registered.url, client=away)
    models.poll()
    registered.replies["mlflow/model-versions/get-download-uri"] = lambda query: b"{"
    models._client = MlflowRest(registered.url)
    models.poll()
    assert (models.document(NAME)["version"], NAME in models.routes) == (None, False)


def test_a_cache_that_was_not_tampered_with_keeps_answering_without_a_download(registered, follow):
    follow(registered.url).poll()
    models = follow(registered.url, client=away)
    models.poll()
    before = models.serving(NAME)
    registered.replies["mlflow/model-versions/get-download-uri"] = lambda query: b"{"
    models._client = MlflowRest(registered.url)
    models.poll()
    assert models.serving(NAME) is before
    assert (models.document(NAME)["state"], models.models[NAME].restored) == ("ready", False)


def test_files_are_compared_again_after_each_time_that_the_registry_was_away(registered, follow, tmp_path):
    models = follow(registered.url)
    models.poll()
    before = models.serving(NAME)
    folder = tamper(tmp_path / "cache", pointer=True)
    there, models._client = models._client, None
    models._client_of = away
    models.poll()
    models._client = there
    models.poll()
    assert models.serving(NAME) is before and answer(models) == expected(INSTANCES[0], 1)
    assert hashes_of(folder) == registered.versions[NAME]["tags"][0]["value"]


def test_a_cached_version_without_hashes_is_downloaded_again_by_a_new_process(mlflow, follow, tmp_path):
    mlflow.add(NAME, write_bundle(tmp_path / "bundle", 1))
    follow(mlflow.url).poll()
    tamper(tmp_path / "cache", pointer=False)
    models = follow(mlflow.url)
    models.poll()
    assert answer(models) == expected(INSTANCES[0], 1)


# --- the files of a version -----------------------------------------------------------------------


@pytest.mark.parametrize("subgraph", [False, True], ids=["in the graph", "in a subgraph"])
@pytest.mark.parametrize("location", ["weights.bin", "../weights.bin", "/tmp/weights.bin"])
def test_external_data_is_refused(tmp_path, monkeypatch, location, subgraph):
    content, weights = external_graph(location, subgraph)
    folder = write_bundle(tmp_path / "bundle", 1, model=content)
    (tmp_path / "weights.bin").write_bytes(weights)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BundleError, match=r"external data\), which no hash covers"):
        Bundle.load(folder)


def test_operators_of_another_library_are_refused(tmp_path):
    import onnx

    model = onnx.load_from_string(graph(1))
    model.graph.node[0].domain = "ai.onnx.contrib"
    with pytest.raises(BundleError, match=r"domain 'ai.onnx.contrib', which are not ONNX Runtime's own"):
        Bundle.load(write_bundle(tmp_path, 1, model=model.SerializeToString()))


def test_a_file_without_a_hash_refuses_the_version(registered, follow):
    (registered.files[NAME] / "weights.bin").write_bytes(b"1")
    models = follow(registered.url)
    models.poll()
    assert "the version has no hash of weights.bin (tag bundle_sha256)" in models.document(NAME)["error"]


def test_what_mlflow_writes_beside_a_model_is_left_where_it_is(registered, follow):
    for name in (
        "MLmodel",
        "conda.yaml",
        "python_env.yaml",
        "requirements.txt",
        "input_example.json",
        "serving_input_example.json",
    ):
        (registered.files[NAME] / name).write_text("!!python/object")
    models = follow(registered.url)
    models.poll()
    assert models.document(NAME)["state"] == "ready"
    assert sorted(file.name for file in models.cache.folder(NAME, "1", f"models:/{NAME}").iterdir()) == [
        "contract.json",
        "golden.json",
        "model.onnx",
    ]


@pytest.mark.parametrize("name", ["model.onnx", "contract.json", "golden.json"])
@pytest.mark.parametrize("how", ["link", "pipe", "folder"])
def test_what_is_no_plain_file_is_refused(tmp_path, name, how):
    folder = write_bundle(tmp_path / "bundle", 1)
    original = (folder / name).rename(tmp_path / name)
    {
        "link": lambda: (folder / name).symlink_to(original),
        "pipe": lambda: os.mkfifo(folder / name),
        "folder": (folder / name).mkdir,
    }[how]()
    with pytest.raises(BundleError, match=f"{name} is (a link|not a plain file)"):
        Bundle.load(folder)


def test_a_version_is_limited_while_it_is_downloaded(registered, follow, tmp_path):
    sizes = {file.name: file.stat().st_size for file in registered.files[NAME].iterdir()}
    for limits, message in (
        (FileLimits(files=2), "the version has 3 files; at most 2 are loaded"),
        (FileLimits(total_bytes=sum(sizes.values()) - 1), "no more are downloaded"),
        (FileLimits(file_bytes=max(sizes.values()) - 1), "no more are downloaded"),
    ):
        models = follow(registered.url, limits=limits)
        models.poll()
        assert message in models.document(NAME)["error"]
        assert not list((tmp_path / "cache").rglob("*.onnx"))


def test_a_file_named_as_a_path_is_not_written_there(registered, follow, tmp_path):
    names = ["../../../escaped", "/etc/escaped", "..", "model.onnx", "contract.json", "golden.json"]
    registered.replies["mlflow-artifacts/artifacts"] = lambda query: json.dumps(
        {"files": [{"path": name} for name in names]}
    ).encode()
    models = follow(registered.url)
    models.poll()
    assert models.document(NAME)["state"] == "refused"
    assert not list(tmp_path.rglob("escaped"))


# --- the cache's own notes ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [
        {"folder": "../../etc"},
        {"folder": "/etc"},
        {"version": "../../x"},
        {"version": 1},
        {"name": "others"},
        {"name": "../x"},
        {"source": None},
        {"source": "x" * 10_000},
        {"hashes": {"a": 1}},
        {"hashes": "["},
        {"version": "9" * 400},
    ],
    ids=str,
)
def test_a_hostile_note_leaves_the_cache_at_most_unused(registered, follow, tmp_path, change):
    follow(registered.url).poll()
    note = tmp_path / "cache" / NAME / "current.json"
    note.write_text(json.dumps(json.loads(note.read_text()) | change))
    models = follow(registered.url, client=away)
    models.poll()
    assert [answer(models)] == [expected(INSTANCES[0], 1)] if "folder" in change else models.routes == {}
    models._client = MlflowRest(registered.url)
    models.poll()
    assert answer(models) == expected(INSTANCES[0], 1)


@pytest.mark.parametrize(
    "content", [b"[" * 100_000, b"\xff", b"x" * 2**21, b"[]", b"null"], ids=["deep", "no text", "long", "array", "null"]
)
def test_a_note_that_is_no_note_is_left(registered, follow, tmp_path, content):
    follow(registered.url).poll()
    (tmp_path / "cache" / NAME / "current.json").write_bytes(content)
    models = follow(registered.url, client=away)
    models.poll()
    assert models.routes == {}


@pytest.mark.parametrize("what", ["note", "version", "model"])
def test_links_in_the_cache_are_not_followed(registered, follow, tmp_path, what):
    follow(registered.url).poll()
    model = tmp_path / "cache" / NAME
    (version,) = [entry for entry in model.iterdir() if entry.is_dir()]
    place = {"note": model / "current.json", "version": version, "model": model}[what]
    place.rename(tmp_path / "elsewhere")
    place.symlink_to(tmp_path / "elsewhere")
    models = follow(registered.url, client=away)
    models.poll()
    assert models.routes == {}
    if what == "version":
        models._client = MlflowRest(registered.url)
        models.poll()
        assert answer(models) == expected(INSTANCES[0], 1) and not version.is_symlink()
    assert (tmp_path / "elsewhere").exists()


# --- entries of the registry ----------------------------------------------------------------------

ODD = [
    entry("others", "../../x"),
    entry("others", None),
    entry("others", {"a": 1}),
    entry("others", "1" * 400),
    entry("others", "٣"),
    entry("others", -1),
    entry("../others"),
    entry(None),
    entry(7),
    entry("\ud800"),
    entry("a" * 5000),
    entry("others", aliases="champion"),
    entry("others", aliases=[1, None, []]),
    entry("others", aliases=[{"alias": ["champion"], "version": 1}]),
    entry("others", tags=7),
    entry("others", tags=[{"key": 1}, {"key": "rollout", "value": 7}]),
    entry("others", creation_timestamp={"a": []}),
    entry("others", creation_timestamp="soon"),
    {},
    [],
    None,
    "others",
    7,
    [[[]]],
    entry("others", tags=[{"key": "rollout", "value": "[" * 100_000}]),
    entry("others", tags=[{"key": "x", "value": "y" * 9 * 2**20}]),
]


@pytest.mark.parametrize("odd", ODD, ids=lambda odd: repr(odd)[:60])
def test_an_odd_entry_hides_no_other_model(registered, follow, odd):
    registered.entries = [entry(f"model_{number}", None, aliases=[]) for number in range(120)] + registered.entries
    registered.entries.insert(37, odd)
    models = follow(registered.url)
    models.poll()
    assert answer(models) == expected(INSTANCES[0], 1)
    assert models.error is None
    for name in models.models:
        json.dumps(models.document(name), ensure_ascii=False).encode()
    json.dumps(models.status(), ensure_ascii=False).encode()


def test_named_models_are_read_one_by_one(registered, follow):
    large = ("large_a", "large_b", "large_c", "large_d")
    registered.entries += [entry(name, tags=[{"key": "x", "value": "y" * 9 * 2**20}]) for name in large]
    models = follow(registered.url, names=(*large, NAME))
    models.poll()
    assert answer(models) == expected(INSTANCES[0], 1)
    assert ({models.document(name)["state"] for name in large}, models.error) == ({"error"}, None)


@pytest.mark.parametrize(
    "fields",
    [{"source": 7}, {"source": "\ud800"}, {"source": None}, {"tags": [{"key": "bundle_sha256", "value": 7}]}],
    ids=str,
)
def test_an_odd_version_concerns_its_own_model(registered, follow, tmp_path, fields):
    registered.add("others", write_bundle(tmp_path / "others", contract={"project": "others"}))
    registered.versions["others"] = fields
    models = follow(registered.url)
    models.poll()
    assert answer(models) == expected(INSTANCES[0], 1)
    assert models.document("others")["state"] == "error"
