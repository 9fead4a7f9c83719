"""The ledger's tables as the newest migration leaves them; a test compares. A change here needs a migration of its own in ``migrations/versions``."""

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
    Column("reason", Text, nullable=False),  # drift | schedule | first_model | ... or a person's own words
    Column("asked_by", String(250), nullable=False),  # a DAG run
    Column("episode", String(16)),
    Column("parameters", JSON, nullable=False),
    Column("state", String(20), nullable=False),  # those of include.ledger.lifecycle
    Column("dag_run", String(250)),  # of train, that claimed it
    Column("outcome", JSON, nullable=False),
    Column("recorded_at", String(20), nullable=False),
    # Real time, as include.ledger.lifecycle says; NULL where the state is final.
    Column("attempts", Integer, nullable=False, server_default="0"),  # that came to nothing, of training or (once it passed) of deployment
    Column("not_before", String(20)),  # the pause before the next attempt
    Column("deadline", String(20)),
    Column("held_since", String(20)),  # since when a run has it
    Column("last_run", String(250)),  # of train, from which it was taken: cleared, that run takes it up again
    Column("deploy_run", String(250)),  # of deploy, that rolls its version out
)
# A run works on one request at most, also when a try that was taken for dead claims beside the next one.
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
# At most one open episode a project, whoever races: the database refuses the second one.
Index("one_open_episode", EPISODES.c.project, unique=True, sqlite_where=EPISODES.c.closed.is_(None), postgresql_where=EPISODES.c.closed.is_(None))
DECISIONS = Table(
    "decisions",
    METADATA,
    Column("project", String(40), primary_key=True),
    Column("what", String(40), primary_key=True),  # monitor | gate | deploy | freeze | ...
    Column("subject", Text, primary_key=True),  # what was decided about: a cutoff, a request, a version
    Column("verdict", String(40), nullable=False),
    Column("reasons", JSON, nullable=False),
    Column("cutoff", String(20), nullable=False),
    Column("recorded_at", String(20), nullable=False),
)
CLOCKS = Table("clocks", METADATA, Column("project", String(40), primary_key=True), Column("now", String(20), nullable=False))
FREEZES = Table(
    "freezes",
    METADATA,
    Column("project", String(40), primary_key=True),  # * for all of them
    Column("by", Text, nullable=False),
    Column("why", Text, nullable=False),
    Column("since", String(20), nullable=False),  # the wall clock's: a freeze is about people
)
# The cutoff that a run decided on: the same again when its tasks are cleared, though the replay's clock has moved on.
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
    Column("key", String(10), primary_key=True),  # always the same: there is one row
    Column("id", String(36), nullable=False),
    Column("recorded_at", String(20), nullable=False),
)
NOTICES = Table(
    "notices",
    METADATA,
    Column("project", String(40), primary_key=True),
    Column("subject", Text, primary_key=True),  # what it is about: said once
    Column("text", Text, nullable=False),
    Column("recorded_at", String(20), nullable=False),
    Column("told_at", String(20)),  # NULL: the hook has not taken it yet
    Column("attempts", Integer, nullable=False),
)
