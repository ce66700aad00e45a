"""The tables of the index, the same in SQLite and in PostgreSQL."""

from __future__ import annotations

import sqlalchemy as sa

METADATA = sa.MetaData()
#: Numbers that SQLite would count up itself only under the name INTEGER.
_SEQ = sa.BigInteger().with_variant(sa.Integer, "sqlite")

CORRECTIONS = sa.Table(
    "corrections",
    METADATA,
    sa.Column("seq", _SEQ, primary_key=True),
    sa.Column("id", sa.Text, nullable=False, unique=True),
    sa.Column("created", sa.Text, nullable=False),
    sa.Column("text", sa.Text, nullable=False),
    sa.Column("format", sa.Text, nullable=False),
    sa.Column("rate", sa.Integer, nullable=False),
    sa.Column("seconds", sa.Double, nullable=False),
    sa.Column("bytes", sa.BigInteger, nullable=False),
    sa.Column("sha256", sa.Text, nullable=False),
    sa.Column("sent", sa.Text),
    sa.Column("sound", sa.Text),
    sa.Column("first", sa.BigInteger),
    sa.UniqueConstraint("sha256", "text"),
    sqlite_autoincrement=True,
)
DELETIONS = sa.Table(
    "deletions",
    METADATA,
    sa.Column("seq", _SEQ, primary_key=True, autoincrement=False),
    sa.Column("id", sa.Text, nullable=False),
    sa.Column("created", sa.Text, nullable=False),
    sa.Column("deleted", sa.Text, nullable=False),
    sa.Column("reason", sa.Text, nullable=False),
)
JOBS = sa.Table(
    "jobs",
    METADATA,
    sa.Column("seq", _SEQ, primary_key=True),
    sa.Column("id", sa.Text, nullable=False, unique=True),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("phase", sa.Text, nullable=False, server_default="waiting"),
    sa.Column("progress", sa.Double, nullable=False, server_default="0"),
    sa.Column("created", sa.Text, nullable=False),
    sa.Column("finished", sa.Text),
    sa.Column("attempts", sa.Integer, nullable=False, server_default="0"),
    sa.Column("options", sa.Text, nullable=False),
    sa.Column("last_seq", sa.BigInteger, nullable=False),
    sa.Column("results", sa.Text, nullable=False, server_default="{}"),
    sa.Column("model_before", sa.Text, nullable=False),
    sa.Column("model_after", sa.Text),
    sa.Column("error", sa.Text),
    sqlite_autoincrement=True,
)
UNFINISHED = JOBS.c.state.in_(("queued", "running"))
# At most one job can be unfinished: the database itself refuses a second.
sa.Index(
    "one_job_at_a_time", sa.text("(1)"), unique=True, _table=JOBS,
    sqlite_where=UNFINISHED, postgresql_where=UNFINISHED,
)  # fmt: skip
LOSSES = sa.Table(
    "losses",
    METADATA,
    sa.Column("job", sa.Text, sa.ForeignKey("jobs.id"), primary_key=True),
    sa.Column("step", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("loss", sa.Double, nullable=False),
    sa.Column("penalty", sa.Double, nullable=False),
)


def create(connection: sa.Connection) -> None:
    """Make what is not there: tables, and columns that an earlier version did not have."""
    METADATA.create_all(connection)
    here = {column["name"] for column in sa.inspect(connection).get_columns("corrections")}
    for name in ("sent", "sound", "first"):
        if name not in here:
            kind = CORRECTIONS.c[name].type.compile(connection.dialect)
            connection.exec_driver_sql(f"ALTER TABLE corrections ADD COLUMN {name} {kind}")
