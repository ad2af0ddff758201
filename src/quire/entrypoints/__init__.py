"""Where users come in: the command line, HTTP, and `LLM`.

May import: every room but testing. Only `launch.py` touches the compute half, and only when it is called. Read
first: `launch.py`, `llm.py`, `http/app.py`.
"""
