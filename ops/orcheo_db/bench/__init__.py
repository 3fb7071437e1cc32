"""Benchmarks: what is claimed, measured against a baseline in the same run, on an installation of their own.

installation   a throw-away installation beside the user's
search         `orcheo-db search` at a million history steps against ILIKE and OFFSET on the app's tables
"""
