"""Which tokens run next.

May import: kvcache, config, types, errors. No torch, no clock, no I/O: time comes in as an argument.
Read first: `scheduler.py`, `sequence.py`, `victim.py`.
"""
