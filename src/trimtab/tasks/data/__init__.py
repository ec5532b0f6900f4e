"""Data sets, splits and batches that tasks share."""
