"""Text to tokens and back, one stream per request.

May import: engine (its port only), checkpoint, config, types, errors; tokenizers, jinja2. Never torch.
Read first: `async_engine.py`, `input_processor.py`, `processor.py`.
"""
