"""Asks a running server with the official OpenAI client, whole and streamed.

Start a server first (`make serve`, or `quire serve`). Usage: python examples/chat_client.py [URL]
"""

import os
import sys

from openai import OpenAI

URL = "http://127.0.0.1:8000/v1"


def main() -> None:
    """Prints one answer at once, and another one piece by piece."""
    client = OpenAI(base_url=(sys.argv[1:] or [URL])[0], api_key=os.environ.get("QUIRE_API_KEY", "not-needed"))
    model = client.models.list().data[0].id
    question = [{"role": "user", "content": "Why is the sky blue?"}]

    answer = client.chat.completions.create(model=model, messages=question, max_tokens=48, temperature=0)
    print(answer.choices[0].message.content)
    print(f"[{answer.usage.completion_tokens} tokens]")

    for event in client.chat.completions.create(model=model, messages=question, max_tokens=48, stream=True):
        if event.choices:
            print(event.choices[0].delta.content or "", end="", flush=True)
    print()


if __name__ == "__main__":
    main()
