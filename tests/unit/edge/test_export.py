"""A trained model is exported as one signed file with the same predictions as serving.

The other environment contains only onnxruntime.
"""

import json
import os
import subprocess
import sys
import zipfile
from importlib.metadata import version as installed
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from include import cli
from include.edge import export, signing
from include.registry import versions
from include.training.bundle import Bundle
from tests.serving.harness import FeatureRepository, serving_process

# A real training with a real MLflow.
from tests.unit.training.test_steps import home, made, request_for, rows, trained  # noqa: F401
from tests.waiting import wait_for

GARBAGE = b"no archive at all" * 10


@pytest.fixture(scope="module")
def project(home, rows):  # noqa: F811
    """Train the project. Its first version is champion."""
    chosen = made()
    trained(chosen, request_for(chosen), rows)
    versions.move_alias(chosen, versions.CHAMPION, "1")
    return chosen


@pytest.fixture(scope="module")
def exported(project, tmp_path_factory):
    return export.export(project, folder=tmp_path_factory.mktemp("edge"))


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory):
    """Return the Python of a new environment with onnxruntime and its dependencies."""
    folder = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True, timeout=300)
    python = folder / "bin" / "python"
    try:
        wanted = f"onnxruntime=={installed('onnxruntime')}"
        made = subprocess.run(
            [python, "-m", "pip", "install", "--quiet", wanted], capture_output=True, text=True, timeout=500
        )
    except subprocess.TimeoutExpired:
        pytest.skip("onnxruntime cannot be installed into an environment of its own: no answer from the package index")
    if made.returncode:
        pytest.skip(
            f"onnxruntime cannot be installed into an environment of its own: {made.stderr.strip().splitlines()[-1]}"
        )
    there = subprocess.run([python, "-c", "import pandas"], capture_output=True)
    assert there.returncode, "the environment is to hold nothing else"
    return python


def client(python, folder: Path, bundle: Path, key: Path, instances: list[dict]) -> subprocess.CompletedProcess:
    with zipfile.ZipFile(bundle) as files:
        for name in ("client.py", "ed25519.py"):
            (folder / name).write_bytes(files.read(name))
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    return subprocess.run(
        [python, folder / "client.py", bundle, key],
        input=json.dumps(instances),
        capture_output=True,
        text=True,
        env=environment,
        cwd=folder,
        timeout=300,
    )


def random_instances(project, count: int) -> list[dict]:
    random = np.random.default_rng(3)
    some = []
    for _ in range(count):
        row = {
            name: None if random.uniform() < 0.2 else float(random.normal(scale=30)) for name in project.inputs.numeric
        }
        some.append(
            {
                **row,
                "origin": random.choice(["JFK", "EWR", "", "somewhere"]).item() or None,
                "carrier": random.choice(["B6", "UA", "?"]).item(),
            }
        )
    return some


def test_what_it_holds_and_that_the_same_version_gives_the_same_bytes(project, exported, tmp_path):
    assert exported.bundle.name == f"{project.name}-1.edge.zip" and exported.version == "1"
    manifest = export.verify(exported.bundle, exported.public_key)
    version = versions.get_version(project, "1")
    fields = ("format", "project", "version", "candidate", "cutoff", "gate")
    assert {name: manifest[name] for name in fields} == {
        "format": 1,
        "project": project.name,
        "version": "1",
        "candidate": "trees",
        "cutoff": version.tags["cutoff"],
        "gate": "passed",
    }
    with zipfile.ZipFile(exported.bundle) as files:
        assert sorted(files.namelist()) == [
            "client.py",
            "contract.json",
            "ed25519.py",
            "golden.json",
            "manifest.json",
            "model.onnx",
        ]
        assert files.testzip() is None
    again = export.export(project, "1", tmp_path)
    assert again.bundle.read_bytes() == exported.bundle.read_bytes()
    assert "PRIVATE" not in exported.public_key.read_text()


def test_any_changed_byte_is_refused(exported):
    whole, key = exported.bundle.read_bytes(), exported.public_key.read_bytes()
    for place in range(len(whole)):
        with pytest.raises(signing.SignatureError):
            signing.check(
                whole[:place] + bytes([whole[place] ^ (1 << place % 8)]) + whole[place + 1 :],
                key,
                name="b",
                key_name="k",
            )


@pytest.mark.stack
def test_elsewhere_it_predicts_what_serving_predicts(project, exported, elsewhere, home, tmp_path):  # noqa: F811
    golden = Bundle.load(versions.bundle(project, "1")).golden
    instances = golden["instances"] + random_instances(project, 300)
    asked = client(elsewhere, tmp_path, exported.bundle, exported.public_key, instances)
    assert asked.returncode == 0, asked.stderr
    there = json.loads(asked.stdout)
    assert np.allclose(there[: len(golden["instances"])], golden["predictions"], atol=golden["tolerance"])

    service = serving_process(
        tmp_path, f"sqlite:///{home / 'mlflow.db'}", FeatureRepository(tmp_path), models=project.name
    )
    try:
        wait_for(
            lambda: (response := service.get(f"/models/{project.name}"))[0] == 200 and response[1]["version"] == "1",
            300,
            lambda: service.log.read_text()[-3000:],
        )
        status, answer = service.get(f"/models/{project.name}/predict", {"instances": instances}, timeout=60)
    finally:
        service.end()
    assert status == 200
    assert [p["prediction"] for p in answer["predictions"]] == there


@pytest.mark.stack
def test_elsewhere_a_bundle_that_is_damaged_or_unsigned_or_of_somebody_else_is_refused(exported, elsewhere, tmp_path):
    whole = exported.bundle.read_bytes()
    with zipfile.ZipFile(exported.bundle) as files:
        for name in ("client.py", "ed25519.py"):
            (tmp_path / name).write_bytes(files.read(name))
    tries = {
        f"changed-{place}.zip": whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :]
        for place in np.linspace(0, len(whole) - 1, 40).astype(int)
    }
    tries |= {"comment.zip": whole[:-64] + bytes(64), "short.zip": whole[:-1], "garbage.zip": GARBAGE}
    for name, content in tries.items():
        (tmp_path / name).write_bytes(content)
    script = """
import sys
from client import BundleRefusedError, Model
for bundle in sys.argv[2:]:
    try:
        Model(bundle, sys.argv[1])
    except BundleRefusedError as error:
        print(error)
Model(sys.argv[2].rpartition("/")[0] + "/whole.zip", sys.argv[1])
"""
    (tmp_path / "whole.zip").write_bytes(whole)
    (tmp_path / "tries.py").write_text(script)
    ran = subprocess.run(
        [elsewhere, "tries.py", exported.public_key, *(tmp_path / name for name in tries)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert ran.returncode == 0, ran.stderr
    lines = ran.stdout.splitlines()
    assert len(lines) == len(tries)
    assert all(
        str(tmp_path / name) in line and ("is damaged" in line or "is not signed" in line)
        for name, line in zip(tries, lines, strict=True)
    )
    assert "is not signed" in lines[-1]


def test_a_version_whose_files_are_not_those_that_were_registered_is_not_exported(project, tmp_path, monkeypatch):
    other = Bundle.load(versions.bundle(project, "1"))
    other.contract["kind"] = "regression"
    monkeypatch.setattr(export.Bundle, "load", lambda _: other)
    with pytest.raises(export.ExportError, match="contract.json is not the file that was registered"):
        export.export(project, "1", tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_what_is_not_there_is_named(project, tmp_path):
    with pytest.raises(export.ExportError, match=f"project {project.name} has no version 7"):
        export.export(project, "7", tmp_path)
    with pytest.raises(export.ExportError, match="has no version one"):
        export.export(project, "one", tmp_path)
    with pytest.raises(export.ExportError, match="has no champion to export"):
        export.export(made(), None, tmp_path)


def test_the_commands(project, exported, tmp_path, monkeypatch):
    monkeypatch.setattr("include.projects.get_project", lambda _: project)
    ran = CliRunner().invoke(cli.app, ["export", project.name, "--into", str(tmp_path)])
    assert ran.exit_code == 0 and f"{project.name}-1.edge.zip: version 1" in ran.output
    bundle, key = tmp_path / f"{project.name}-1.edge.zip", tmp_path / "airloop-edge.pem"
    ran = CliRunner().invoke(cli.app, ["verify", str(bundle), "--key", str(key)])
    assert ran.exit_code == 0 and json.loads(ran.output)["version"] == "1"
    bundle.write_bytes(bundle.read_bytes()[:-1] + b"!")
    ran = CliRunner().invoke(cli.app, ["verify", str(bundle), "--key", str(key)])
    assert ran.exit_code == 2 and "is damaged, or not signed with the key of" in ran.output


def test_the_client_is_short():
    lines = (Path(export.__file__).parent / "client" / "client.py").read_text().splitlines()
    assert len(lines) <= 55
