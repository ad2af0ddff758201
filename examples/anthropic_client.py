"""Asks a running server with Anthropic's official client: streamed, and with a tool.

Needs `pip install anthropic`. Start a server first (`quire serve`). Usage: python examples/anthropic_client.py [URL]
"""

import os
import sys

from anthropic import Anthropic

URL = "http://127.0.0.1:8000"
WEATHER = {
    "name": "get_weather",
    "description": "The weather in a city.",
    "input_schema": {
        "type": "object",
        "properties": {"city": {"type": "string", "enum": ["Bern", "Oslo"]}},
        "required": ["city"],
        "additionalProperties": False,
    },
}


def main() -> None:
    """Prints an answer as it comes, then has the model call a tool and read its result."""
    client = Anthropic(base_url=(sys.argv[1:] or [URL])[0], api_key=os.environ.get("QUIRE_API_KEY", "not-needed"))
    model = client.models.list().data[0].id
    messages = [{"role": "user", "content": "What is the weather in Bern?"}]
    print(client.messages.count_tokens(model=model, messages=messages).input_tokens, "tokens go in")

    with client.messages.stream(model=model, max_tokens=32, messages=messages) as stream:
        for text in stream.text_stream:
            print(text, end="", flush=True)
    print()

    answer = client.messages.create(
        model=model,
        max_tokens=100,
        messages=messages,
        tools=[WEATHER],
        tool_choice={"type": "any", "disable_parallel_tool_use": True},
    )
    (call,) = [block for block in answer.content if block.type == "tool_use"]
    print(f"{call.name}({call.input})")

    result = {"type": "tool_result", "tool_use_id": call.id, "content": "sunny, 20 degrees"}
    messages += [{"role": "assistant", "content": answer.content}, {"role": "user", "content": [result]}]
    answer = client.messages.create(model=model, max_tokens=32, messages=messages)
    print(answer.content[0].text, f"[{answer.usage.output_tokens} tokens]")


if __name__ == "__main__":
    main()
