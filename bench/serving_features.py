"""Write features for the serving benchmark into Feast's online store, in SQLite and Redis."""

import shutil
import socket
import subprocess
import time
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

from bench import serving_model

ENTITIES = 1000
LOOKED_UP = serving_model.FEATURES[:16]


def fill(folder: Path, online: str) -> str:
    """Create two views of eight features for a thousand customers.

    Return the text that follows ``registry:`` in a feature_store.yaml.
    """
    import pandas as pd
    from feast import Entity, FeatureService, FeatureStore, FeatureView, Field, FileSource
    from feast.repo_config import RepoConfig
    from feast.types import Float64, Int64
    from feast.value_type import ValueType

    folder.mkdir(parents=True, exist_ok=True)
    registry = {"registry_type": "sql", "path": f"sqlite:///{folder / 'registry.db'}"}
    store_of = (
        {"type": "sqlite", "path": str(folder / "online.db")}
        if online == "sqlite"
        else {"type": "redis", "connection_string": online}
    )
    config = RepoConfig(
        project="bench",
        provider="local",
        registry=registry,
        online_store=store_of,
        offline_store={"type": "dask"},
        entity_key_serialization_version=3,
    )
    config.repo_path = folder
    store = FeatureStore(config=config)
    customer = Entity(name="customer", join_keys=["customer"], value_type=ValueType.INT64)
    views = []
    for number, names in enumerate((LOOKED_UP[:8], LOOKED_UP[8:])):
        source = FileSource(
            name=f"view{number}", path=str(folder / f"view{number}.parquet"), timestamp_field="event_timestamp"
        )
        schema = [Field(name="customer", dtype=Int64), *(Field(name=name, dtype=Float64) for name in names)]
        views.append(
            FeatureView(name=f"view{number}", entities=[customer], ttl=timedelta(days=1), schema=schema, source=source)
        )
    store.apply([customer, *views, FeatureService(name="bench_v1", features=views)])
    values = serving_model.samples(ENTITIES)
    for view, start in zip(views, (0, 8), strict=True):
        rows = pd.DataFrame(values[:, start : start + 8], columns=list(LOOKED_UP[start : start + 8]))
        store.write_to_online_store(
            view.name, rows.assign(customer=range(ENTITIES), event_timestamp=pd.Timestamp(datetime.now(UTC)))
        )
    options = ", ".join(f"{key}: '{value}'" for key, value in store_of.items())
    return f"{{registry_type: sql, path: '{registry['path']}'}}\nonline_store: {{{options}}}"


def body(row: list[float]) -> dict:
    """Return a request with half of the features and the entity of the others."""
    given = dict(zip(serving_model.FEATURES[16:], row[16:], strict=True))
    return {"instances": [{"customer": int(abs(row[0]) * 1e4) % ENTITIES, **given}]}


def body_for_feast(row: list[float]) -> dict:
    """Return the lookup of the same customer as a request to Feast's server."""
    return {"feature_service": "bench_v1", "entities": {"customer": [body(row)["instances"][0]["customer"]]}}


@contextmanager
def redis(folder: Path):
    """Start a separate redis-server and yield its connection string.

    Yield None if the program is not installed.
    """
    program = shutil.which("redis-server")
    if program is None:
        yield None
        return
    folder.mkdir(parents=True, exist_ok=True)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    process = subprocess.Popen(
        [program, "--port", str(port), "--save", "", "--bind", "127.0.0.1", "--dir", str(folder)],
        stdout=subprocess.DEVNULL,
    )
    try:
        for _ in range(300):
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                break
            except OSError:
                time.sleep(0.1)
        yield f"127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait(20)
