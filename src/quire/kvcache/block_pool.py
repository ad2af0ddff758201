"""References to blocks, and the order in which free ones are handed out."""

from collections import OrderedDict
from collections.abc import Callable, Sequence

from quire.types.ids import BlockId


class BlockPool:
    """Counts the references to each block and keeps the free ones in order.

        allocate  <──  empty     (last freed first: its memory is warm)
                  <──  keeping   (least recently used first)   <── release, of blocks that keep their content

    A free block that keeps its content is handed out only when no empty one is left. Until then `add_reference`
    takes it out of the middle, which is why `keeping` is an ordered dictionary: a linked list with a lookup, both
    in C. One linked list through all free blocks would do the same with six list accesses per block in Python.

    Allocating, releasing and sharing cost O(1) per block.

    Args:
        on_evict: Called with each block that loses its content to be handed out, before that.
    """

    def __init__(self, num_blocks: int, on_evict: Callable[[BlockId], None]) -> None:
        self._on_evict = on_evict
        self._num_references = [0] * num_blocks
        self._keeps_content = bytearray(num_blocks)
        self._empty = [BlockId(index) for index in reversed(range(num_blocks))]
        self._keeping: OrderedDict[BlockId, None] = OrderedDict()

    @property
    def num_free(self) -> int:
        """Blocks without a reference."""
        return len(self._empty) + len(self._keeping)

    def num_references(self, block_id: BlockId) -> int:
        """How many tables name a block."""
        return self._num_references[block_id]

    def allocate(self, count: int) -> list[BlockId] | None:
        """Takes `count` free blocks, each with one reference then; None, and nothing taken, if there are fewer."""
        empty = self._empty
        num_missing = count - len(empty)
        if num_missing > 0:
            if num_missing > len(self._keeping):
                return None
            self._evict(num_missing)
        if count == 1:
            block_id = empty.pop()
            self._num_references[block_id] = 1
            return [block_id]
        split = len(empty) - count
        block_ids = empty[split:]
        block_ids.reverse()
        del empty[split:]
        num_references = self._num_references
        for block_id in block_ids:
            num_references[block_id] = 1
        return block_ids

    def add_references(self, block_ids: Sequence[BlockId]) -> None:
        """Adds a reference to each; those that were free keep their content and are free no more."""
        num_references = self._num_references
        for block_id in block_ids:
            if not num_references[block_id]:
                del self._keeping[block_id]
            num_references[block_id] += 1

    def release(self, block_ids: Sequence[BlockId]) -> None:
        """Takes a reference from each, the last block first."""
        num_references, keeps_content = self._num_references, self._keeps_content
        empty, keeping = self._empty, self._keeping
        for block_id in reversed(block_ids):
            num_left = num_references[block_id] - 1
            assert num_left >= 0, f"block {block_id} is released more often than taken"
            num_references[block_id] = num_left
            if num_left:
                continue
            if keeps_content[block_id]:
                keeping[block_id] = None
            else:
                empty.append(block_id)

    def keep_content(self, block_id: BlockId) -> None:
        """From now on a referenced block's content outlives its references."""
        self._keeps_content[block_id] = 1

    def drop_content(self, block_id: BlockId) -> None:
        """A block's content is worth nothing any more."""
        self._keeps_content[block_id] = 0
        if not self._num_references[block_id]:
            del self._keeping[block_id]
            self._empty.append(block_id)

    def drop_all_content(self) -> None:
        """No block's content is worth anything any more."""
        self._keeps_content = bytearray(len(self._num_references))
        self._empty += reversed(self._keeping)
        self._keeping.clear()

    def _evict(self, count: int) -> None:
        """Makes the `count` least recently used blocks empty."""
        for _ in range(count):
            block_id, _ = self._keeping.popitem(last=False)
            self._keeps_content[block_id] = 0
            self._on_evict(block_id)
            self._empty.append(block_id)

    def reference_counts(self) -> list[int]:
        """How many tables name each block, by id."""
        return list(self._num_references)

    def keeping_blocks(self) -> list[int]:
        """The blocks whose content outlives their references, by rising id."""
        return [index for index, keeps in enumerate(self._keeps_content) if keeps]

    def check_invariants(self) -> None:
        """Asserts that every block is referenced, empty or keeping, and only one of these. O(blocks)."""
        num_blocks = len(self._num_references)
        referenced = [index for index, count in enumerate(self._num_references) if count > 0]
        places = [*referenced, *self._empty, *self._keeping]
        assert sorted(places) == list(range(num_blocks)), "a block is lost or stands in two places"
        assert min(self._num_references) >= 0, "a negative number of references"
        assert all(self._keeps_content[block_id] for block_id in self._keeping), "content kept without being marked"
        assert not any(self._keeps_content[block_id] for block_id in self._empty), "an empty block marked as keeping"
