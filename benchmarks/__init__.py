"""Paired measurements against peers; each runs from a checkout as `python -m benchmarks.NAME`."""
