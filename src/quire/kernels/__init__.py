"""One folder per op: the documented function, `reference.py`, and one file per fast implementation.

`<op>/__init__.py` documents the op, checks shapes and calls the implementation; `reference.py` is the slow obvious
twin that the tests compare with. Shapes use one legend: T tokens of the flat axis, S sequences, H heads, D head size.

May import: errors; torch and numpy. Knows no other room. Read first: `paged_attention/__init__.py`,
`linear/__init__.py`, `sample/__init__.py`.
"""
