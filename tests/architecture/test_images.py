"""Static checks of the images' locks and Dockerfiles. tests/images builds the images.

The last tests show that each check can fail.
"""

import ast
import os
import re
import shlex
import shutil
import subprocess
import sys
from functools import cache
from importlib.metadata import distribution, packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from include.settings import REPOSITORY, TELEMETRY_OFF

pytestmark = pytest.mark.slow

IMAGES = ("airflow", "mlflow", "serving", "training")
OURS = {"config", "dags", "feature_repo", "include", "plugins", "serving"}
FIRST_PARTY = OURS - {"dags", "plugins", "config"}  # the packages among them
# Distributions that an image must not contain, by name prefix.
FOREIGN = {
    "airflow": ("torch", "onnx==", "skl2onnx", "pytest", "ruff"),
    "mlflow": ("apache-airflow", "torch", "onnx==", "feast", "great-expectations", "evidently", "pytest"),
    "serving": ("apache-airflow", "torch", "scikit-learn", "onnx==", "great-expectations", "evidently"),
    "training": ("apache-airflow", "feast", "great-expectations", "evidently", "kubernetes", "pytest", "ruff"),
}
# Modules at which an image's programs begin. None means all of its files.
ENTRIES = {
    "airflow": None,
    "mlflow": ("include.stack.component", "include.stack.health"),
    "serving": None,
    "training": ("include.training.__main__", "include.projects.*"),
}
# Libraries of the training steps, which do not run in the Airflow image with
# AIRLOOP_COMPUTE=kubernetes. Only those steps may import them.
STEPS_ONLY = {"onnx", "skl2onnx", "torch"}
# (image, module) -> imports in functions of the module that are never called in that image.
FOR_OTHERS = {
    # It migrates MLflow's database, not the other stores.
    ("mlflow", "include.stack.stores.migrations"): {"airflow", "feast", "include"},
    ("mlflow", "include.stack.stores.pools"): {"include", "kubernetes"},  # for Airflow's database
    # In a bundle, where the client runs, the module is next to it.
    ("airflow", "include.edge.client.client"): {"ed25519"},
    # Pods are given their secrets and do not read any themselves.
    ("training", "include.secrets_manager"): {"boto3"},
}

# Imports all our modules and prints the missing ones. It runs in the Airflow image (tests/images),
# or in this environment with STEPS_ONLY hidden.
IMPORTS = """
import importlib, os, pkgutil
import feature_repo, include
from include.settings import get_settings
os.environ.update(get_settings().feast_environment)  # Feast's modules want them, as they are imported
lacking = []
for package in (feature_repo, include):
    for found in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        try:
            importlib.import_module(found.name)
        except ModuleNotFoundError as error:
            lacking.append((found.name, error.name))
print(lacking)
wrong = [one for one in lacking if not one[0].startswith("include.training.") or one[1] not in ("torch", "onnx", "skl2onnx")]
raise SystemExit(str(wrong) if wrong else 0)
"""  # noqa: E501
UNKNOWN = """
import sys
class Unknown:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in %r:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Unknown())
"""


# --- the locks ------------------------------------------------------------------------------------


def pins(lock: Path) -> dict[str, str]:
    """Return name -> version."""
    lines = (line.partition("#")[0].strip() for line in lock.read_text().splitlines())
    return dict(re.fullmatch(r"([a-z0-9-]+)==([^\s;]+)", line).groups() for line in lines if line)


def differing_pins(root: Path, image: str) -> dict[str, tuple[str, str | None]]:
    """Return name -> (version in the lock, version in requirements.txt) where they differ."""
    whole = pins(root / "requirements.txt")
    return {
        name: (version, whole.get(name))
        for name, version in pins(lock_of(root, image)).items()
        if whole.get(name) != version
    }


def lock_of(root: Path, image: str) -> Path:
    return root / "deploy/images" / image / "requirements.txt"


def wanted(root: Path, image: str) -> set[str]:
    """Return the requirements of the image's requirements.in and their dependencies.

    The dependencies are those of the distributions installed here.
    """
    lines = (
        line.partition("#")[0].strip()
        for line in (root / "deploy/images" / image / "requirements.in").read_text().splitlines()
    )
    todo = [
        (canonicalize_name(r.name), extra) for r in map(Requirement, filter(None, lines)) for extra in ("", *r.extras)
    ]
    seen: set[tuple[str, str]] = set()
    while todo:
        name, extra = one = todo.pop()
        if one not in seen:
            seen.add(one)
            todo += _requirements(name, extra)
    # The choice of CUDA libraries depends on the build of torch and on the image.
    return {name for name, _ in seen if not name.startswith(("nvidia-", "cuda-", "triton"))}


@cache
def _requirements(name: str, extra: str) -> list[tuple[str, str]]:
    needed = map(Requirement, distribution(name).requires or ())
    # The locks are for all versions of 3.11, including Debian 12's 3.11.2.
    every_3_11 = {"extra": extra, "python_full_version": "3.11.0"}
    applies = (r for r in needed if r.marker is None or r.marker.evaluate(every_3_11))
    return [(canonicalize_name(r.name), e) for r in applies for e in ("", *r.extras)]


@pytest.mark.parametrize("image", IMAGES)
def test_a_lock_has_the_pins_of_the_whole_and_is_smaller(image):
    assert differing_pins(REPOSITORY, image) == {}
    assert len(pins(lock_of(REPOSITORY, image))) < len(pins(REPOSITORY / "requirements.txt"))


@pytest.mark.parametrize("image", IMAGES)
def test_a_lock_holds_what_its_requirements_need_and_no_more(image):
    locked = set(pins(lock_of(REPOSITORY, image)))
    needed = wanted(REPOSITORY, image)
    assert (needed - locked, locked - needed) == (set(), set()), "compile it again: make images-lock"


def foreign(root: Path, image: str) -> list[str]:
    lines = (f"{name}=={version}" for name, version in pins(lock_of(root, image)).items())
    return [line for line in lines if line.startswith(FOREIGN[image])]


@pytest.mark.parametrize("image", IMAGES)
def test_an_image_holds_nothing_of_the_others(image):
    assert foreign(REPOSITORY, image) == []


# --- files in the images, and their imports -------------------------------------------------------


def dockerfile(root: Path, image: str) -> str:
    return (root / "deploy/images" / image / "Dockerfile").read_text().replace("\\\n", " ")


def copied(root: Path, image: str) -> set[str]:
    """Return the Python files that the image's Dockerfile copies to /app.

    The paths are relative to the repository.
    """
    lines = [shlex.split(line)[1:] for line in dockerfile(root, image).splitlines() if line.startswith("COPY ")]
    sources = [
        root / source
        for line in lines
        if line[-1].startswith("/app") and not line[0].startswith("--from")
        for source in line[:-1]
    ]
    assert sources and all(source.exists() for source in sources), sources
    files = [file for source in sources for file in ([source] if source.is_file() else source.rglob("*.py"))]
    return {str(file.relative_to(root)) for file in files}


def missing(root: Path, image: str) -> list[str]:
    """Describe imports of the image's programs, also in functions, that the image lacks."""
    files, locked = copied(root, image), set(pins(lock_of(root, image)))
    modules = {file.removesuffix(".py").replace("/", ".").removesuffix(".__init__"): file for file in files}
    starts = ENTRIES[image] or tuple(modules)
    todo = [
        m
        for m in modules
        for start in starts
        if m == start or (start.endswith("*") and re.fullmatch(re.escape(start)[:-2] + r"[^.]*", m))
    ]
    seen, faults = set(), []
    while todo:
        module = todo.pop()
        if module in seen:
            continue
        seen.add(module)
        for name, must_be_module in _imports(root / modules[module]):
            top = name.partition(".")[0]
            if top in FOR_OTHERS.get((image, module), ()) and name not in modules:
                continue
            if top in FIRST_PARTY:
                parents = [name.rsplit(".", n)[0] for n in range(name.count(".") + 1)]
                local_modules = [m for m in parents if m in modules]
                todo += local_modules
                if must_be_module and name not in modules:
                    faults.append(f"{module} imports {name}, which is not copied")
            elif top not in sys.stdlib_module_names and not _locked(top, locked, image, module):
                faults.append(f"{module} imports {top}, which is not locked")
    return sorted(set(faults))


def _locked(top: str, locked: set[str], image: str, module: str) -> bool:
    if image == "airflow" and top in STEPS_ONLY and module.startswith("include.training."):
        return True
    return bool({canonicalize_name(name) for name in _providers().get(top, ())} & locked)


@cache
def _providers() -> dict[str, list[str]]:
    return dict(packages_distributions())


def _imports(file: Path) -> list[tuple[str, bool]]:
    """Return (dotted name, whether it must be a module). In ``from a import b``, b may be one."""
    imports = []
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            imports += [(name.name, True) for name in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            imports += [(node.module, True), *((f"{node.module}.{name.name}", False) for name in node.names)]
            package = REPOSITORY / node.module.replace(".", "/")
            imports += [
                (f"{node.module}.{n.name}", True)
                for n in node.names
                if (package / f"{n.name}.py").exists() or (package / n.name).is_dir()
            ]
    return imports


@pytest.mark.parametrize("image", IMAGES)
def test_an_image_has_all_that_its_programs_import(image):
    assert missing(REPOSITORY, image) == []


# --- the Dockerfiles ------------------------------------------------------------------------------


def test_all_images_are_of_one_base_by_its_digest():
    bases = {re.search(r"^ARG BASE=(.*)$", dockerfile(REPOSITORY, image), re.M).group(1) for image in IMAGES}
    assert len(bases) == 1
    assert re.fullmatch(r"python:3\.11\.\d+-slim-bookworm@sha256:[0-9a-f]{64}", bases.pop())


@pytest.mark.parametrize("image", IMAGES)
def test_an_image_is_built_in_stages_and_runs_as_nobody(image):
    text = dockerfile(REPOSITORY, image)
    assert len(re.findall(r"^FROM \$\{BASE\}", text, re.M)) == 2
    # A number: kubelet cannot determine whether a name is root.
    assert re.findall(r"^USER (.*)$", text.rpartition("\nFROM ")[2], re.M) == ["10001:10001"]
    uv = re.search(r"^UV_VERSION := (.*)$", (REPOSITORY / "Makefile").read_text(), re.M).group(1)
    assert f"ARG UV_VERSION={uv}\n" in text


@pytest.mark.parametrize("image", IMAGES)
def test_nothing_in_an_image_phones_home(image):
    variables = dict(re.findall(r"\b([A-Z_]+)=(\S+)", dockerfile(REPOSITORY, image).rpartition("\nENV ")[2]))
    assert {name: variables.get(name) for name in TELEMETRY_OFF} == TELEMETRY_OFF


# --- each check can fail --------------------------------------------------------------------------


@pytest.fixture
def copy(tmp_path):
    for folder in sorted(OURS | {"deploy"}):
        shutil.copytree(REPOSITORY / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(REPOSITORY / "requirements.txt", tmp_path)
    return tmp_path


def edit(file: Path, old: str, new: str) -> None:
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new))


def test_another_pin_is_seen(copy):
    edit(lock_of(copy, "training"), f"numpy=={pins(copy / 'requirements.txt')['numpy']}\n", "numpy==1.0\n")
    assert list(differing_pins(copy, "training")) == ["numpy"]


def test_a_stale_lock_is_seen(copy):
    before = wanted(copy, "training")
    with (copy / "deploy/images/training/requirements.in").open("a") as file:
        file.write("feast\n")
    assert "feast" in wanted(copy, "training") - before


def test_airflow_in_the_training_lock_is_seen(copy):
    with lock_of(copy, "training").open("a") as file:
        file.write("apache-airflow-task-sdk==1.3.2\n")
    assert foreign(copy, "training") == ["apache-airflow-task-sdk==1.3.2"]


@pytest.mark.parametrize(
    "file, line, fault",
    [
        ("include/training/metrics.py", "import feast", "include.training.metrics imports feast, which is not locked"),
        (
            "include/training/metrics.py",
            "from include.registry import gate",
            "include.training.metrics imports include.registry, which is not copied",
        ),
        (
            "include/settings/model.py",
            "from airflow.sdk import task",
            "include.settings.model imports airflow, which is not locked",
        ),
    ],
)
def test_a_missing_import_is_seen(file, line, fault, copy):
    with (copy / file).open("a") as text:
        text.write(f"\n\ndef late():\n    {line}\n")
    assert fault in missing(copy, "training")


def test_a_file_that_is_not_copied_is_seen(copy):
    edit(copy / "deploy/images/training/Dockerfile", "include/times.py ", "")
    assert "include.training.steps imports include.times, which is not copied" in missing(copy, "training")


def test_torch_outside_the_training_steps_is_seen(copy):
    with (copy / "include/monitoring/drift.py").open("a") as text:
        text.write("\n\ndef late():\n    import torch\n")
    assert missing(copy, "airflow") == ["include.monitoring.drift imports torch, which is not locked"]


def test_nothing_but_training_steps_needs_their_libraries(tmp_path):
    """Only training steps need their libraries.

    Static analysis shows direct imports of onnx, but not indirect ones. Therefore everything is
    imported without it.
    """
    done = subprocess.run(
        [sys.executable, "-c", UNKNOWN % (STEPS_ONLY,) + IMPORTS],
        env={**os.environ, "AIRLOOP_HOME": str(tmp_path), "PYTHONPATH": str(REPOSITORY)},
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "include.training.onnx" in done.stdout, "nothing was missed: they were there"
