"""What happened: the store of runs, the report, exports."""
