"""Measurements behind docs/results.md; each prints a table and can write JSON."""
