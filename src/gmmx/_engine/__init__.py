"""Log-densities and moments of many rows, by the fastest way that is accurate."""
