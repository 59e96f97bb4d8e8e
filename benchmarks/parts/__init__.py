"""One file a part, each with `run(session) -> None`, which puts its results into the report."""
