"""What a rescue is worth: faults put into fine-tuning runs, with and without it."""
