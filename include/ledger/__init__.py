"""Durable state of the loop: files, stages, retrain requests, episodes, decisions, freezes, clock.

Airflow's events only trigger a check. The state is in these tables, so a lost, merged or repeated
event does no harm.

Every write is one transaction and safe to repeat, on SQLite and on Postgres.
"""

from include.ledger.database import LedgerError, migrate
from include.ledger.episodes import close_episode, current_episode, episodes, open_episode
from include.ledger.freezes import EVERYTHING, Freeze, FrozenError, freeze, freeze_of, freezes, refuse_frozen, thaw
from include.ledger.identity import installation, known_installation
from include.ledger.locks import LockTimeoutError, one_at_a_time
from include.ledger.notices import note, notices, tell
from include.ledger.overdue import Airflow, fail_request, sweep_requests
from include.ledger.records import (
    FutureCutoffError,
    check_cutoff,
    count_files,
    decide,
    decisions,
    file_record,
    file_records,
    is_replay,
    last_cutoffs,
    now,
    record_file,
    record_stage,
    run_cutoff,
    set_clock,
    stage_record,
)  # fmt: skip
from include.ledger.requests import (
    Request,
    asked_before,
    claim_request,
    conclude_training,
    get_request,
    keep_deployment,
    keep_request,
    release_request,
    request_retraining,
    requests,
    settle_request,
)  # fmt: skip
from include.ledger.rewinding import Later, later_than, rewind
from include.times import iso, moment

__all__ = [
    "Airflow",
    "EVERYTHING",
    "Freeze",
    "FrozenError",
    "FutureCutoffError",
    "Later",
    "LedgerError",
    "LockTimeoutError",
    "Request",
    "asked_before",
    "check_cutoff",
    "claim_request",
    "close_episode",
    "conclude_training",
    "count_files",
    "current_episode",
    "decide",
    "decisions",
    "episodes",
    "fail_request",
    "file_record",
    "file_records",
    "freeze",
    "freeze_of",
    "freezes",
    "get_request",
    "installation",
    "is_replay",
    "iso",
    "keep_deployment",
    "keep_request",
    "known_installation",
    "last_cutoffs",
    "later_than",
    "migrate",
    "moment",
    "note",
    "notices",
    "now",
    "one_at_a_time",
    "open_episode",
    "record_file",
    "record_stage",
    "refuse_frozen",
    "release_request",
    "request_retraining",
    "requests",
    "rewind",
    "run_cutoff",
    "set_clock",
    "settle_request",
    "stage_record",
    "sweep_requests",
    "tell",
    "thaw",
]
