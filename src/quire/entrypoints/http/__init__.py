"""The OpenAI-compatible HTTP server.

May import: frontend, engine (types of its port only), config, types, errors; fastapi, uvicorn, pydantic, msgspec,
prometheus_client. Never torch, not even indirectly. Read first: `app.py`, `chat.py`, `generation.py`, `streaming.py`.
"""
