"""Responses that were kept, so that a later request can go on from one of them.

In memory only, and bounded: by number and by bytes. When a bound is passed, the least recently used response of the
owner that holds most is dropped, so nobody can push out everybody else's.
"""

from collections import Counter, OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import msgspec

from quire.errors import CallerError

OVERHEAD_BYTES = 512
"""Counted for a kept response beside its texts."""


class ResponseNotFoundError(CallerError):
    """No response of that id is kept for this key."""

    http_status = 404


@dataclass(eq=False, slots=True)
class StoredResponse:
    """One response and what led to it.

    Attributes:
        body: The encoded response object.
        input_json: The encoded list of the items that its own request sent, each with an id.
        previous: The response that it goes on from.
        num_holders: The store, and kept responses that go on from it.
    """

    response_id: str
    body: bytes
    input_json: bytes
    previous: "StoredResponse | None"
    num_holders: int = field(default=0)

    @property
    def num_bytes(self) -> int:
        """What it takes, without `previous`."""
        return len(self.body) + len(self.input_json) + OVERHEAD_BYTES

    def input_items(self) -> list[dict[str, Any]]:
        """What its own request sent."""
        items: list[dict[str, Any]] = msgspec.json.decode(self.input_json)
        return items

    def items(self) -> list[dict[str, Any]]:
        """What its own request sent and what it answered, in the shape of input."""
        output: list[dict[str, Any]] = msgspec.json.decode(self.body)["output"]
        return self.input_items() + output

    def input_context(self) -> list[dict[str, Any]]:
        """All items before its answer: what its own request sent, and the conversation that this goes on from."""
        return (self.previous.context() if self.previous else []) + self.input_items()

    def context(self) -> list[dict[str, Any]]:
        """All items of the conversation up to the end of this response, oldest first."""
        return [item for turn in reversed(list(self.chain())) for item in turn.items()]

    def chain(self) -> Iterator["StoredResponse"]:
        """This response, the one before it, and so on."""
        turn: StoredResponse | None = self
        while turn is not None:
            yield turn
            turn = turn.previous


class ResponseStore:
    """Keeps responses by owner and id.

    Args:
        max_responses: How many are kept at most, of all owners; 0 keeps none.
        max_bytes: How much they may take together. A turn counts until the last response that goes on from it is
            dropped.
    """

    def __init__(self, max_responses: int, max_bytes: int) -> None:
        self._max_responses = max_responses
        self._max_bytes = max_bytes
        self._kept: dict[str, OrderedDict[str, StoredResponse]] = {}
        self._bytes_by_owner: Counter[str] = Counter()

    @property
    def enabled(self) -> bool:
        """Whether anything is kept at all."""
        return self._max_responses > 0

    @property
    def num_responses(self) -> int:
        """Responses that can be asked for."""
        return sum(len(responses) for responses in self._kept.values())

    @property
    def num_bytes(self) -> int:
        """What they take, with the turns that they go on from."""
        return self._bytes_by_owner.total()

    def get(self, owner: str, response_id: str, *, param: str | None = None) -> StoredResponse:
        """The response of that id.

        Args:
            owner: Whose; another's are not found.
            response_id: As the response has it.
            param: The field of the request that names it.

        Raises:
            ResponseNotFoundError: It was never kept, has been dropped, or is somebody else's.
        """
        responses = self._kept.get(owner) or OrderedDict()
        if response_id not in responses:
            raise ResponseNotFoundError(
                f"the response {response_id[:100]!r} is not kept here",
                hint="responses are kept in memory, with `store`, until newer ones need the room; send the whole "
                "conversation as input instead",
                param=param,
            )
        responses.move_to_end(response_id)
        return responses[response_id]

    def items(self, owner: str) -> dict[str, dict[str, Any]]:
        """Every item of the owner's responses by its id; of equal ids the most recently used."""
        responses = self._kept.get(owner) or OrderedDict()
        return {item["id"]: item for response in responses.values() for item in response.items()}

    def put(self, owner: str, response: StoredResponse) -> None:
        """Keeps a response, and drops others if it must. A response that exceeds the bound alone is not kept."""
        if not self.enabled or response.num_bytes > self._max_bytes:
            return
        responses = self._kept.setdefault(owner, OrderedDict())
        replaced = responses.pop(response.response_id, None)
        responses[response.response_id] = response
        self._hold(owner, response)
        if replaced is not None:
            self._release(owner, replaced)
        while self.num_responses > self._max_responses or self.num_bytes > self._max_bytes:
            self._drop_one()

    def delete(self, owner: str, response_id: str) -> None:
        """Drops a response. Those that go on from it keep what they need of it.

        Raises:
            ResponseNotFoundError: As `get`.
        """
        response = self.get(owner, response_id)
        del self._kept[owner][response_id]
        self._release(owner, response)

    def check_invariants(self) -> None:
        """Recounts what is kept."""
        for owner, responses in self._kept.items():
            turns = {id(turn): turn for response in responses.values() for turn in response.chain()}
            assert self._bytes_by_owner[owner] == sum(turn.num_bytes for turn in turns.values())
            followers = Counter(id(turn.previous) for turn in turns.values() if turn.previous)
            for key, turn in turns.items():
                assert turn.num_holders == followers[key] + (responses.get(turn.response_id) is turn)

    def _drop_one(self) -> None:
        most = self._bytes_by_owner.most_common(1)[0][0]
        largest = max(self._kept, key=lambda owner: len(self._kept[owner]))
        owner = most if self.num_bytes > self._max_bytes else largest
        _, response = self._kept[owner].popitem(last=False)
        self._release(owner, response)

    def _hold(self, owner: str, response: StoredResponse) -> None:
        """Counts one more holder; the first makes the turn count, and holds the turn before it."""
        turn: StoredResponse | None = response
        while turn is not None:
            turn.num_holders += 1
            if turn.num_holders > 1:
                return
            self._bytes_by_owner[owner] += turn.num_bytes
            turn = turn.previous

    def _release(self, owner: str, response: StoredResponse) -> None:
        turn: StoredResponse | None = response
        while turn is not None:
            turn.num_holders -= 1
            if turn.num_holders:
                return
            self._bytes_by_owner[owner] -= turn.num_bytes
            turn = turn.previous
        if not self._kept.get(owner):
            self._kept.pop(owner, None)
            del self._bytes_by_owner[owner]
