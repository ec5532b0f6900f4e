"""Where the runs of a study are done: in processes of this machine, or on a Ray cluster."""
