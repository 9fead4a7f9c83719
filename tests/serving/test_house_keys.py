"""The file of keys contains Airloop's keys as hashes next to other callers' keys."""

import json

import pytest

from serving import house_keys, keys

GIVEN = {"AIRLOOP_SERVING_API_KEY": "airloop_of-the-house", "SERVING_METRICS_KEY": "airloop_of-prometheus"}


def test_the_house_s_keys_are_put_beside_others_and_changed_without_touching_them(tmp_path):
    file = tmp_path / "keys.json"
    house_keys.put(file, GIVEN)
    assert {key.name: key.roles for key in keys.read(file).keys} == {
        "airloop": ("predict", "feedback"),
        "prometheus": ("metrics",),
    }
    assert not any(secret in file.read_text() for secret in GIVEN.values()) and file.stat().st_mode & 0o077 == 0
    keys.create(file, "checkout", ["predict"], rate=5)
    checkout = next(key for key in keys.read(file).keys if key.name == "checkout")

    house_keys.put(file, GIVEN | {"SERVING_METRICS_KEY": "airloop_another-one"})
    now = {key.name: key for key in keys.read(file).keys}
    assert now["checkout"] == checkout and now["prometheus"].sha256 == keys.digest(b"airloop_another-one")
    before = file.stat().st_mtime_ns
    house_keys.put(file, GIVEN | {"SERVING_METRICS_KEY": "airloop_another-one"})
    # Unchanged: serving need not read it again.
    assert file.stat().st_mtime_ns == before


@pytest.mark.parametrize("given", [{}, {**GIVEN, "SERVING_METRICS_KEY": "short"}])
def test_a_missing_key_is_named_and_nothing_is_written(given, tmp_path, monkeypatch, capsys):
    for name in house_keys.HOUSE:
        monkeypatch.delenv(name, raising=False)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    assert house_keys.main([str(tmp_path / "keys.json")]) == 1
    assert "SERVING_METRICS_KEY" in capsys.readouterr().err and list(tmp_path.iterdir()) == []


def test_a_file_that_is_none_is_left_alone(tmp_path):
    file = tmp_path / "keys.json"
    file.write_text(json.dumps({"keys": "?"}))
    with pytest.raises(keys.KeysError, match="keys"):
        house_keys.put(file, GIVEN)
    assert json.loads(file.read_text()) == {"keys": "?"}
