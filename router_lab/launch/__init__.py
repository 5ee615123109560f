"""Grids on one machine: which runs there are, a process each, and a table of how they do."""
