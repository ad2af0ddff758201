"""The blocks of one sequence."""

import sys

from quire.kvcache.prefix_index import Namespace
from quire.types.ids import BlockId

NEVER = sys.maxsize


class BlockTable:
    """Which blocks hold a sequence's tokens, in their order.

    Made and changed by `KVCacheManager`; a scheduler reads it, and may store `num_tokens` itself when the
    capacity suffices. A plan that keeps `block_ids` copies it, because `grow` extends it in place.

    Attributes:
        num_tokens: Tokens that the sequence occupies.
        capacity: Tokens that the blocks hold.
        namespace: Where its content is shared; None where nothing is.
        num_hashed_blocks: Leading blocks whose content has been looked at.
        num_tokens_to_commit: Below this many computed tokens `commit` has nothing to do.
    """

    __slots__ = ("block_ids", "capacity", "namespace", "num_hashed_blocks", "num_tokens", "num_tokens_to_commit")

    def __init__(self, namespace: Namespace | None, num_tokens_to_commit: int) -> None:
        self.block_ids: list[BlockId] = []
        self.num_tokens = 0
        self.capacity = 0
        self.namespace = namespace
        self.num_hashed_blocks = 0
        self.num_tokens_to_commit = num_tokens_to_commit

    def __repr__(self) -> str:
        return f"BlockTable({self.num_tokens}/{self.capacity} tokens, blocks {self.block_ids})"
