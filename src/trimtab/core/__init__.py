"""What the words mean: hyperparameters, metrics, features, rewards, guard, session."""
