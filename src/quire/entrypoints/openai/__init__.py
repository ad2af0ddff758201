"""Where scripts written for vLLM look for the server: `python -m quire.entrypoints.openai.api_server`.

May import: entrypoints.cli. `quire serve` is the command to use.
"""
