"""Rows that are read in blocks: files larger than memory, and whatever else yields rows."""
