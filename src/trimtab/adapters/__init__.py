"""Steering runs in the frameworks that people train with: what they share, and a folder each."""
