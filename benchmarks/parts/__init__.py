"""One file per part, each with a function `run(session)` that adds its results to the report."""
