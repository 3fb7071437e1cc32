"""`orcheo-db search`: full text, similar words and JSON filters over runs, their steps, chat messages and workflows.

The index is the init job's (`bootstrap/search.py`); here it is brought up to date and asked.
"""
