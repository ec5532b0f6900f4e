"""A study: one task, a budget of several runs, kept in a store."""
