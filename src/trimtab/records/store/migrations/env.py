"""What Alembic runs: the revisions, on the connection that the store already holds."""

from __future__ import annotations

from alembic import context

from trimtab.records.store.models import METADATA

connection = context.config.attributes.get("connection")
if connection is None:
    raise RuntimeError("migrations run in records.store.database, which brings a connection")
# The caller has begun the transaction, so that two processes cannot both create the tables.
context.configure(connection=connection, target_metadata=METADATA, render_as_batch=True)
context.run_migrations()
