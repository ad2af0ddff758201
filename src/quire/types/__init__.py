"""Plain values that cross rooms.

May import: errors, the standard library. Read first: `request.py`, `plan.py`, `outputs.py`.
"""
