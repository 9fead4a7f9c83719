"""Check the servers MLflow, Airflow and serving.

They must answer, accept our login, have the right version, follow the same registry, and refer to
existing versions.
"""

import time
from collections.abc import Iterator
from email.utils import parsedate_to_datetime
from typing import Any

import httpx

from include.operations.doctor.finding import Finding, clock, fault, note, ok
from include.operations.versions import installed
from include.projects import all_projects
from include.rollout.served import other_installation
from include.settings import Settings
from include.stack.api import AirflowApi

CHAMPION = "champion"
# Serving follows the registry within seconds.
PATIENCE_S = 5.0


class Registry:
    """MLflow's REST API with the login of the settings."""

    def __init__(self, settings: Settings):
        login = (
            (settings.mlflow_username or "", settings.mlflow_password.get_secret_value())
            if settings.mlflow_password
            else None
        )
        self._http = httpx.Client(base_url=settings.mlflow_url, auth=login, timeout=10, trust_env=False)

    def get(self, path: str, **params: Any) -> httpx.Response:
        return self._http.get(path, params=params)

    def post(self, path: str, body: dict[str, Any]) -> httpx.Response:
        return self._http.post(path, json=body)

    def models(self) -> list[dict[str, Any]]:
        """Return the registered models with their aliases."""
        registered_models, token = [], None
        while True:
            page = (
                self.get("/api/2.0/mlflow/registered-models/search", **({"page_token": token} if token else {}))
                .raise_for_status()
                .json()
            )
            registered_models += page.get("registered_models", [])
            token = page.get("next_page_token")
            if not token:
                return registered_models


def mlflow(settings: Settings) -> Iterator[Finding]:
    registry, before = Registry(settings), time.time()
    try:
        answer = registry.get("/version")
        listed = registry.get("/api/2.0/mlflow/registered-models/search", max_results=1)
    except httpx.HTTPError as error:
        yield fault(
            "mlflow",
            f"{settings.mlflow_url} does not answer: {error}",
            "start it (`airloop up`), or mend AIRLOOP_MLFLOW_URI",
        )
        return
    if date := answer.headers.get("date"):
        yield from clock("mlflow", parsedate_to_datetime(date).timestamp(), before, time.time())
    if listed.status_code in (401, 403):
        who = settings.mlflow_username or "nobody"
        yield fault(
            "mlflow",
            f"{settings.mlflow_url} does not let {who} in",
            "mend AIRLOOP_MLFLOW_USERNAME and AIRLOOP_MLFLOW_PASSWORD",
        )
        return
    if listed.is_error:
        yield fault(
            "mlflow",
            f"{settings.mlflow_url} answers {listed.status_code}: {listed.text[:200]}",
            "see its log; is its database there and migrated?",
        )
        return
    theirs, ours = answer.text.strip() if answer.is_success else "unknown", installed("mlflow")
    if theirs.split(".")[:2] != ours.split(".")[:2]:
        yield fault(
            "mlflow",
            f"the server at {settings.mlflow_url} is MLflow {theirs}, this code is made for {ours}",
            f"run the server with mlflow=={ours}",
        )
    else:
        yield ok("mlflow", f"{settings.mlflow_url}: version {theirs}, lets us in")
    yield from _writable(registry)
    yield from _aliases(registry)


def _writable(registry: Registry) -> Iterator[Finding]:
    for project in all_projects():
        response = registry.get("/api/2.0/mlflow/experiments/get-by-name", experiment_name=project.name)
        if response.is_error:
            # No training has run yet.
            continue
        tag = {
            "experiment_id": response.json()["experiment"]["experiment_id"],
            "key": "airloop.doctor",
            "value": "was here",
        }
        wrote = registry.post("/api/2.0/mlflow/experiments/set-experiment-tag", tag)
        if wrote.is_error:
            what = f"experiment {project.name} cannot be written to: {wrote.status_code} {wrote.text[:200]}"
            yield fault(
                "mlflow",
                what,
                "give the user of AIRLOOP_MLFLOW_USERNAME the right to edit it; is MLflow's database writable?",
            )


def _aliases(registry: Registry) -> Iterator[Finding]:
    wrong = False
    for model in registry.models():
        for alias in model.get("aliases", []):
            name, version_ = model["name"], str(alias["version"])
            response = registry.get("/api/2.0/mlflow/model-versions/get", name=name, version=version_)
            if response.status_code == 404:
                wrong = True
                others = (
                    registry.get("/api/2.0/mlflow/model-versions/search", filter=f"name = '{name}'")
                    .json()
                    .get("model_versions", [])
                )
                there = ", ".join(sorted((str(v["version"]) for v in others), key=int)) or "none"
                how = (
                    f"start {name}__deploy with a version that there is"
                    if alias["alias"] == CHAMPION
                    else "move it in MLflow, or take it away"
                )
                yield fault(
                    "aliases",
                    f"alias {alias['alias']} of model {name} points at version {version_}, which is not there; there is"
                    f" {there}",
                    how,
                )
    if not wrong:
        yield ok("aliases", "each points at a version that there is")


def airflow(settings: Settings) -> Iterator[Finding]:
    before = time.time()
    try:
        answer = httpx.get(f"{settings.airflow_url}/api/v2/monitor/health", timeout=10, trust_env=False)
        answer.raise_for_status()
    except httpx.HTTPError as error:
        yield fault(
            "airflow",
            f"{settings.airflow_url} does not answer: {error}",
            "start it (`airloop up`), or mend AIRLOOP_AIRFLOW_URI",
        )
        return
    if date := answer.headers.get("date"):
        yield from clock("airflow", parsedate_to_datetime(date).timestamp(), before, time.time())
    for name, state in answer.json().items():
        if state.get("status") not in (None, "healthy"):
            beat = state.get(f"latest_{name}_heartbeat") or "never"
            yield fault(
                "airflow",
                f"its {name} is {state['status']}; last heartbeat {beat}",
                "start it again (`airloop up`), and see its log",
            )
    try:
        theirs = AirflowApi.from_settings(settings).call("GET", "version")["version"]
    except (httpx.HTTPError, OSError) as error:
        yield fault(
            "airflow",
            f"{settings.airflow_url} does not let us in: {error}",
            "mend the admin's password (AIRLOOP_AIRFLOW_ADMIN_PASSWORD)",
        )
        return
    ours = installed("airflow")
    if theirs != ours:
        yield fault(
            "airflow",
            f"{settings.airflow_url} runs version {theirs}, this code is made for {ours}",
            f"run it with apache-airflow=={ours}",
        )
    else:
        yield ok("airflow", f"{settings.airflow_url}: version {theirs}, lets us in")


def serving(settings: Settings) -> Iterator[Finding]:
    key = {"Authorization": f"Bearer {settings.serving_api_key.get_secret_value()}"} if settings.serving_api_key else {}
    before = time.time()
    try:
        answer = httpx.get(f"{settings.serving_url}/ready", headers=key, timeout=10, trust_env=False)
    except httpx.HTTPError as error:
        yield fault(
            "serving",
            f"{settings.serving_url} does not answer: {error}",
            "start it (`airloop up`), or mend AIRLOOP_SERVING_URI",
        )
        return
    if date := answer.headers.get("date"):
        yield from clock("serving", parsedate_to_datetime(date).timestamp(), before, time.time())
    if answer.status_code in (401, 403):
        yield fault(
            "serving",
            f"{settings.serving_url} does not take our key: {answer.text[:200]}",
            "mend AIRLOOP_SERVING_API_KEY; serving's file has its hash",
        )
        return
    status = answer.json()
    follows = str((status.get("registry") or {}).get("uri") or "")
    if follows and follows.rstrip("/") != settings.mlflow_url:
        what = (
            f"it follows the registry at {follows}, the loop promotes in {settings.mlflow_url}: no promotion reaches it"
        )
        yield fault("serving", what, "set SERVING_MLFLOW_URI to the loop's MLflow and start serving again")
        return
    if answer.is_error:
        yield fault(
            "serving",
            f"it is not ready: {status.get('detail') or answer.text[:200]}",
            "see its log; the lines above may say why",
        )
    yield from _champions(settings, key)


def _champions(settings: Settings, key: dict[str, str]) -> Iterator[Finding]:
    """Check that serving answers with the registry's champion.

    Serving may take a few seconds to load a new champion.
    """
    try:
        champions = {
            m["name"]: str(a["version"])
            for m in Registry(settings).models()
            for a in m.get("aliases", [])
            if a["alias"] == CHAMPION
        }
    except httpx.HTTPError:
        # The check of MLflow reports it.
        return
    deadline = time.monotonic() + PATIENCE_S
    while True:
        answer = httpx.get(f"{settings.serving_url}/models", headers=key, timeout=10, trust_env=False)
        if answer.status_code in (401, 403):
            yield fault(
                "serving",
                f"{settings.serving_url} wants a key",
                "set AIRLOOP_SERVING_API_KEY to one that it knows (docs/runbooks/serving.md)",
            )
            return
        models = answer.json()
        served = {model["name"]: model for model in models} if isinstance(models, list) else {}
        wrong = {
            name: served.get(name, {})
            for name, number in champions.items()
            if str(served.get(name, {}).get("version")) != number
        }
        if not wrong or time.monotonic() > deadline:
            break
        time.sleep(0.5)
    for model in served.values():
        if stranger := other_installation(model):
            yield fault("serving", stranger, "let each installation on a machine have its own ports")
            return
    for name, model in wrong.items():
        what = (
            f"champion of {name} is version {champions[name]}, serving answers with"
            f" {model.get('version') or 'nothing'}: {model.get('error') or 'no reason told'}"
        )
        yield fault("serving", what, f"see serving's log; to go back, start {name}__deploy with an older version")
    if not wrong:
        whom = ", ".join(f"{name} {number}" for name, number in sorted(champions.items())) or "no champion yet"
        yield (
            ok("serving", f"{settings.serving_url}: {whom}")
            if champions
            else note("serving", f"{settings.serving_url}: {whom}")
        )
