"""The loop: schedule, execute, update; in this process or in one of its own.

May import: scheduler, kvcache, checkpoint, config, types, errors; msgspec. Never torch: all it knows of the
compute half is the `Executor` protocol. Read first: `loop.py`, `executor.py`, `client.py`.
"""
