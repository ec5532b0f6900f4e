"""Simulated fine-tuning runs, drawn from documented distributions."""
