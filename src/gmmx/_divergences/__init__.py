"""Divergences between two mixtures, and the entropy of one.

What loops over components is jitted: called from Python, a loop of JAX compiles at every call.
"""
