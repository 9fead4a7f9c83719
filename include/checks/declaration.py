"""Compare a project's declaration with the available objects.

These are metrics, trainers, parameters, Feast's views and functions. The check reads no data and
does not import ML libraries.
"""

import ast
from collections.abc import Iterator

from include.checks import feast_objects
from include.checks.finding import Files, Finding, Stage, named
from include.projects.base import Candidate, Project
from include.training import parameters
from include.training.candidates import DISTRIBUTED

# Functions that the loop calls -> the arguments that it passes.
FUNCTIONS: dict[str, dict[str, tuple[str, ...]]] = {
    "expectations": {"source_suite": (), "feature_suite": ()},
    "features": {
        "compute": ("since", "cutoff"),
        "examples": ("since", "until", "cutoff"),
        "labels": ("since", "until"),
    },
    "feed": {"first_moment": (), "last_moment": (), "files": ("since", "until")},
}


def findings(project: Project) -> list[Finding]:
    """Return all faults of the declaration."""
    files = Files(project)
    return [*_metric(project, files), *_candidates(project, files), *_functions(files), *_features(project, files)]


def _metric(project: Project, files: Files) -> Iterator[Finding]:
    from include.training.metrics import UnknownMetricError, check_direction, metrics_of

    name, valid = project.metric.name, metrics_of(project.kind)
    if name not in valid:
        yield files.finding(
            "__init__",
            "metric",
            name,
            f"'{name}' is no metric of {project.kind} projects; there is {named(valid)}",
            valid=valid,
        )
        return
    try:
        check_direction(project.metric)
    except UnknownMetricError as error:
        yield files.finding("__init__", "metric", name, str(error))


def _candidates(project: Project, files: Files) -> Iterator[Finding]:
    names = [candidate.name for candidate in project.candidates]
    for name in sorted({name for name in names if names.count(name) > 1}):
        yield files.finding("__init__", "candidate", name, f"two candidates are called '{name}'")
    for candidate in project.candidates:
        if candidate.trainer in parameters.PARAMETERS:
            yield from _parameters(project, candidate, files)
        elif candidate.trainer not in (there := _trainers()):
            what = f"candidate '{candidate.name}': no trainer '{candidate.trainer}'; there is {named(there)}"
            yield files.finding("__init__", "trainer", candidate.trainer, what, valid=there)
            continue
        if candidate.workers > 1 and candidate.trainer not in DISTRIBUTED:
            what = (
                f"candidate '{candidate.name}': trainer '{candidate.trainer}' has one worker only, the candidate asks"
                f" for {candidate.workers}"
            )
            yield files.finding(
                "__init__", "workers", candidate.trainer, f"{what}; several have {named(sorted(DISTRIBUTED))}"
            )


def _parameters(project: Project, candidate: Candidate, files: Files) -> Iterator[Finding]:
    valid = sorted(parameters.PARAMETERS[candidate.trainer][project.kind])
    for name, value, fault in parameters.faults_of(
        project.kind, candidate.trainer, candidate.parameters, candidate.search
    ):
        lead = f"candidate '{candidate.name}': "
        if fault == "unknown":
            what = (
                f"{lead}trainer '{candidate.trainer}' has no parameter '{name}' for {project.kind} projects; it has"
                f" {named(valid)}"
            )
            yield files.finding("__init__", "parameter", name, what, valid=valid)
        else:
            yield files.finding("__init__", "parameter", name, f"{lead}parameter '{name}' is {value!r}, and {fault}")


def _trainers() -> list[str]:
    """Return the names of all trainers.

    A site may have added trainers to those with a table of parameters.
    """
    from include.training.trainers import TRAINERS

    return list(TRAINERS)


def _functions(files: Files) -> Iterator[Finding]:
    """Find missing functions that the loop calls.

    Importing the modules takes seconds, so they are only parsed.
    """
    for part, functions in FUNCTIONS.items():
        stage: Stage = "ingest" if part != "features" else "build_features"
        if not files.exists(part):
            yield files.finding(
                part, "file", f"{part}.py", "this file does not exist, and the loop imports it", stage=stage
            )
            continue
        try:
            body = ast.parse(files.text(part)).body
        except SyntaxError as error:
            yield files.finding(part, "syntax", error.msg, f"{error.msg}", stage=stage)._replace(line=error.lineno)
            continue
        there = {one.name: one for one in body if isinstance(one, ast.FunctionDef)}
        bound = {alias.asname or alias.name for one in body if isinstance(one, ast.ImportFrom) for alias in one.names}
        bound |= {
            target.id
            for one in body
            if isinstance(one, ast.Assign)
            for target in one.targets
            if isinstance(target, ast.Name)
        }
        for name, arguments in functions.items():
            if name in there:
                given = there[name].args
                taken = {one.arg for one in (*given.posonlyargs, *given.args, *given.kwonlyargs)}
                if missing := [one for one in arguments if one not in taken and given.kwarg is None]:
                    what = f"{name}() has no argument {named(missing)}, which the loop passes"
                    yield files.finding(part, "function", name, what, stage=stage)._replace(line=there[name].lineno)
            elif name not in bound:
                others = [one for one in there if one not in functions]
                missed = files.finding(
                    part,
                    "function",
                    name,
                    f"there is no function {name}(), which the loop calls",
                    valid=others,
                    stage=stage,
                )
                yield missed._replace(line=there[missed.nearest].lineno if missed.nearest else None)


def _features(project: Project, files: Files) -> Iterator[Finding]:
    try:
        there = feast_objects.declared(project.name)
    except feast_objects.UnreadableError as error:
        yield files.finding(
            "feast", "feature views", project.name, f"it cannot be run: {error}", stage="build_features"
        )._replace(line=error.line)
        return
    views = {view.name: view for view in there.views}
    for name in project.feature_views:
        if name not in views:
            what = f"feature_views names '{name}'; {files.name('feast')} has {named(views)}"
            yield files.finding(
                "__init__",
                "feature views",
                name,
                what,
                valid=set(views) - set(project.feature_views),
                stage="build_features",
            )
    for name in views:
        if name not in project.feature_views:
            what = (
                f"view '{name}' is not in feature_views of {files.name('__init__')}, which has"
                f" {named(project.feature_views)}"
            )
            yield files.finding(
                "feast",
                "feature views",
                name,
                what,
                valid=set(project.feature_views) - set(views),
                stage="build_features",
            )
    yield from _service(project, files, there)
    yield from _keys(project, files, there)
    yield from _inputs(project, files, there)


def _service(project: Project, files: Files, there: feast_objects.Declared) -> Iterator[Finding]:
    wanted = project.feature_service
    if wanted not in there.services:
        what = (
            f"there is no feature service '{wanted}' (service_version is {project.service_version}); there is"
            f" {named(there.services)}"
        )
        yield files.finding("feast", "feature service", wanted, what, valid=there.services)
        return
    if missing := sorted(set(project.feature_views) - set(there.services[wanted])):
        yield files.finding(
            "feast", "feature service", wanted, f"feature service '{wanted}' lacks view {named(missing)}"
        )


def _keys(project: Project, files: Files, there: feast_objects.Declared) -> Iterator[Finding]:
    for view in there.views:
        for key in view.join_keys:
            if key not in project.entities:
                what = (
                    f"view '{view.name}' is looked up by '{key}', which is not in entities of {files.name('__init__')}:"
                    f" {named(project.entities)}"
                )
                yield files.finding("feast", "entities", key, what, valid=project.entities, stage="build_features")
        tail = f"/{project.name}/features/{view.name}"
        if not view.path.endswith(tail):
            what = (
                f"view '{view.name}' reads '{view.path}'; build_features writes <store>{tail}: declare it with"
                " feature_repo.shared.view"
            )
            yield files.finding("feast", "feature views", view.name, what, stage="build_features")
    joined = {key for view in there.views for key in view.join_keys}
    for key in project.entities:
        if key not in joined:
            what = f"no view is looked up by entity '{key}'; views are looked up by {named(sorted(joined))}"
            yield files.finding("__init__", "entities", key, what, valid=joined - set(project.entities))


def _inputs(project: Project, files: Files, there: feast_objects.Declared) -> Iterator[Finding]:
    features = [feature for view in there.views for feature in view.features]
    for feature in sorted({feature for feature in features if features.count(feature) > 1}):
        yield files.finding(
            "feast", "features", feature, f"two views have a feature '{feature}': a model could not tell them apart"
        )
    for feature in sorted({*project.request_features} & {*features}):
        yield files.finding(
            "__init__",
            "inputs",
            feature,
            f"'{feature}' is both a request feature and a feature of a view: rename one of them",
        )
    valid = dict.fromkeys([*project.request_features, *project.entities, *features])
    columns = project.input_columns
    for column in sorted({column for column in columns if columns.count(column) > 1}):
        yield files.finding("__init__", "inputs", column, f"input '{column}' is named twice")
    for column in dict.fromkeys(columns):
        if column not in valid:
            what = f"input '{column}' comes from nowhere: it is no request feature, no entity, and no feature of a view"
            yield files.finding(
                "__init__", "inputs", column, what, valid=[one for one in valid if one not in columns] or valid
            )
    for column in project.request_features:
        if column not in columns:
            what = (
                f"request feature '{column}' is not in inputs: who asks for a prediction must send what no model"
                " looks at"
            )
            unused = [one for one in columns if one not in valid]
            yield files.finding("__init__", "request features", column, what, valid=unused, warning=not unused)


def stages_until(stage: str) -> tuple[str, ...]:
    """Return the stages whose findings matter before a stage runs: it and all earlier ones."""
    order = ("ingest", "build_features", "train")
    return order[: order.index(stage) + 1] if stage in order else order
