"""Has a running server fill in pydantic models, with instructor.

Needs `pip install instructor`. Start a server first (`quire serve`). Usage: python examples/instructor_client.py [URL]
"""

import os
import sys
from typing import Literal

import instructor
from openai import OpenAI
from pydantic import BaseModel, Field

URL = "http://127.0.0.1:8000/v1"


class Colour(BaseModel):
    """What is known about a colour."""

    name: Literal["red", "green", "blue"]
    is_warm: bool
    example: str = Field(max_length=24)


def main() -> None:
    """Fills in a model by a JSON schema, and another one by a call of a function."""
    client = OpenAI(base_url=(sys.argv[1:] or [URL])[0], api_key=os.environ.get("QUIRE_API_KEY", "not-needed"))
    model = client.models.list().data[0].id
    for mode in (instructor.Mode.JSON_SCHEMA, instructor.Mode.TOOLS):
        colour = instructor.from_openai(client, mode=mode).chat.completions.create(
            model=model,
            messages=[{"role": "user", "content": "Tell me about a colour."}],
            response_model=Colour,
            max_tokens=100,
            temperature=0,
            max_retries=0,
        )
        print(f"{mode.value}: {colour!r}")


if __name__ == "__main__":
    main()
