"""HTTP answers and event streams, cut anywhere."""

from collections.abc import Iterator

import pytest

from quire.entrypoints.cli.bench.client import Address, parse_address
from quire.entrypoints.cli.bench.event_stream import EventStream
from quire.entrypoints.cli.bench.http_response import MAX_HEAD_BYTES, HttpResponse
from quire.entrypoints.cli.bench.streamed_answer import StreamedAnswer
from quire.errors import ConfigError, EngineProtocolError

CHUNKED = (
    b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nX-A: b:c\r\n\r\n"
    b"5\r\nhello\r\n1;note=1\r\n \r\n6\r\nworld!\r\n0\r\nTrailer: x\r\n\r\n"
)
COUNTED = b"HTTP/1.1 404 Not Found\r\nContent-Length: 12\r\nConnection: close\r\n\r\nhello world!"


def cuts(data: bytes) -> Iterator[list[bytes]]:
    yield [data[index : index + 1] for index in range(len(data))]
    yield from ([data[:index], data[index:]] for index in range(len(data) + 1))


@pytest.mark.parametrize(("data", "status", "keeps_connection"), [(CHUNKED, 200, True), (COUNTED, 404, False)])
def test_answers_cut_anywhere(data: bytes, status: int, keeps_connection: bool) -> None:
    for pieces in cuts(data):
        response = HttpResponse()
        assert b"".join(response.feed(piece) for piece in pieces) == b"hello world!"
        assert (response.status, response.is_complete, response.keeps_connection) == (status, True, keeps_connection)


def test_headers() -> None:
    response = HttpResponse()
    response.feed(CHUNKED)
    assert response.headers == {"transfer-encoding": "chunked", "x-a": "b:c"}


def test_a_body_until_the_end_of_the_connection() -> None:
    response = HttpResponse()
    assert response.feed(b"HTTP/1.0 200 OK\r\n\r\nhello ") + response.feed(b"world!") == b"hello world!"
    assert not response.is_complete
    response.close()
    assert response.is_complete


def test_answers_without_a_body() -> None:
    for head in (b"HTTP/1.1 204 No Content\r\n\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"):
        response = HttpResponse()
        assert response.feed(head) == b""
        assert response.is_complete


@pytest.mark.parametrize("data", [b"", CHUNKED[:-1], CHUNKED[:120], COUNTED[:-1]])
def test_an_answer_that_breaks_off(data: bytes) -> None:
    response = HttpResponse()
    response.feed(data)
    with pytest.raises(EngineProtocolError, match="closed before the answer was complete"):
        response.close()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"SSH-2.0-x\r\n\r\n", "not an HTTP answer"),
        (b"HTTP/1.1 abc\r\n\r\n", "not an HTTP answer"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n", "content-length is '-1'"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n", "the size of a chunk is"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + b"0" * 2000, "the size of a chunk does not end"),
        (b"HTTP/1.1 200 OK\r\nX: " + b"x" * MAX_HEAD_BYTES, "head of the answer exceeds"),
    ],
)
def test_what_is_not_http(data: bytes, message: str) -> None:
    with pytest.raises(EngineProtocolError, match=message):
        HttpResponse().feed(data)


@pytest.mark.parametrize("line_break", [b"\n", b"\r\n", b"\r"])
def test_events_cut_anywhere(line_break: bytes) -> None:
    text = b": hello\n\ndata: one\n\nevent: x\ndata:two\ndata:  three\nid: 4\n\n\ndata: [DONE]\n\n"
    for pieces in cuts(text.replace(b"\n", line_break)):
        stream = EventStream()
        found = [data for piece in pieces for data in stream.feed(piece)]
        assert found == [b"one", b"two\n three", b"[DONE]"]


def test_an_event_that_is_not_finished_is_none() -> None:
    assert EventStream().feed(b"data: one\n") == []


def test_an_answer_counts_events_with_a_choice_even_without_text() -> None:
    answer = StreamedAnswer()
    answer.take(b'data: {"choices": [{"delta": {"role": "assistant"}}]}\n\n', 1.0)
    answer.take(b'data: {"choices": [{"delta": {"content": "hi"}, "finish_reason": "stop"}]}\n\n', 2.0)
    answer.take(b'data: {"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 1}}\n\n', 3.0)
    assert answer.choice_times == [1.0, 2.0]
    assert answer.texts == ["", "hi"]
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 1
    assert answer.failure(200) is None


@pytest.mark.parametrize(
    ("status", "body", "failure"),
    [
        (429, b'{"error": {"message": "full", "code": 429}}', "HTTP 429: full"),
        (500, b"<html>", "HTTP 500: <html>"),
        (502, b"", "HTTP 502: no message"),
        (200, b"data: [DONE]\n\n", "the stream held no choice"),
        (200, b'data: {"choices": [{"text": "a"}]}\n\n', "the stream ended before the answer was finished"),
        (
            200,
            b'data: {"choices": [{"text": "a"}]}\n\ndata: {"error": {"message": "lost"}}\n\n',
            "the stream ended with an error: lost",
        ),
    ],
)
def test_answers_that_count_as_failed(status: int, body: bytes, failure: str) -> None:
    answer = StreamedAnswer()
    answer.take(body, 1.0)
    assert answer.failure(status) == failure


def test_an_event_that_is_no_json() -> None:
    with pytest.raises(EngineProtocolError, match="does not parse"):
        StreamedAnswer().take(b"data: {\n\n", 1.0)


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("http://localhost:8000", Address("localhost", 8000)),
        ("http://localhost:8000/v1", Address("localhost", 8000)),
        ("http://localhost:8000/v1/", Address("localhost", 8000)),
        ("https://host/api", Address("host", 443, True, "/api")),
        ("http://[::1]:80", Address("::1", 80)),
    ],
)
def test_addresses(url: str, address: Address) -> None:
    assert parse_address(url) == address


@pytest.mark.parametrize("url", ["localhost:8000", "ftp://x", "http://", "http://x:99999", ""])
def test_refused_addresses(url: str) -> None:
    with pytest.raises(ConfigError, match="is not an HTTP address"):
        parse_address(url)
