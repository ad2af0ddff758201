"""Frames and messages between the front end and the engine."""

import socket
import struct

import pytest

from quire.config.engine import EngineConfig
from quire.engine import wire
from quire.errors import EngineProtocolError
from quire.types.deltas import FinishReason, SequenceDelta, StepOutputs
from quire.types.ids import RequestId


def test_a_config_travels_whole() -> None:
    config = EngineConfig.from_options(model="m", max_num_seqs=3, kv_cache_memory_bytes=2**31)
    frame = wire.encode(wire.Start(config=config, log_level="info"))
    decoded = wire.decode_to_engine(frame[wire.LENGTH.size :])
    assert isinstance(decoded, wire.Start)
    assert decoded.config == config


def test_outputs_travel_whole() -> None:
    outputs = [StepOutputs([SequenceDelta(RequestId("a"), 1, [3, 4], finish_reason=FinishReason.LENGTH)])]
    frame = wire.encode(wire.Outputs(outputs=outputs))
    decoded = wire.decode_from_engine(frame[wire.LENGTH.size :])
    assert isinstance(decoded, wire.Outputs)
    assert decoded.outputs == outputs


def test_profiles_travel_whole() -> None:
    question, answer = wire.Profile(start=True), wire.Profiled(kind="ConfigError", message="m", hint="h", param="p")
    assert wire.decode_to_engine(wire.encode(question)[wire.LENGTH.size :]) == question
    assert wire.decode_from_engine(wire.encode(answer)[wire.LENGTH.size :]) == answer


def test_a_frame_may_arrive_in_pieces() -> None:
    left, right = socket.socketpair()
    frame = wire.encode(wire.Abort(request_ids=[RequestId("x" * 100)]))
    for position in range(0, len(frame), 7):
        left.sendall(frame[position : position + 7])
    left.close()
    body = wire.read_frame(right)
    assert body is not None
    assert wire.decode_to_engine(body) == wire.Abort(request_ids=[RequestId("x" * 100)])
    assert wire.read_frame(right) is None
    right.close()


def test_a_frame_cut_short_is_the_end() -> None:
    left, right = socket.socketpair()
    left.sendall(wire.encode(wire.Abort(request_ids=[RequestId("x")]))[:-1])
    left.close()
    assert wire.read_frame(right) is None
    right.close()


@pytest.mark.parametrize("body", [b"", b"\xc1", b"\x81\xa4type\xa5other", b"\x93\x01\x02\x03", b"\x80"])
def test_a_body_that_does_not_parse_is_a_protocol_error(body: bytes) -> None:
    with pytest.raises(EngineProtocolError):
        wire.decode_to_engine(body)


def test_a_length_beyond_any_message_is_refused() -> None:
    with pytest.raises(EngineProtocolError, match="exceeds the limit"):
        wire.frame_length(struct.pack("<I", 0xFFFFFFFF))
