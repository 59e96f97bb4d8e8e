"""Benchmarks of gmmx beside what would be used instead of it; see README.md."""
