"""Who owns which block of the KV cache: references, sharing, and what can be found again. Never a tensor.

May import: config, types, errors, and of the standard library nothing that does I/O. Never torch.
Read first: `manager.py`, `prefix_index.py`, `block_pool.py`.
"""
