"""No body whatsoever gets a 500: each is answered or refused with the envelope."""

import asyncio
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from quire.entrypoints.http.protocol import ChatBody, CompletionBody

LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 5),
    st.sampled_from(
        [2**31, -(2**31), 2**63, -(2**64), 10**30, 1e308, -1e308, 0.5, "", "a", "\x00", "é\ufdd0", "<|im_end|>"]
    ),
)
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["a", "1", "type", "text"]), inner),
)
MESSAGES = st.lists(
    st.fixed_dictionaries({}, optional={"role": VALUES | st.just("user"), "content": VALUES, "name": VALUES}),
    max_size=3,
)


def _bodies(model: Any) -> st.SearchStrategy[dict[str, Any]]:
    """One to three odd fields in a body that is good otherwise."""
    names = sorted(model.model_fields.keys() | {"tools", "response_format", "echo", "store"})
    return st.dictionaries(st.sampled_from(names), VALUES, min_size=1, max_size=3)


@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_any_body(serve: Any, data: st.DataObject) -> None:
    chat = data.draw(st.booleans())
    model, path = (ChatBody, "/v1/chat/completions") if chat else (CompletionBody, "/v1/completions")
    body = {"prompt": "a", "max_tokens": 2, "messages": [{"role": "user", "content": "x"}], "n": 1}
    body |= data.draw(_bodies(model))
    if chat and data.draw(st.booleans()):
        body["messages"] = data.draw(MESSAGES)

    async def scenario() -> None:
        async with serve() as server:
            response = await server.post(path, body)
            assert response.status_code in (200, 400, 404), response.text
            if response.status_code != 200:
                assert response.json()["error"]["code"] == response.status_code
            elif body.get("stream"):
                assert not any("error" in event for event in server.events(response))
            assert server.engine.num_requests == 0
            await server.until(lambda: not server.port.loop.has_unfinished)

    asyncio.run(scenario())
