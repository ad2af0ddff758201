"""The events of a streamed response. The whole response is what the events add up to, so both have one source."""

from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from quire.entrypoints.http.answer_bodies import TokenLogprob
from quire.entrypoints.http.responses.objects import (
    FunctionCallItem,
    IncompleteDetails,
    ItemStatus,
    MessageItem,
    OutputItem,
    OutputText,
    ReasoningContent,
    ReasoningItem,
    ResponseFailure,
    ResponseObject,
    ResponsesUsage,
)
from quire.frontend.answer.events import (
    AnswerEvent,
    ContentText,
    ReasoningText,
    ToolCallArguments,
    ToolCallBegin,
    ToolCallEnd,
)

_encode = msgspec.json.Encoder().encode


class ResponsesEncoder:
    """Turns the parts of one answer into the frames of a stream, and keeps the response that they describe.

    Args:
        response: In progress and without output; changed on the way to what the last frame shows.
        id_tail: Tail of the ids of items.
    """

    def __init__(self, response: ResponseObject, id_tail: str) -> None:
        self.response = response
        self._id_tail = id_tail
        self._sequence_number = 0
        self._item: OutputItem | None = None
        self._texts: list[str] = []
        self._logprobs: list[TokenLogprob] = []
        self._delta_head = b""

    def begin(self) -> bytes:
        """The frames before any output."""
        response = self.response
        return self._frame("response.created", response=response) + self._frame(
            "response.in_progress", response=response
        )

    def encode(self, events: Iterable[AnswerEvent], logprobs: Sequence[TokenLogprob] = ()) -> bytes:
        """The frames for what is new.

        Args:
            events: The parts, in order.
            logprobs: Of the tokens that the text of messages in `events` was made from.
        """
        frames = []
        for event in events:
            match event:
                case ContentText(text):
                    if text:
                        frames.append(self._content(text, logprobs))
                        logprobs = ()
                case ReasoningText(text):
                    if text:
                        frames.append(self._enter(ReasoningItem) + self._delta(text))
                case ToolCallArguments(_, text):
                    if text:
                        frames.append(self._delta(text))
                case ToolCallBegin():
                    frames.append(self._close("completed") + self._open_call(event))
                case ToolCallEnd():
                    if isinstance(self._item, FunctionCallItem):
                        frames.append(self._close("completed"))
        return b"".join(frames)

    def finish(self, usage: ResponsesUsage, completed_at: int, incomplete_reason: str | None = None) -> bytes:
        """The last frames.

        Args:
            usage: Of the whole response.
            completed_at: Seconds since the epoch.
            incomplete_reason: Why the answer was cut short; None if it was not.
        """
        response = self.response
        status: ItemStatus = "completed" if incomplete_reason is None else "incomplete"
        last_frames = self._close(status)
        response.status = status
        response.usage = usage
        if incomplete_reason is None:
            response.completed_at = completed_at
        else:
            response.incomplete_details = IncompleteDetails(incomplete_reason)
        return last_frames + self._frame(f"response.{status}", response=response)

    def fail(self, code: str, message: str) -> bytes:
        """The last frame after an error. Output that was begun stays as it is."""
        self.response.status = "failed"
        self.response.error = ResponseFailure(code, message)
        return self._frame("response.failed", response=self.response)

    def _content(self, text: str, logprobs: Sequence[TokenLogprob]) -> bytes:
        frames = self._enter(MessageItem)
        self._logprobs.extend(logprobs)
        return frames + self._delta(text, logprobs)

    def _enter(self, kind: type[MessageItem] | type[ReasoningItem]) -> bytes:
        """The frames between the last part and one of that kind; none within one."""
        if isinstance(self._item, kind):
            return b""
        frames = self._close("completed")
        index = len(self.response.output)
        if kind is MessageItem:
            self._begin(MessageItem(f"msg_{self._id_tail}-{index}", "in_progress", []), "output_text", 0)
        else:
            self._begin(ReasoningItem(f"rs_{self._id_tail}-{index}", "in_progress", [], []), "reasoning_text", 0)
        frames += self._frame("response.output_item.added", output_index=index, item=self._item)
        return frames + self._content_part_frame("added", self._part(""))

    def _open_call(self, call: ToolCallBegin) -> bytes:
        index = len(self.response.output)
        item = FunctionCallItem(f"fc_{self._id_tail}-{index}", "in_progress", call.call_id, call.name, "")
        self._begin(item, "function_call_arguments", None)
        return self._frame("response.output_item.added", output_index=index, item=item)

    def _begin(self, item: OutputItem, name: str, content_index: int | None) -> None:
        """Makes `item` the one being written, and prepares what all its deltas share."""
        self._item = item
        kind = f"response.{name}.delta"
        shared: dict[str, Any] = {"type": kind, "item_id": item.id, "output_index": len(self.response.output)}
        if content_index is not None:
            shared["content_index"] = content_index
        self._delta_head = b"event: " + kind.encode() + b"\ndata: " + _encode(shared)[:-1] + b',"sequence_number":'

    def _delta(self, text: str, logprobs: Sequence[TokenLogprob] = ()) -> bytes:
        self._texts.append(text)
        number = str(self._sequence_number).encode()
        self._sequence_number += 1
        tail = b"}\n\n"
        if isinstance(self._item, MessageItem):
            tail = b',"logprobs":' + (_encode(logprobs) if logprobs else b"[]") + tail
        return self._delta_head + number + b',"delta":' + _encode(text) + tail

    def _close(self, status: ItemStatus) -> bytes:
        """Ends the item being written, if there is one."""
        item = self._item
        if item is None:
            return b""
        index = len(self.response.output)
        text = "".join(self._texts)
        item.status = status
        if isinstance(item, FunctionCallItem):
            item.arguments = text
            if _is_json(text):
                item.status = "completed"
            frames = self._frame(
                "response.function_call_arguments.done",
                item_id=item.id,
                output_index=index,
                name=item.name,
                arguments=text,
            )
        else:
            frames = self._close_text(item, text)
        self.response.output.append(item)
        frames += self._frame("response.output_item.done", output_index=index, item=item)
        self._item = None
        self._texts = []
        self._logprobs = []
        return frames

    def _close_text(self, item: MessageItem | ReasoningItem, text: str) -> bytes:
        part = self._part(text)
        place = {"item_id": item.id, "output_index": len(self.response.output), "content_index": 0}
        if isinstance(part, OutputText):
            frames = self._frame("response.output_text.done", **place, text=text, logprobs=part.logprobs)
        else:
            frames = self._frame("response.reasoning_text.done", **place, text=text)
        frames += self._content_part_frame("done", part)
        item.content.append(part)  # type: ignore[arg-type]  # _part fits the item
        return frames

    def _part(self, text: str) -> OutputText | ReasoningContent:
        if isinstance(self._item, MessageItem):
            return OutputText(text, [], self._logprobs)
        return ReasoningContent(text)

    def _content_part_frame(self, what: str, part: OutputText | ReasoningContent) -> bytes:
        assert self._item is not None
        return self._frame(
            f"response.content_part.{what}",
            item_id=self._item.id,
            output_index=len(self.response.output),
            content_index=0,
            part=part,
        )

    def _frame(self, kind: str, **fields: Any) -> bytes:
        body = _encode({"type": kind, "sequence_number": self._sequence_number, **fields})
        self._sequence_number += 1
        return b"event: " + kind.encode() + b"\ndata: " + body + b"\n\n"


def without_cut_end(events: Sequence[AnswerEvent]) -> Sequence[AnswerEvent]:
    """The last events of an answer that was cut short, without the end that its parser gave to a call at the very end.

    Whether that call is complete is seen by its arguments then.
    """
    return events[:-1] if events and isinstance(events[-1], ToolCallEnd) else events


def _is_json(text: str) -> bool:
    try:
        msgspec.json.decode(text)
    except (msgspec.DecodeError, RecursionError):
        return False
    return True
