"""The ledger's tables as of the newest migration; a test compares both.

A change here needs a new migration in ``migrations/versions``.
"""

from sqlalchemy import JSON, Column, Index, Integer, MetaData, String, Table, Text

METADATA = MetaData()
# Times are ISO strings, see include.times.
FILES = Table(
    "ingested_files",
    METADATA,
    Column("project", String(40), primary_key=True),
    Column("source", String(40), primary_key=True),
    Column("sha256", String(64), primary_key=True),
    Column("file", Text, nullable=False),
    Column("status", String(20), nullable=False),  # ingested | refused
    Column("counts", JSON, nullable=False),  # rows, table, quarantine, refused
    Column("reasons", JSON, nullable=False),  # [{rule, count, message}]
    Column("cutoff", String(20), nullable=False),
    Column("recorded_at", String(20), nullable=False),
)
STAGES = Table(
    "stages",
    METADATA,
    Column("project", String(40), primary_key=True),
    Column("stage", String(40), primary_key=True),
    Column("cutoff", String(20), primary_key=True),
    Column("dag_run", String(250), nullable=False),
    Column("summary", JSON, nullable=False),
    Column("recorded_at", String(20), nullable=False),
)
REQUESTS = Table(
    "retrain_requests",
    METADATA,
    Column("id", String(16), primary_key=True),
    Column("project", String(40), nullable=False),
    Column("cutoff", String(20), nullable=False),
    # drift | schedule | first_model | ... or a user's own text
    Column("reason", Text, nullable=False),
    Column("asked_by", String(250), nullable=False),  # a DAG run
    Column("episode", String(16)),
    Column("parameters", JSON, nullable=False),
    Column("state", String(20), nullable=False),  # the states of include.ledger.lifecycle
    Column("dag_run", String(250)),  # the run of train that claimed it
    Column("outcome", JSON, nullable=False),
    Column("recorded_at", String(20), nullable=False),
    # Real time, see include.ledger.lifecycle. NULL if the state is final.
    # Unsuccessful attempts of training or, after it passed, of deployment.
    Column("attempts", Integer, nullable=False, server_default="0"),
    Column("not_before", String(20)),  # the pause before the next attempt
    Column("deadline", String(20)),
    Column("held_since", String(20)),  # when a run claimed it
    # The run of train that lost the request. If that run is cleared, it takes the request up again.
    Column("last_run", String(250)),
    Column("deploy_run", String(250)),  # the run of deploy that rolls out its version
)
# A run works on one request at most. This also holds if a try that was presumed dead claims one
# concurrently with the next try.
Index("one_request_a_run", REQUESTS.c.project, REQUESTS.c.dag_run, unique=True)
EPISODES = Table(
    "drift_episodes",
    METADATA,
    Column("id", String(16), primary_key=True),
    Column("project", String(40), nullable=False),
    Column("opened", String(20), nullable=False),
    Column("closed", String(20)),
    Column("evidence", JSON, nullable=False),
)
# At most one open episode for each project: the database refuses a second one in a race.
Index(
    "one_open_episode",
    EPISODES.c.project,
    unique=True,
    sqlite_where=EPISODES.c.closed.is_(None),
    postgresql_where=EPISODES.c.closed.is_(None),
)
DECISIONS = Table(
    "decisions",
    METADATA,
    Column("project", String(40), primary_key=True),
    Column("what", String(40), primary_key=True),  # monitor | gate | deploy | freeze | ...
    Column("subject", Text, primary_key=True),  # what it is about: a cutoff, a request, a version
    Column("verdict", String(40), nullable=False),
    Column("reasons", JSON, nullable=False),
    Column("cutoff", String(20), nullable=False),
    Column("recorded_at", String(20), nullable=False),
)
CLOCKS = Table(
    "clocks", METADATA, Column("project", String(40), primary_key=True), Column("now", String(20), nullable=False)
)
FREEZES = Table(
    "freezes",
    METADATA,
    Column("project", String(40), primary_key=True),  # * for all projects
    Column("by", Text, nullable=False),
    Column("why", Text, nullable=False),
    Column("since", String(20), nullable=False),  # wall-clock time, because users set freezes
)
# The cutoff of a run. It stays the same when the run's tasks are cleared, although the replay's
# clock has advanced.
RUN_CUTOFFS = Table(
    "run_cutoffs",
    METADATA,
    Column("project", String(40), primary_key=True),
    Column("dag_run", Text, primary_key=True),  # DAG id and run id
    Column("cutoff", String(20), nullable=False),
)
INSTALLATION = Table(
    "installation",
    METADATA,
    Column("key", String(10), primary_key=True),  # always the same, because there is one row
    Column("id", String(36), nullable=False),
    Column("recorded_at", String(20), nullable=False),
)
NOTICES = Table(
    "notices",
    METADATA,
    Column("project", String(40), primary_key=True),
    Column("subject", Text, primary_key=True),  # the subject, reported once
    Column("text", Text, nullable=False),
    Column("recorded_at", String(20), nullable=False),
    Column("told_at", String(20)),  # NULL until the hook has accepted it
    Column("attempts", Integer, nullable=False),
)
