"""Families of simulated tasks, one file each."""
