"""Runs plans on a device: plan -> tensors -> model -> sampler -> result.

May import: models, layers, kernels, checkpoint, config, types, errors; torch and numpy. No policy: which tokens
run is decided elsewhere. Read first: `model_runner.py`, `batch_state.py`, `cpu_executor.py`.
"""
