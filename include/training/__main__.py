"""The training container's entry point: ``python -m include.training trial|fit|evaluate|refit``.

Arguments are references only (names, URIs, ids). The result is a manifest at the URI that the
caller gives. If a finished manifest from the same inputs exists there, the step does nothing.
"""

import argparse
import logging
import os
import sys
import time
import traceback
from collections.abc import Sequence
from contextlib import nullcontext

from threadpoolctl import threadpool_limits

from include.outages import EX_DATAERR, EX_UNAVAILABLE, outage_of, will_fail_again
from include.settings import get_settings, git_sha

# Set before numpy is imported, because libraries read it when they are loaded. Threads that
# busy-wait on contended cores are very slow.
os.environ |= {
    "OMP_NUM_THREADS": str(get_settings().training_threads),
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "OMP_WAIT_POLICY": "passive",
}


def main(arguments: Sequence[str] | None = None) -> None:
    began = time.monotonic()
    # Needed if a warm parent process has already loaded the libraries.
    threadpool_limits(get_settings().training_threads, user_api="openmp")
    given = vars(_parser().parse_args(arguments))
    command, project_name = given.pop("command"), given.pop("project")
    launched_by, meeting = given.pop("launched_by"), given.pop("meeting")
    logging.basicConfig(level=logging.INFO, format="%(message)s")

    from include.projects import get_project
    from include.training import workers
    from include.training.checkpoint import Checkpoints
    from include.training.manifest import finished, read

    if launched_by:
        workers.die_with(launched_by)
    project = get_project(project_name)
    recipe = project.model_dump(
        mode="json", include={"kind", "inputs", "baseline_rule", "candidates", "gate", "metric", "refit", "lookup"}
    )
    made_from = {
        "step": command,
        "recipe": recipe,
        **{k: v for k, v in given.items() if k not in {"manifest", "report", "dag_run"}},
    }
    if given.get("parameters"):
        made_from["proposed"] = read(given["parameters"])["parameters"]
    if finished(given["manifest"], made_from):
        Checkpoints.from_manifest(given["manifest"]).remove()  # a kill may have come in between
        print(f"{command}: finished before; nothing to do ({given['manifest']})")
        return

    from include.training import candidates, launch, steps

    candidate = candidates.fitted_candidate(project, command, given)
    if candidate and candidate.workers > 1 and not launched_by:
        try:
            launch.launch(sys.argv[1:] if arguments is None else arguments, candidate)
        except launch.WorkersFailedError as error:
            print(f"{type(error).__name__}: {error}", flush=True)
            sys.exit(error.exit_code)
        return

    with (
        workers.joined(candidate, meeting)
        if candidate and launched_by
        else nullcontext(workers.SINGLE_WORKER) as present
    ):
        getattr(steps, command)(project, made_from=made_from, git_sha=git_sha(), **given)
    if not present.first:
        return
    Checkpoints.from_manifest(given["manifest"]).remove()
    print(f"{command}: done in {time.monotonic() - began:.1f} s, {given['manifest']}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m include.training", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    trial = commands.add_parser("trial", help="try parameters that a search proposes, on the rows of the fit alone")
    trial.add_argument("--trial", type=int, required=True, help="its place among the candidate's trials")
    trial.add_argument("--parameters", required=True, help="URI of the proposed parameters")
    fit = commands.add_parser("fit", help="fit one candidate on what was known before the judged rows")
    fit.add_argument("--parameters", help="URI of the parameters that a search ended with; none: the candidate's own")
    for command in (trial, fit):
        command.add_argument("--candidate", required=True, help="name of a candidate of the project, or baseline_rule")
        command.add_argument(
            "--champion-fitted-until", help="time up to which the champion was fitted; none: there is no champion"
        )
    evaluate = commands.add_parser(
        "evaluate", help="judge all candidates, the champion and the baseline on the same rows"
    )
    evaluate.add_argument("--fits", nargs="+", required=True, help="URIs of the candidates' manifests")
    evaluate.add_argument("--champion", help="models:/<name>/<version> of the champion; none: there is no champion")
    evaluate.add_argument("--champion-fitted-until", help="time up to which the champion was fitted")
    refit = commands.add_parser(
        "refit", help="log the model to deploy: the best candidate, fitted again on all rows if it passed the gate"
    )
    refit.add_argument("--evaluation", required=True, help="URI of the evaluation's manifest")
    refit.add_argument("--verdict", required=True, help="URI of the gate's verdict")
    for command in (trial, fit, evaluate, refit):
        command.add_argument("--project", required=True)
        command.add_argument("--request", required=True, help="id of the retrain request")
        command.add_argument("--training-set", required=True, help="URI of the training set")
        command.add_argument("--manifest", required=True, help="URI at which to write what was made")
        command.add_argument("--report", help="folder for a page for people")
        command.add_argument("--dag-run", default="", help="the Airflow run, for the record")
        # For one of several workers; see include.training.launch.
        command.add_argument("--launched-by", type=int, help=argparse.SUPPRESS)
        command.add_argument("--meeting", help=argparse.SUPPRESS)
    return parser


def _run() -> None:
    try:
        main()
    except Exception as error:
        code = EX_UNAVAILABLE if outage_of(error) else EX_DATAERR if will_fail_again(error) else None
        if code is None:
            raise
        traceback.print_exc()
        sys.exit(code)


if __name__ == "__main__":
    _run()
