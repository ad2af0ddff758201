"""Finds blocks by what they hold."""

import enum
import secrets
from collections import OrderedDict
from collections.abc import Callable
from hashlib import blake2b
from itertools import islice
from weakref import WeakValueDictionary

from quire.kvcache.block_pool import BlockPool
from quire.types.ids import BlockId

DIGEST_BYTES = 16
TOKEN_BYTES = 4
ROOT_DIGEST = bytes(DIGEST_BYTES)
ROOT_SERIAL = 0
# A miss is compared with at most so many other namespaces.
MAX_NAMESPACES_EXPLAINED = 64

BlockHash = Callable[[bytes], bytes]
"""Digest of (digest of the parent block, packed tokens of the block)."""


@enum.unique
class MissReason(enum.StrEnum):
    """Why a lookup ended before the end of the prompt."""

    NO_MATCH = "no match"
    UNDER_ONE_BLOCK = "under one block"
    EVICTED = "evicted"
    OTHER_SALT = "other salt"
    OTHER_ADAPTER = "other adapter"


class Namespace:
    """Blocks that may be shared with each other: those of one adapter and one salt.

    Attributes:
        name: (adapter, salt).
        blocks: By chained digest.
    """

    __slots__ = ("__weakref__", "blocks", "name")

    def __init__(self, name: tuple[str, str]) -> None:
        self.name = name
        self.blocks: dict[bytes, BlockId] = {}


def keyed_block_hash(key: bytes) -> BlockHash:
    """A hash that nobody can find collisions for without the key, 64 bytes at most."""
    keyed = blake2b(digest_size=DIGEST_BYTES, key=key)

    def hash_block(data: bytes) -> bytes:
        state = keyed.copy()
        state.update(data)
        return state.digest()

    return hash_block


class PrefixIndex:
    """Finds the blocks that hold the beginning of a prompt.

    Adapter and salt choose a namespace. Within it, a block is found by a digest chained through all blocks before
    it, and is believed only if it is the right one:

        prompt     | tokens 0 |   | tokens 1 |   | tokens 2 |
        digest     d0 = h(root, tokens 0)    d1 = h(d0, tokens 1)    d2 = h(d1, tokens 2)
        index      d0 ──> serial 7,         d1 ──> serial 9,         d2 ──> serial 12,
                          parent 0                 parent 7                 parent 9

    A serial names a content together with all that stands before it, and is never given again. A block matches if
    its tokens are equal and its parent serial is that of the block matched before it. So even a broken hash finds
    nothing wrong; the price is that the children of an evicted block are lost until they are computed again.
    Eviction takes children first, so that there are few of them.

    The first block with a content is the one in the index. A later one (computed at the same time, or because the
    last token of a prompt always is) only replaces it if nobody refers to the first: then the newer stays, as the
    more recently used, and the older becomes empty.

    Per-block state lies in flat lists, where there is nothing for the garbage collector to walk.

    Args:
        pool: Is told which blocks keep their content.
        hash_block: For tests; a keyed 128-bit hash with a random key if None.
        num_remembered: Evicted contents that a miss can be explained with; as many as there are blocks if None.
    """

    def __init__(
        self,
        pool: BlockPool,
        num_blocks: int,
        *,
        hash_block: BlockHash | None = None,
        num_remembered: int | None = None,
    ) -> None:
        self._pool = pool
        self._hash_block = hash_block or keyed_block_hash(secrets.token_bytes(32))
        self._num_remembered = num_blocks if num_remembered is None else num_remembered
        # Tables and indexed blocks hold their namespace; without either it is gone.
        self._namespaces: WeakValueDictionary[tuple[str, str], Namespace] = WeakValueDictionary()
        self._evicted: OrderedDict[tuple[tuple[str, str], bytes], None] = OrderedDict()
        self._last_serial = ROOT_SERIAL
        self._num_indexed = 0
        # Digest and serial are valid for every block that a table has had hashed, indexed or not; tokens and
        # parent only where there is an owner: the namespace in which the block is indexed.
        self._digests = [ROOT_DIGEST] * num_blocks
        self._serials = [ROOT_SERIAL] * num_blocks
        self._tokens = [b""] * num_blocks
        self._parents = [ROOT_SERIAL] * num_blocks
        self._owners: list[Namespace | None] = [None] * num_blocks

    @property
    def num_indexed(self) -> int:
        """Blocks that can be found."""
        return self._num_indexed

    def namespace(self, adapter: str, salt: str) -> Namespace:
        """The namespace of an adapter and a salt, made if there is none."""
        name = (adapter, salt)
        namespace = self._namespaces.get(name)
        if namespace is None:
            namespace = self._namespaces[name] = Namespace(name)
        return namespace

    def match(
        self, namespace: Namespace, packed: bytes, num_block_bytes: int
    ) -> tuple[list[BlockId], MissReason | None]:
        """Finds the longest indexed prefix.

        Args:
            namespace: Where to look.
            packed: Tokens of whole blocks.
            num_block_bytes: Bytes of one block in it.

        Returns:
            The blocks, and why they are not all that were asked for (None if they are).
        """
        hash_block, blocks = self._hash_block, namespace.blocks
        found: list[BlockId] = []
        digest, serial = ROOT_DIGEST, ROOT_SERIAL
        for start in range(0, len(packed), num_block_bytes):
            tokens = packed[start : start + num_block_bytes]
            digest = hash_block(digest + tokens)
            block_id = blocks.get(digest)
            if block_id is None or not self._holds(block_id, serial, tokens):
                return found, self._explain(namespace, digest)
            serial = self._serials[block_id]
            found.append(block_id)
        return found, None

    def add(self, namespace: Namespace, parent: BlockId | None, block_id: BlockId, tokens: bytes) -> None:
        """Makes a referenced block known by its content; see the class for what happens to duplicates.

        Args:
            namespace: Who may find it.
            parent: The block before it in its table, added before; None for the first.
            block_id: The block.
            tokens: All tokens of the block, packed.
        """
        if parent is None:
            parent_digest, parent_serial = ROOT_DIGEST, ROOT_SERIAL
        else:
            parent_digest, parent_serial = self._digests[parent], self._serials[parent]
        digest = self._digests[block_id] = self._hash_block(parent_digest + tokens)
        first = namespace.blocks.get(digest)
        if first is not None and self._holds(first, parent_serial, tokens):
            serial = self._serials[block_id] = self._serials[first]
            if self._pool.num_references(first):
                return
        else:
            serial = self._last_serial = self._last_serial + 1
        if first is not None:
            self._remove(first)
            self._pool.drop_content(first)
        namespace.blocks[digest] = block_id
        self._serials[block_id] = serial
        self._tokens[block_id] = tokens
        self._parents[block_id] = parent_serial
        self._owners[block_id] = namespace
        self._num_indexed += 1
        self._pool.keep_content(block_id)

    def evict(self, block_id: BlockId) -> None:
        """Forgets a block that the pool hands out again, but not that it was there."""
        namespace = self._remove(block_id)
        self._evicted[namespace.name, self._digests[block_id]] = None
        if len(self._evicted) > self._num_remembered:
            self._evicted.popitem(last=False)

    def clear(self) -> None:
        """Forgets everything. The pool is not told."""
        num_blocks = len(self._owners)
        for namespace in list(self._namespaces.values()):
            namespace.blocks.clear()
        self._owners = [None] * num_blocks
        self._tokens = [b""] * num_blocks
        self._evicted.clear()
        self._num_indexed = 0

    def _holds(self, block_id: BlockId, parent_serial: int, tokens: bytes) -> bool:
        return self._parents[block_id] == parent_serial and self._tokens[block_id] == tokens

    def _remove(self, block_id: BlockId) -> Namespace:
        namespace = self._owners[block_id]
        assert namespace is not None, f"block {block_id} is not in the index"
        del namespace.blocks[self._digests[block_id]]
        self._owners[block_id] = None
        self._tokens[block_id] = b""
        self._num_indexed -= 1
        return namespace

    def _explain(self, namespace: Namespace, digest: bytes) -> MissReason:
        """Why nothing was found. The digest knows no salt, so a look into the other namespaces tells."""
        if (namespace.name, digest) in self._evicted:
            return MissReason.EVICTED
        reason = MissReason.NO_MATCH
        for other in islice(self._namespaces.values(), MAX_NAMESPACES_EXPLAINED):
            if other is not namespace and digest in other.blocks:
                if other.name[0] == namespace.name[0]:
                    return MissReason.OTHER_SALT
                reason = MissReason.OTHER_ADAPTER
        return reason

    def check_invariants(self) -> None:
        """Asserts that namespaces, per-block state and the pool agree. O(blocks)."""
        for namespace in list(self._namespaces.values()):
            for digest, block_id in namespace.blocks.items():
                assert self._owners[block_id] is namespace, f"block {block_id} is indexed where it does not belong"
                assert self._digests[block_id] == digest, f"block {block_id} is indexed under another digest"
        owned = [BlockId(index) for index, owner in enumerate(self._owners) if owner is not None]
        num_entries = sum(len(namespace.blocks) for namespace in self._namespaces.values())
        assert len(owned) == num_entries == self._num_indexed, "the number of indexed blocks is wrong"
        for block_id in owned:
            assert self._parents[block_id] < self._serials[block_id] <= self._last_serial, "a serial is out of order"
            assert self._tokens[block_id], f"block {block_id} is indexed without its tokens"
        assert self._pool.keeping_blocks() == owned, "the pool keeps other blocks than the index knows"
        assert len(self._evicted) <= self._num_remembered, "too many evicted contents are remembered"
