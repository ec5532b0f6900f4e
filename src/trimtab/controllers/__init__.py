"""Choosing values while a run goes on."""
