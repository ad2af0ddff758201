"""POST /tokenize and /detokenize."""

from typing import Any

import pytest

pytestmark = pytest.mark.anyio


async def test_a_prompt_there_and_back(quiet: Any) -> None:
    answer = (await quiet.post("/tokenize", {"prompt": "Hi é", "return_token_strs": True})).json()
    assert (answer["count"], answer["max_model_len"], len(answer["tokens"])) == (5, 512, 5)
    assert answer["token_strs"][:3] == ["H", "i", " "]
    back = (await quiet.post("/detokenize", {"tokens": answer["tokens"]})).json()
    assert back == {"prompt": "Hi é"}


async def test_messages_as_the_chat_would_see_them(quiet: Any) -> None:
    messages = [{"role": "user", "content": "Hello"}]
    tokens = (await quiet.post("/tokenize", {"messages": messages})).json()["tokens"]
    chat = (await quiet.chat(return_token_ids=True)).json()
    assert tokens == chat["prompt_token_ids"]
    bare = (await quiet.post("/tokenize", {"messages": messages, "add_generation_prompt": False})).json()
    text = (await quiet.post("/detokenize", {"tokens": bare["tokens"]})).json()["prompt"]
    assert text == "<|im_start|>user\nHello<|im_end|>\n"


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/tokenize", {}, "prompt"),
        ("/tokenize", {"prompt": "a", "messages": [{"role": "user", "content": "a"}]}, "prompt"),
        ("/tokenize", {"messages": []}, "messages"),
        ("/tokenize", {"prompt": 5}, "prompt"),
        ("/detokenize", {}, "tokens"),
        ("/detokenize", {"tokens": [10**6]}, "tokens"),
        ("/detokenize", {"tokens": [-1]}, "tokens[0]"),
    ],
)
async def test_bad_bodies(quiet: Any, path: str, body: dict[str, Any], param: str | None) -> None:
    response = await quiet.post(path, body)
    assert (response.status_code, response.json()["error"]["param"]) == (400, param)
