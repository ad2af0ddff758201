"""One file per architecture, on shared layers; the registry; tensor loading.

`forward(batch)` runs a step and returns final hidden states, `compute_logits(hidden)` the scores, `tensor_map()` says
where each tensor of a checkpoint goes, `finish_loading()` packs the weights once all of them are there.

May import: layers, kernels, checkpoint, config, types, errors; torch, safetensors, gguf. Read first: `decoder.py`,
`llama.py`, `registry.py`.
"""
