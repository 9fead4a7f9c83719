"""Helm for tests: its program, and what it makes of a chart. The program is named by AIRLOOP_TEST_HELM, or found on the PATH."""

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import yaml

from include.settings import REPOSITORY

PROGRAM = os.environ.get("AIRLOOP_TEST_HELM") or shutil.which("helm")
MISSING = "no helm: put it on the PATH, or name it in AIRLOOP_TEST_HELM"
CHARTS = REPOSITORY / "deploy" / "helm"
CHART = CHARTS / "airloop"
SITE = CHART / "site.example.yaml"  # the least that a site has to say


class HelmError(RuntimeError):
    """What helm refused, in its own words."""


def helm(*arguments: str | Path, stdin: str | None = None, timeout: float = 120, environment: dict[str, str] | None = None) -> str:
    """What helm prints.

    Raises:
        HelmError.
    """
    assert PROGRAM, MISSING
    done = subprocess.run(
        [PROGRAM, *map(str, arguments)], input=stdin, capture_output=True, text=True, timeout=timeout, check=False, env={**os.environ, **(environment or {})}
    )
    if done.returncode:
        raise HelmError(done.stdout + done.stderr)
    return done.stdout


def values_file(values: dict[str, Any]) -> tuple[str, ...]:
    """Arguments that say values, of any depth and type."""
    return tuple(part for name, value in values.items() for part in ("--set-json", f"{name}={json.dumps(value)}"))


def render(values: dict[str, Any] | None = None, *, chart: Path = CHART, site: Path = SITE, namespace: str = "ml") -> list[dict[str, Any]]:
    """The objects of a release named ``loop``. ``values``: dotted name -> value, on top of the site's file."""
    text = helm("template", "loop", chart, "--namespace", namespace, "--values", site, *values_file(values or {}))
    return [found for found in yaml.safe_load_all(text) if found]


def one(objects: list[dict[str, Any]], kind: str, name: str | None = None) -> dict[str, Any]:
    """The one object of a kind (and name)."""
    found = [o for o in objects if o["kind"] == kind and (name is None or o["metadata"]["name"] == name)]
    assert len(found) == 1, f"{len(found)} of {kind} {name or ''}: {[(o['kind'], o['metadata']['name']) for o in objects]}"
    return found[0]
