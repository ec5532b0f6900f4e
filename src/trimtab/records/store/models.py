"""The tables of the store: studies, units, runs, decisions, snapshots.

Times are seconds since 1970 in UTC. Columns of JSON hold text written by `records.store.encoding`,
so that every database holds the same bytes; a value that is not finite stands there as null or
``"inf"``. Observations are little-endian float32.
"""

from __future__ import annotations

from sqlalchemy import (
    Boolean,
    Column,
    Float,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
)

SCHEMA_VERSION = "0002"
"""Revision of the newest file in `migrations/versions`; the store of this code."""

METADATA = MetaData()

studies = Table(
    "studies",
    METADATA,
    Column("id", Integer, primary_key=True),
    Column("name", String(200), nullable=False, unique=True),
    Column("task", String(400), nullable=False),
    Column("method", String(200), nullable=False),
    Column("budget", Float, nullable=False),  # whole-run equivalents
    Column("seed", Integer, nullable=False),
    Column("settings", Text, nullable=False),  # JSON
    Column("status", String(20), nullable=False),
    Column("created_at", Float, nullable=False),
    Column("heartbeat_at", Float),
    Column("finished_at", Float),
    Column("summary", Text),  # JSON
)

runs = Table(
    "runs",
    METADATA,
    Column("id", Integer, primary_key=True),
    Column("study_id", Integer, ForeignKey("studies.id")),
    Column("parent_run", Integer, ForeignKey("runs.id")),
    Column("fork_decision", Integer),
    Column("task", String(400), nullable=False),
    Column("variant", String(100), nullable=False),
    Column("policy", String(400), nullable=False),
    Column("reference", String(100), nullable=False),
    Column("seed", Integer, nullable=False),
    Column("monitor", String(100), nullable=False),
    Column("mode", String(10), nullable=False),
    Column("total_steps", Integer, nullable=False),
    Column("watch_only", Boolean, nullable=False),
    Column("start_scale", Float),
    Column("start", Text, nullable=False),  # JSON: value by hyperparameter
    Column("spec", Text, nullable=False),  # JSON: the ControlSpec
    Column("spec_hash", String(16), nullable=False),
    Column("notices", Text, nullable=False),  # JSON: text by name
    Column("command", Text, nullable=False),
    Column("versions", Text, nullable=False),  # JSON: version by package
    Column("git_commit", String(64)),
    Column("host", String(255), nullable=False),
    Column("pid", Integer, nullable=False),
    Column("status", String(20), nullable=False),
    Column("started_at", Float, nullable=False),
    Column("heartbeat_at", Float, nullable=False),
    Column("finished_at", Float),
    Column("summary", Text),  # JSON: figures of the finished run
    Column("schedule", Text),  # JSON: list by hyperparameter, one value a step
    Column("place", Integer),  # of its unit in the study; null for a run of its own
    Column("round", Integer),  # of the study in which it was proposed
    Column("kind", String(20)),  # first, restart, fork, method, told
    Column("choices", Text),  # JSON: static choice by name
    Index("runs_by_study", "study_id"),
)

# A unit is what a worker of a study does in one go: one run, or all runs of another method.
units = Table(
    "units",
    METADATA,
    Column("id", Integer, primary_key=True),
    Column("study_id", Integer, ForeignKey("studies.id", ondelete="CASCADE"), nullable=False),
    Column("place", Integer, nullable=False),  # 0, 1, ... within the study
    Column("round", Integer, nullable=False),
    Column("kind", String(20), nullable=False),
    Column("request", Text, nullable=False),  # JSON: what is to be done
    Column("status", String(20), nullable=False),  # waiting, claimed, done, failed
    Column("owner", String(400)),  # who has claimed it, see `records.store.provenance`
    Column("lease_until", Float),  # after that, anyone may claim it
    Column("attempts", Integer, nullable=False),  # claims so far
    Column("stalled", Integer, nullable=False),  # claims since something was last kept of it
    Column("run_id", Integer, ForeignKey("runs.id")),  # of a unit that is one run
    Column("outcome", Text),  # JSON; null until it is done or failed
    Column("created_at", Float, nullable=False),
    Column("finished_at", Float),
    UniqueConstraint("study_id", "place", name="units_by_place"),
)

decisions = Table(
    "decisions",
    METADATA,
    Column("run_id", Integer, ForeignKey("runs.id", ondelete="CASCADE"), primary_key=True),
    Column("decision", Integer, primary_key=True, autoincrement=False),
    Column("step", Integer, nullable=False),
    Column("progress", Float, nullable=False),
    Column("taken_at", Float, nullable=False),
    Column("metrics", Text, nullable=False),  # JSON: what the window before it measured
    Column("measured", Text, nullable=False),  # JSON: all values of the validation
    Column("observation", LargeBinary, nullable=False),
    Column("action", Text),  # JSON; null if the controller failed
    Column("proposed", Text, nullable=False),  # JSON: value by hyperparameter
    Column("applied", Text, nullable=False),  # JSON: value by hyperparameter
    Column("offset", Text, nullable=False),  # JSON: list of coordinates relative to the start
    Column("reasons", Text, nullable=False),  # JSON: bits by hyperparameter
    Column("why", Text, nullable=False),  # the same in words
    Column("restored", Boolean, nullable=False),
    Column("terminated", Boolean, nullable=False),
    Column("reward", Float),  # null: not finite
    Column("note", Text, nullable=False),
)

snapshots = Table(
    "snapshots",
    METADATA,
    Column("id", Integer, primary_key=True),
    Column("run_id", Integer, ForeignKey("runs.id", ondelete="CASCADE"), nullable=False),
    Column("decision", Integer, nullable=False),
    Column("step", Integer, nullable=False),
    Column("path", Text, nullable=False),
    Column("bytes", Integer, nullable=False),
    Column("sha256", String(64), nullable=False),
    Column("created_at", Float, nullable=False),
    # latest: to go on from; fork: to fork from; final: with the best weights of a finished run
    Column("purpose", String(20), nullable=False, server_default="latest"),
    Index("snapshots_by_run", "run_id", "decision"),
)
