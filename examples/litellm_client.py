"""Asks a running server through LiteLLM: a chat, a stream, a call of a function, and Anthropic's API.

Needs `pip install litellm mcp`. Start a server first (`quire serve`). Usage: python examples/litellm_client.py [URL]
"""

import os
import sys

import httpx
import litellm

URL = "http://127.0.0.1:8000"
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "enum": ["Bern", "Oslo"]}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}


def main() -> None:
    """Prints four answers."""
    url = (sys.argv[1:] or [URL])[0]
    key = os.environ.get("QUIRE_API_KEY", "not-needed")
    listed = httpx.get(f"{url}/v1/models", headers={"Authorization": f"Bearer {key}"}).raise_for_status()
    model = listed.json()["data"][0]["id"]
    question = [{"role": "user", "content": "What is the weather in Bern?"}]

    # The prefix names the API that LiteLLM speaks; what follows it is sent as the model.
    chat = {"model": f"hosted_vllm/{model}", "api_base": f"{url}/v1", "api_key": key, "messages": question}
    print(litellm.completion(**chat, max_tokens=16, temperature=0).choices[0].message.content)

    for chunk in litellm.completion(**chat, max_tokens=16, stream=True):
        print(chunk.choices[0].delta.content or "", end="", flush=True)
    print()

    answer = litellm.completion(**chat, max_tokens=100, tools=[WEATHER], tool_choice="required")
    for call in answer.choices[0].message.tool_calls:
        print(f"{call.function.name}({call.function.arguments})")

    message = {**chat, "model": f"anthropic/{model}", "api_base": url}
    print(litellm.completion(**message, max_tokens=16).choices[0].message.content)


if __name__ == "__main__":
    main()
