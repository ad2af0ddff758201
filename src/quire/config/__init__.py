"""Frozen settings, one file per owner. Command line, `LLM(...)` and YAML all fill these same fields.

May import: types, errors. Read first: `engine.py`, `option.py`, `scheduler.py`.
"""
