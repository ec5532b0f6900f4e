"""The database of runs and studies, and their snapshots."""
