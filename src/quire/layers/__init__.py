"""Building blocks of models. Parameters are made on the meta device and filled in by models/loading.

A block's `forward` is called directly, never through `nn.Module.__call__`: hooks have no place on the hot path.

May import: kernels, config, types, errors; torch. Read first: `forward_batch.py`, `attention.py`, `linear.py`.
"""
