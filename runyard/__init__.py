"""Durable container runs on Temporal."""

__version__ = "0.1.0"
