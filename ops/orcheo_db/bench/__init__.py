"""Benchmarks: each measures against a baseline of the same run and leaves nothing behind."""
