"""Messages between the front end and the engine process: msgpack in frames of a length and a body.

Both sides are our own code of the same version, started by the same user; a frame that does not parse is a bug
and ends the connection with `EngineProtocolError`.
"""

import socket
import struct
from typing import Any

import msgspec

from quire.config.engine import EngineConfig
from quire.engine.port import EngineInfo
from quire.errors import EngineProtocolError
from quire.types.deltas import StepOutputs
from quire.types.ids import RequestId
from quire.types.request import GenerationRequest

MAX_FRAME_BYTES = 1 << 30
"""A longer frame can only come from a peer that is not ours."""

LENGTH = struct.Struct("<I")


class Start(msgspec.Struct, tag="start"):
    """Front end to engine, first message: what to load."""

    config: EngineConfig
    log_level: str
    log_format: str = "text"


class Add(msgspec.Struct, tag="add"):
    """Front end to engine: a request."""

    request: GenerationRequest


class Abort(msgspec.Struct, tag="abort"):
    """Front end to engine: requests that nobody waits for any more."""

    request_ids: list[RequestId]


class Profile(msgspec.Struct, tag="profile"):
    """Front end to engine: begin to record a trace, or end it. Answered by one `Profiled`, in the order of arrival."""

    start: bool


class Ready(msgspec.Struct, tag="ready"):
    """Engine to front end: requests may come."""

    info: EngineInfo


class StartFailed(msgspec.Struct, tag="start_failed"):
    """Engine to front end: it could not start; the fields are those of the error."""

    kind: str
    message: str
    hint: str | None
    param: str | None


class Profiled(msgspec.Struct, tag="profiled"):
    """Engine to front end: a trace has begun or is written.

    Attributes:
        path: Of the trace that was ended.
        kind: With the fields below it, those of the error if it failed; else None.
    """

    path: str | None = None
    kind: str | None = None
    message: str = ""
    hint: str | None = None
    param: str | None = None


class Outputs(msgspec.Struct, tag="outputs"):
    """Engine to front end: what the steps since the last message produced."""

    outputs: list[StepOutputs]


ToEngine = Start | Add | Abort | Profile
FromEngine = Ready | StartFailed | Profiled | Outputs

_encoder = msgspec.msgpack.Encoder()
_to_engine = msgspec.msgpack.Decoder(ToEngine)
_from_engine = msgspec.msgpack.Decoder(FromEngine)


def encode(message: ToEngine | FromEngine) -> bytes:
    """A whole frame."""
    body = _encoder.encode(message)
    return LENGTH.pack(len(body)) + body


def decode_to_engine(body: bytes) -> ToEngine:
    """A message that the engine receives."""
    message: ToEngine = _decode(_to_engine, body)
    return message


def decode_from_engine(body: bytes) -> FromEngine:
    """A message that the front end receives."""
    message: FromEngine = _decode(_from_engine, body)
    return message


def frame_length(header: bytes) -> int:
    """Bytes of the body that follows.

    Raises:
        EngineProtocolError: More than any message of ours.
    """
    length: int = LENGTH.unpack(header)[0]
    if length > MAX_FRAME_BYTES:
        raise EngineProtocolError(f"a frame of {length} bytes exceeds the limit of {MAX_FRAME_BYTES}")
    return length


def read_frame(connection: socket.socket) -> bytes | None:
    """The next body from a blocking socket; None at its end."""
    header = _read_exactly(connection, LENGTH.size)
    return None if header is None else _read_exactly(connection, frame_length(header))


def _read_exactly(connection: socket.socket, count: int) -> bytes | None:
    data = bytearray(count)
    view = memoryview(data)
    while view:
        received = connection.recv_into(view)
        if received == 0:
            return None
        view = view[received:]
    return bytes(data)


def _decode(decoder: msgspec.msgpack.Decoder[Any], body: bytes) -> Any:
    try:
        return decoder.decode(body)
    except msgspec.MsgspecError as error:
        raise EngineProtocolError(f"a message between front end and engine does not parse: {error}") from error
