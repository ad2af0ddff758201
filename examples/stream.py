"""Streams an answer from a running server with nothing but httpx, to show what is on the wire.

Start a server first (`make serve`, or `quire serve`). Usage: python examples/stream.py [URL]
"""

import json
import sys

import httpx

URL = "http://127.0.0.1:8000/v1"


def main() -> None:
    """Prints the text of each event as it comes, then the usage."""
    url = (sys.argv[1:] or [URL])[0]
    body = {
        "prompt": "The three states of matter are",
        "max_tokens": 32,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    with httpx.stream("POST", f"{url}/completions", json=body, timeout=None) as response:
        response.raise_for_status()
        for line in response.iter_lines():
            data = line.removeprefix("data: ")
            if not line or data == "[DONE]":
                continue
            event = json.loads(data)
            for choice in event["choices"]:
                print(choice["text"], end="", flush=True)
            if event.get("usage"):
                print(f"\n{event['usage']}")


if __name__ == "__main__":
    main()
