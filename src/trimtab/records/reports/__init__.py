"""Pages that show a run, a study, a comparison."""
