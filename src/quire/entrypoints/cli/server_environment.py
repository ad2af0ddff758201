"""What the environment says about servers."""

import os


def find_api_key(given: str | None) -> str | None:
    """The key that was given, or the one of QUIRE_API_KEY or OPENAI_API_KEY."""
    return given or os.environ.get("QUIRE_API_KEY") or os.environ.get("OPENAI_API_KEY") or None
