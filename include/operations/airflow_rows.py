"""Restore Airflow's pools, variables and connections from an archive.

Missing entries are added. Existing entries stay.
"""

import json
from collections.abc import Iterable
from typing import Any

from sqlalchemy import insert, select

from include.operations import rows
from include.settings import Settings
from include.stack.environment import airflow_keys

KEYS = {"slot_pool": "pool", "variable": "key", "connection": "conn_id"}
ENCRYPTED = {
    "variable": {"val": "is_encrypted"},
    "connection": {"password": "is_encrypted", "extra": "is_extra_encrypted"},
}


def restore_airflow(settings: Settings, lines: Iterable[bytes], names: Iterable[str]) -> str:
    """Add missing entries. Return a text that lists the added and the unreadable entries."""
    saved = _grouped(lines)
    added, unreadable = [], []
    try:
        with rows.closing_engine(settings.airflow_database) as engine, engine.begin() as connection:
            for table in rows.tables(connection, set(names).__contains__):
                key = KEYS[table.name]
                here = set(connection.execute(select(table.c[key])).scalars())
                for row in saved.get(table.name, []):
                    if row[key] in here:
                        continue
                    if not _can_read(settings, table.name, row):
                        unreadable.append(f"{table.name} {row[key]}")
                        continue
                    connection.execute(
                        insert(table).values(
                            {name: value for name, value in row.items() if name in table.c and name != "id"}
                        )
                    )
                    added.append(f"{table.name} {row[key]}")
    except rows.RowsError:
        return (
            "airflow: it was never started here; its pools, variables and connections can be restored when it was (do"
            " this again)"
        )
    message = f"airflow: added {', '.join(added) or 'nothing, all is there'}"
    if unreadable:
        message += (
            "; not added, as they are encrypted with another AIRLOOP_AIRFLOW_FERNET_KEY than this one:"
            f" {', '.join(unreadable)}"
        )
    return message


def _grouped(lines: Iterable[bytes]) -> dict[str, list[dict[str, Any]]]:
    tables: dict[str, list[dict[str, Any]]] = {}
    table, columns = "", []
    for line in lines:
        row = json.loads(line)
        if isinstance(row, dict):
            table, columns = row["table"], row["columns"]
        else:
            tables.setdefault(table, []).append(dict(zip(columns, row, strict=True)))
    return tables


def _can_read(settings: Settings, table: str, row: dict[str, Any]) -> bool:
    from cryptography.fernet import Fernet, InvalidToken, MultiFernet

    for column, flag in ENCRYPTED.get(table, {}).items():
        if row.get(flag) and row.get(column):
            try:
                MultiFernet([Fernet(key) for key in airflow_keys(settings)["fernet"].split(",")]).decrypt(
                    row[column].encode()
                )
            except InvalidToken:
                return False
    return True
