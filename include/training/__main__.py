"""The training container's entry point: ``python -m include.training fit|evaluate|refit``.

Arguments are references only (names, URIs, ids); what was made is a manifest at the URI that the caller gives. A step that finds its
finished manifest there, made from the same inputs, does nothing.
"""

import argparse
import logging
import os
import subprocess
import time
from collections.abc import Sequence

from threadpoolctl import threadpool_limits

from include.settings import REPOSITORY, get_settings

# Before numpy is imported, for libraries that are loaded later; threads that spin while they wait for contended cores crawl.
os.environ |= {"OMP_NUM_THREADS": str(get_settings().training_threads), "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"}


def main(arguments: Sequence[str] | None = None) -> None:
    began = time.monotonic()
    threadpool_limits(get_settings().training_threads, user_api="openmp")  # where a warm parent has loaded the libraries already
    given = vars(_parser().parse_args(arguments))
    command, project_name = given.pop("command"), given.pop("project")
    logging.basicConfig(level=logging.INFO, format="%(message)s")

    from include.projects import get_project
    from include.training.manifest import finished

    project = get_project(project_name)
    recipe = project.model_dump(mode="json", include={"kind", "inputs", "baseline_rule", "candidates", "gate", "metric", "refit"})
    made_from = {"step": command, "recipe": recipe, **{k: v for k, v in given.items() if k not in {"manifest", "report", "dag_run"}}}
    if finished(given["manifest"], made_from):
        print(f"{command}: finished before; nothing to do ({given['manifest']})")
        return

    from include.training import steps

    getattr(steps, command)(project, made_from=made_from, git_sha=git_sha(), **given)
    print(f"{command}: done in {time.monotonic() - began:.1f} s, {given['manifest']}")


def git_sha() -> str:
    """The commit that this code is at, or "unknown" where there is no repository (an image)."""
    found = subprocess.run(["git", "rev-parse", "HEAD"], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    return found.stdout.strip() if found.returncode == 0 else "unknown"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m include.training", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    fit = commands.add_parser("fit", help="fit one candidate on what was known before the judged rows")
    fit.add_argument("--candidate", required=True, help="name of a candidate of the project, or baseline_rule")
    fit.add_argument("--champion-fitted-until", help="time up to which the champion was fitted; none: there is no champion")
    evaluate = commands.add_parser("evaluate", help="judge all candidates, the champion and the baseline on the same rows")
    evaluate.add_argument("--fits", nargs="+", required=True, help="URIs of the candidates' manifests")
    evaluate.add_argument("--champion", help="models:/<name>/<version> of the champion; none: there is no champion")
    evaluate.add_argument("--champion-fitted-until", help="time up to which the champion was fitted")
    refit = commands.add_parser("refit", help="log the model to deploy: the best candidate, fitted again on all rows if it passed the gate")
    refit.add_argument("--evaluation", required=True, help="URI of the evaluation's manifest")
    refit.add_argument("--verdict", required=True, help="URI of the gate's verdict")
    for command in (fit, evaluate, refit):
        command.add_argument("--project", required=True)
        command.add_argument("--request", required=True, help="id of the retrain request")
        command.add_argument("--training-set", required=True, help="URI of the training set")
        command.add_argument("--manifest", required=True, help="URI at which to write what was made")
        command.add_argument("--report", help="folder for a page for people")
        command.add_argument("--dag-run", default="", help="the Airflow run, for the record")
    return parser


if __name__ == "__main__":
    main()
