"""A run as one file: out of a store, and into another one."""
