"""Check the stores: databases, object store and online store.

They must be reachable, accept our login, have the right version, be writable, and contain the
expected data.
"""

import os
import time
from collections.abc import Iterator
from email.utils import parsedate_to_datetime
from pathlib import Path
from urllib.parse import urlsplit

import httpx
from sqlalchemy import Connection, Engine, create_engine, make_url, text
from sqlalchemy.exc import DBAPIError, OperationalError

from include.data import layout, storage, tables
from include.operations.doctor.finding import Finding, clock, fault, note, ok
from include.projects import all_projects
from include.projects.base import Project
from include.settings import Settings
from include.stack.stores.migrations import Migration, migrations

OLDEST_POSTGRES = 12
OLDEST_REDIS = 5
# With SQLite, the first process that needs them creates them.
MADE_WHEN_NEEDED = {"ledger", "feast", "studies"}
# Maximum size in bytes of a SQLite file that is read as a whole.
LARGEST_CHECKED = 2 * 2**30
RESTORE = "stop the stack (`airloop down`), keep the file, and restore a backup: docs/runbooks/operations.md"
# Number of entities per feature view that are looked up online.
SAMPLE = 3


# --- Databases


def databases(settings: Settings) -> Iterator[Finding]:
    """Check each product's tables in its database.

    If a database that two products share is unavailable, it is reported once.
    """
    broken: set[str] = set()
    for one in migrations(settings):
        if one.url in broken:
            continue
        url = make_url(one.url)
        where = f"{one.setting}: database '{url.database}'" + (f" on {url.host}:{url.port or 5432}" if url.host else "")
        if url.get_backend_name() == "sqlite" and not Path(url.database or "").exists():
            if one.name in MADE_WHEN_NEEDED:
                yield note(one.name, f"{where} is not there yet: it is made when it is first needed")
            else:
                yield fault(
                    one.name,
                    f"{where} is not there",
                    "`airloop up` (or `airloop migrate`) makes it; after a loss: `airloop restore`",
                )
            continue
        engine = _engine(one.url)
        try:
            with engine.connect() as connection:
                before = time.time()
                yield from _server(one.name, connection, before)
            yield _tables(one, engine, where)
        except (OperationalError, DBAPIError) as error:
            broken.add(one.url)
            yield _why_not(one, error, where, str(url.username))
        finally:
            engine.dispose()


def _engine(url: str) -> Engine:
    place = make_url(url)
    if place.get_backend_name() == "sqlite":
        return create_engine(place.difference_update_query(["timeout"]))
    return create_engine(
        place.set(drivername="postgresql+psycopg2"),
        connect_args={"connect_timeout": 10, "application_name": "airloop-doctor"},
    )


def _server(name: str, connection: Connection, before: float) -> Iterator[Finding]:
    if connection.dialect.name == "sqlite":
        file = Path(make_url(str(connection.engine.url)).database or "")
        if file.stat().st_size <= LARGEST_CHECKED:
            damage = [
                str(row[0]) for row in connection.exec_driver_sql("PRAGMA quick_check(3)").all() if row[0] != "ok"
            ]
            if damage:
                yield fault(name, f"{file} is damaged: {'; '.join(damage)[:300]}", RESTORE)
        if not os.access(file, os.W_OK) or not os.access(file.parent, os.W_OK):
            yield fault(
                name,
                f"{file} is read-only for user {os.getuid()}",
                "chown it, and its folder, to the user that runs Airloop",
            )
        return
    row = connection.execute(
        text(
            "SELECT extract(epoch FROM clock_timestamp()) AS now, current_setting('server_version_num')::int / 10000 AS"
            " version, pg_is_in_recovery() OR current_setting('transaction_read_only') = 'on' AS read_only"
        )
    ).one()
    yield from clock(f"{name} (Postgres)", float(row.now), before, time.time())
    if row.version < OLDEST_POSTGRES:
        yield fault(name, f"Postgres {row.version} is too old", f"upgrade it to {OLDEST_POSTGRES} or newer")
    if row.read_only:
        yield fault(
            name,
            "the server refuses writes (a standby, or read-only)",
            "name the primary server in the URL, or take the read-only mode away",
        )


def _tables(one: Migration, engine: Engine, where: str) -> Finding:
    revision = one.read_version(engine)
    if revision is None and engine.dialect.name == "sqlite" and one.name in MADE_WHEN_NEEDED:
        return ok(one.name, f"{where}: writable; its tables are made when they are first needed")
    if revision == one.wanted:
        return ok(one.name, f"{where}: reachable, its tables are at {revision}")
    has = f"its tables are at {revision}" if revision else "it has no tables"
    return fault(
        one.name,
        f"{where}: {has}, this code wants {one.wanted}",
        "`airloop migrate`; if they are newer than this code: use that newer Airloop",
    )


def _why_not(one: Migration, error: DBAPIError, where: str, user: str) -> Finding:
    message = str(error.orig or error).strip().partition("\n")[0]
    if "malformed" in message or "not a database" in message:
        return fault(one.name, f"{where} is damaged: {message}", RESTORE)
    if "password authentication failed" in message or "no password supplied" in message:
        return fault(
            one.name,
            f"{where}: wrong password for user {user}",
            f"mend the password in {one.setting}, or set it in Postgres by `airloop create-databases`",
        )
    if "does not exist" in message:
        return fault(one.name, f"{where}: {message}", "make databases and users: `airloop create-databases`")
    if "permission denied" in message:
        return fault(
            one.name, f"{where}: {message}", f"grant user {user} its own database again: `airloop create-databases`"
        )
    return fault(
        one.name, f"{where} does not answer: {message}", f"start Postgres, or mend host and port in {one.setting}"
    )


# --- The object store


def object_store(settings: Settings) -> Iterator[Finding]:
    """Check the object store with this process's own credentials.

    If only an Airflow connection has credentials, the check of the wiring does it.
    """
    if not storage.is_object_store(settings.store):
        folder = Path(settings.store)
        there = next(p for p in (folder, *folder.parents) if p.exists())
        if not os.access(there, os.W_OK | os.X_OK):
            yield fault(
                "data",
                f"AIRLOOP_DATA_ROOT is {folder}, where user {os.getuid()} may not write",
                "chown it to that user",
            )
        else:
            yield ok("data", f"in {folder}")
        return
    if settings.storage_connection and not os.environ.get("AWS_ACCESS_KEY_ID"):
        return
    for setting, root in (("AIRLOOP_DATA_ROOT", settings.store), ("AIRLOOP_REMOTE_LOGS", settings.remote_logs)):
        if root is None:
            continue
        try:
            storage.probe(root)
        except storage.StorageUnavailableError as error:
            what, _, fix = str(error).partition(" To do: ")
            yield fault("object store", f"{setting} is {root}: {what}", fix)
        else:
            yield ok("object store", f"{setting} is {root}: readable and writable")
    if endpoint := os.environ.get("AWS_ENDPOINT_URL"):
        before = time.time()
        try:
            date = httpx.head(endpoint, timeout=5, trust_env=False).headers.get("date")
        except httpx.HTTPError:
            return
        if date:
            yield from clock("object store", parsedate_to_datetime(date).timestamp(), before, time.time())


# --- The online store


def online_store(settings: Settings) -> Iterator[Finding]:
    if settings.online_store_url is None:
        file = settings.home / "feast" / "online.db"
        yield (
            ok("online store", f"{file}")
            if file.exists()
            else note("online store", f"{file} is not there yet: the first build_features makes it")
        )
        return
    import redis

    url = settings.online_store_url.get_secret_value()
    place = urlsplit(url)
    where = f"AIRLOOP_ONLINE_STORE_URL: Redis at {place.hostname}:{place.port or 6379}"
    before = time.time()
    try:
        with redis.Redis.from_url(url, socket_timeout=5, socket_connect_timeout=5) as client:
            seconds, micros = client.time()
            after = time.time()
            version = str(client.info("server")["redis_version"])
            client.set("airloop:doctor", "written and taken away again", ex=60)
            client.delete("airloop:doctor")
    except redis.AuthenticationError as error:
        yield fault(
            "online store",
            f"{where}: {error}",
            "mend the password in AIRLOOP_ONLINE_STORE_URL (requirepass, or the user's, of the server)",
        )
    except redis.ReadOnlyError:
        yield fault("online store", f"{where} refuses writes: it is a replica", "name the primary server")
    except redis.ResponseError as error:
        if "WRONGPASS" in str(error) or "NOAUTH" in str(error):
            yield fault("online store", f"{where}: {error}", "mend the password in AIRLOOP_ONLINE_STORE_URL")
        else:
            yield fault("online store", f"{where} refuses: {error}", "see its log; is its disk or memory full?")
    except redis.RedisError as error:
        yield fault(
            "online store",
            f"{where} does not answer: {error}",
            "start Redis, or mend host and port in AIRLOOP_ONLINE_STORE_URL",
        )
    else:
        yield from clock("online store (Redis)", seconds + micros / 1e6, before, after)
        if int(version.partition(".")[0]) < OLDEST_REDIS:
            yield fault(
                "online store", f"{where} is Redis {version}: too old", f"upgrade it to {OLDEST_REDIS} or newer"
            )
        else:
            yield ok("online store", f"{where}: Redis {version}, writable")


def online_features(settings: Settings) -> Iterator[Finding]:
    """Check the online features of entities whose newest features are known.

    Serving must get the same values as in the feature tables.
    """
    from include.features import store

    try:
        views = {view.name: view for view in store.feature_store().list_feature_views(allow_cache=False)}
    except Exception as error:
        yield note("features", f"not looked at: Feast's registry cannot be read ({type(error).__name__})")
        return
    for project in all_projects():
        for name in project.feature_views:
            view = views.get(name)
            if tables.open_table(layout.feature_table(project, name)) is None:
                continue
            if view is None or view.most_recent_end_time is None:
                yield fault(
                    "features",
                    f"view {name} of {project.name} was never brought into the online store",
                    _rebuild(project),
                )
                continue
            yield _look_up(project, name, list(view.join_keys), [f.name for f in view.features])


def _look_up(project: Project, name: str, keys: list[str], features: list[str]) -> Finding:
    import pyarrow.compute as pc

    from include.features import store

    table = tables.open_table(layout.feature_table(project, name))
    assert table is not None
    newest = table.to_pyarrow_dataset().to_table(columns=[*keys, "event_timestamp", *features])
    order = pc.sort_indices(newest, sort_keys=[("event_timestamp", "descending")])
    sample, entities = [], set()
    for row in newest.take(order[: 50 * SAMPLE]).to_pylist():
        entity = tuple(row[key] for key in keys)
        # Use entities with at least one value. An empty row cannot be distinguished from a missing
        # one.
        if entity not in entities and any(row[f] is not None and row[f] == row[f] for f in features):
            entities.add(entity)
            sample.append(row)
        if len(sample) == SAMPLE:
            break
    if not sample:
        return note("features", f"view {name} has no values yet")
    whose = f"view {name} of {project.name}"
    try:
        response = store.feature_store().get_online_features(
            [f"{name}:{f}" for f in features], [{key: row[key] for key in keys} for row in sample]
        )
    # The error depends on the store: for example a missing table, or a connection error.
    except Exception as error:
        message = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        return fault(
            "features",
            f"{whose}: the online store cannot be read ({message})",
            f"if it answers now, {_rebuild(project)}",
        )
    given = response.to_dict()
    empty = stale = 0
    for place, row in enumerate(sample):
        values = {f: given[f][place] for f in features}
        if all(value is None for value in values.values()):
            empty += 1
        elif any(_differs(values[f], row[f]) for f in features):
            stale += 1
    if empty:
        return fault(
            "features",
            f"{whose}: the online store has nothing for {empty} of {len(sample)} entities that were looked up",
            _rebuild(project),
        )
    if stale:
        return fault(
            "features",
            f"{whose}: the online store has older values than the feature table for {stale} of {len(sample)} entities",
            _rebuild(project),
        )
    return ok(
        "features", f"{whose}: what serving is given is the newest ({sample[0]['event_timestamp']:%Y-%m-%d %H:%M})"
    )


def _differs(online: float | None, offline: float | None) -> bool:
    missing = (online is None or online != online, offline is None or offline != offline)
    return missing[0] != missing[1] or (not missing[0] and abs(online - offline) > 1e-6 * max(1.0, abs(offline or 0)))  # type: ignore[operator]


def _rebuild(project: Project) -> str:
    return f"fill it again: `airloop materialize {project.name}`"
