"""More than one run: studies, rivals, engines."""
