"""Benchmarks: ratios of one interleaved run, no timed tests."""
