"""Kept responses: bounds, owners, and turns that outlive the response they belong to."""

import json

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from quire.entrypoints.http.response_store import OVERHEAD_BYTES, ResponseNotFoundError, ResponseStore, StoredResponse

OWNERS = ("a", "b", "c")
MAX_RESPONSES = 6
MAX_BYTES = 8 * OVERHEAD_BYTES


def stored(response_id: str, previous: StoredResponse | None = None, text: str = "") -> StoredResponse:
    item = {"id": f"msg_{response_id}", "type": "message", "role": "assistant", "content": text}
    question = {"id": f"in_{response_id}", "type": "message", "role": "user", "content": response_id}
    body = json.dumps({"id": response_id, "output": [item]}).encode()
    return StoredResponse(response_id, body, json.dumps([question]).encode(), previous)


def test_context_runs_from_the_first_turn_to_the_last() -> None:
    first = stored("one")
    second = stored("two", first)
    assert [item["id"] for item in second.context()] == ["in_one", "msg_one", "in_two", "msg_two"]


def test_a_response_is_found_by_its_owner_only() -> None:
    store = ResponseStore(10, 10**6)
    store.put("a", stored("one"))
    assert store.get("a", "one").response_id == "one"
    with pytest.raises(ResponseNotFoundError, match="'one' is not kept"):
        store.get("b", "one")
    with pytest.raises(ResponseNotFoundError):
        store.delete("b", "one")
    assert store.items("b") == {}
    assert set(store.items("a")) == {"in_one", "msg_one"}


def test_a_turn_outlives_its_response_while_a_later_one_goes_on_from_it() -> None:
    store = ResponseStore(10, 10**6)
    first = stored("one")
    store.put("a", first)
    store.put("a", stored("two", first))
    both = store.num_bytes
    store.delete("a", "one")
    assert store.num_bytes == both
    assert len(store.get("a", "two").context()) == 4
    store.delete("a", "two")
    assert store.num_bytes == store.num_responses == 0


def test_who_floods_the_store_pushes_out_their_own() -> None:
    store = ResponseStore(MAX_RESPONSES, 10**6)
    store.put("quiet", stored("kept"))
    for number in range(50):
        store.put("loud", stored(str(number)))
    assert store.num_responses == MAX_RESPONSES
    assert store.get("quiet", "kept").response_id == "kept"


def test_the_least_recently_used_goes_first() -> None:
    store = ResponseStore(2, 10**6)
    store.put("a", stored("one"))
    store.put("a", stored("two"))
    store.get("a", "one")
    store.put("a", stored("three"))
    with pytest.raises(ResponseNotFoundError):
        store.get("a", "two")
    assert store.get("a", "one") and store.get("a", "three")


def test_what_exceeds_the_bound_alone_is_not_kept() -> None:
    store = ResponseStore(10, MAX_BYTES)
    store.put("a", stored("one"))
    store.put("a", stored("huge", text="x" * MAX_BYTES))
    assert store.num_responses == 1
    closed = ResponseStore(0, MAX_BYTES)
    closed.put("a", stored("one"))
    assert (closed.enabled, closed.num_responses) == (False, 0)


class StoreMachine(RuleBasedStateMachine):
    """Puts, reads and deletes in any order; bounds and counts hold after each step."""

    def __init__(self) -> None:
        super().__init__()
        self.store = ResponseStore(MAX_RESPONSES, MAX_BYTES)
        self.made: dict[str, list[StoredResponse]] = {owner: [] for owner in OWNERS}

    @rule(owner=st.sampled_from(OWNERS), name=st.integers(0, 9), follows=st.none() | st.integers(0, 50))
    def put(self, owner: str, name: int, follows: int | None) -> None:
        made = self.made[owner]
        previous = made[follows % len(made)] if follows is not None and made else None
        response = stored(str(name), previous, "x" * (name * 40))
        self.store.put(owner, response)
        made.append(response)

    @rule(owner=st.sampled_from(OWNERS), name=st.integers(0, 9))
    def get_or_delete(self, owner: str, name: int) -> None:
        try:
            response = self.store.get(owner, str(name))
        except ResponseNotFoundError:
            return
        assert response in self.made[owner]
        if name % 2:
            self.store.delete(owner, str(name))

    @invariant()
    def holds(self) -> None:
        self.store.check_invariants()
        assert self.store.num_responses <= MAX_RESPONSES
        assert self.store.num_bytes <= MAX_BYTES


StoreMachine.TestCase.settings = settings(max_examples=15, stateful_step_count=20, deadline=None)
TestStoreMachine = StoreMachine.TestCase
