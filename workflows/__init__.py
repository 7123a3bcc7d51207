"""Deterministic code only."""
