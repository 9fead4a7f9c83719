"""The loop's own durable memory: ingested files, stages done, retrain requests, drift episodes, decisions, freezes, the replay's clock.

Airflow's events only say "look here"; what is true stands in these tables, so that a lost, merged or repeated event does no harm.
Every write is one transaction and safe to repeat, on SQLite as on Postgres.
"""

from include.ledger.database import LedgerError, migrate
from include.ledger.episodes import close_episode, current_episode, episodes, open_episode
from include.ledger.freezes import EVERYTHING, Freeze, Frozen, freeze, freeze_of, freezes, refuse_frozen, thaw
from include.ledger.locks import Busy, one_at_a_time
from include.ledger.records import (
    count_files,
    decide,
    decisions,
    file_record,
    file_records,
    is_replay,
    now,
    record_file,
    record_stage,
    set_clock,
    stage_record,
)  # fmt: skip
from include.ledger.requests import Request, claim_request, get_request, lost_request, release_request, request_retraining, requests, settle_request
from include.times import iso, moment

__all__ = [
    "EVERYTHING", "Busy", "Freeze", "Frozen", "LedgerError", "Request", "claim_request", "close_episode", "count_files", "current_episode", "decide",
    "decisions", "episodes", "file_record", "file_records", "freeze", "freeze_of", "freezes", "get_request", "is_replay", "iso", "lost_request", "migrate",
    "moment", "now", "one_at_a_time", "open_episode", "record_file", "record_stage", "refuse_frozen", "release_request", "request_retraining", "requests",
    "set_clock", "settle_request", "stage_record", "thaw",
]  # fmt: skip
