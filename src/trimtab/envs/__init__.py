"""Learning problems: the Gymnasium environment and the simulated fine-tuning runs."""
