"""Divergences between two mixtures, and the entropy of one."""
