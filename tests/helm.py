"""Run Helm and inspect the objects that a chart renders.

``AIRLOOP_TEST_HELM`` names the program. Without it, the program is looked up on the PATH.
"""

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
SITE = CHART / "site.example.yaml"  # the minimum a site must set


class HelmError(RuntimeError):
    """Raised when helm fails, with helm's output."""


def helm(
    *arguments: str | Path, stdin: str | None = None, timeout: float = 120, environment: dict[str, str] | None = None
) -> str:
    """Run helm and return its output.

    Raises:
        HelmError: if helm exits with an error.
    """
    assert PROGRAM, MISSING
    done = subprocess.run(
        [PROGRAM, *map(str, arguments)],
        input=stdin,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
        env={**os.environ, **(environment or {})},
    )
    if done.returncode:
        raise HelmError(done.stdout + done.stderr)
    return done.stdout


def values_file(values: dict[str, Any]) -> tuple[str, ...]:
    """Return helm arguments for values of any depth and type."""
    return tuple(part for name, value in values.items() for part in ("--set-json", f"{name}={json.dumps(value)}"))


def render(
    values: dict[str, Any] | None = None, *, chart: Path = CHART, site: Path = SITE, namespace: str = "ml"
) -> list[dict[str, Any]]:
    """Return the objects of a release named ``loop``.

    ``values`` maps dotted names to values, and overrides the site's file.
    """
    text = helm("template", "loop", chart, "--namespace", namespace, "--values", site, *values_file(values or {}))
    return [manifest for manifest in yaml.safe_load_all(text) if manifest]


def one(objects: list[dict[str, Any]], kind: str, name: str | None = None) -> dict[str, Any]:
    """Return the only object of a kind (and name)."""
    matches = [o for o in objects if o["kind"] == kind and (name is None or o["metadata"]["name"] == name)]
    assert len(matches) == 1, (
        f"{len(matches)} of {kind} {name or ''}: {[(o['kind'], o['metadata']['name']) for o in objects]}"
    )
    return matches[0]
