"""Finds a model (hub id, folder, GGUF file) and reads all of it that is not a tensor.

Both halves read this room, so it never imports torch. Nothing in a model's files is trusted: every size, count and
offset is checked before it is used, and no code from a model's folder is ever run.

May import: config, types, errors; huggingface_hub (where it is used, because it is slow to import).
Read first: `checkpoint.py`, `architecture.py`, `gguf_file.py`, `safetensors_index.py`.
"""
