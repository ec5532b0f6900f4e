"""How a store of an older schema becomes one of this code's, revision by revision (Alembic)."""
