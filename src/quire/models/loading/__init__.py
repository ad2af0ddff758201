"""Puts a checkpoint's tensors into a model that was built on the meta device.

May import: checkpoint, the model registry and `placement.py`; torch, numpy, gguf, tqdm.
Read first: `load.py`, `matching.py`, `dequantize.py`.
"""
