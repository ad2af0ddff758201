"""A model that anyone can recompute by hand, and plans made without a scheduler."""

import pytest
import torch

from quire.kernels.paged_attention import AttentionMetadata
from quire.types.ids import BlockId, SequenceId, SlotIndex
from quire.types.plan import NewSequence, StepPlan
from quire.types.sampling import SamplingParams
from quire.worker.cuda_runner import CudaModelRunner
from quire.worker.kv_storage import allocate_kv_caches
from quire.worker.model_runner import ModelRunner
from quire.worker.step_model import TorchStepModel

BLOCK_SIZE = 4
VOCAB_SIZE = 48
NUM_HEADS = 2
HEAD_DIM = 6
NUM_LAYERS = 2
MAX_MODEL_LEN = 40


class NaiveModel:
    """Attention token by token through the block tables, nothing else; float64 inside.

    Attributes:
        poisoned_token: A token whose embedding is NaN.
        fail_next: The next call raises.
    """

    def __init__(self):
        generator = torch.Generator().manual_seed(0)
        width = NUM_HEADS * HEAD_DIM

        def weights(*shape):
            return torch.randn(*shape, generator=generator, dtype=torch.float64) / shape[-1] ** 0.5

        self.embedding = weights(VOCAB_SIZE, width) * 3
        self.place = weights(MAX_MODEL_LEN, width) * 2
        self.layers = [[weights(width, width) for _ in range(4)] for _ in range(NUM_LAYERS)]
        self.head = weights(VOCAB_SIZE, width) * 6
        self.poisoned_token = None
        self.fail_next = False
        self.dtype = torch.float64
        self.sliding_windows = (None,)

    def _embed(self, token_ids, positions):
        hidden = self.embedding[token_ids] + self.place[positions]
        if self.poisoned_token is not None:
            hidden[token_ids == self.poisoned_token] = torch.nan
        return hidden

    def __call__(self, batch):
        if self.fail_next:
            self.fail_next = False
            raise RuntimeError("the model broke")
        hidden = self._embed(batch.token_ids, batch.positions)
        for (query, key, value, output), (keys, values) in zip(self.layers, batch.kv_caches, strict=True):
            shape = (-1, NUM_HEADS, HEAD_DIM)
            keys.view(shape)[batch.slot_mapping] = (hidden @ key.T).view(shape)
            values.view(shape)[batch.slot_mapping] = (hidden @ value.T).view(shape)
            attended = torch.empty_like(hidden)
            for flat, table, seen in token_contexts(batch.attention):
                blocks = table[: -(-seen // BLOCK_SIZE)].long()
                query_heads = (hidden[flat] @ query.T).view(NUM_HEADS, HEAD_DIM)
                seen_keys, seen_values = (cache[blocks].flatten(0, 1)[:seen] for cache in (keys, values))
                attended[flat] = self._attend(query_heads, seen_keys, seen_values)
            hidden = hidden + torch.tanh(attended @ output.T)
        return hidden[batch.logit_rows]

    def compute_logits(self, hidden):
        return (hidden @ self.head.T).float()

    @staticmethod
    def _attend(query, keys, values):
        scores = torch.einsum("hd,thd->ht", query, keys) / HEAD_DIM**0.5
        return torch.einsum("ht,thd->hd", scores.softmax(-1), values).flatten()

    def dense_logits(self, token_ids):
        """Logits [T, vocabulary] of a whole sequence, without blocks."""
        token_ids = torch.tensor(token_ids)
        hidden = self._embed(token_ids, torch.arange(len(token_ids)))
        for query, key, value, output in self.layers:
            shape = (-1, NUM_HEADS, HEAD_DIM)
            queries, keys, values = ((hidden @ matrix.T).view(shape) for matrix in (query, key, value))
            attended = torch.stack(
                [self._attend(queries[t], keys[: t + 1], values[: t + 1]) for t in range(len(token_ids))]
            )
            hidden = hidden + torch.tanh(attended @ output.T)
        return self.compute_logits(hidden)


def token_contexts(metadata):
    """(row of the flat axis, block table, positions that it sees) of every token of a step."""
    if isinstance(metadata, AttentionMetadata):
        flat = 0
        lengths = zip(metadata.query_lengths, metadata.context_lengths, strict=True)
        for row, (length, context) in enumerate(lengths):
            for seen in range(context - length + 1, context + 1):
                yield flat, metadata.block_tables[row], seen
                flat += 1
        return
    for slot, row, context in metadata.decodes.tolist():
        yield row, metadata.block_tables[slot], context
    for slot, first, count, position in metadata.tiles.tolist():
        for offset in range(count):
            yield first + offset, metadata.block_tables[slot], position + offset + 1


class PlanMaker:
    """Makes plans by hand, never looking at a drawn token, like a scheduler with many steps in flight."""

    def __init__(self, num_blocks=60):
        self.step = 0
        self.free_blocks = list(range(num_blocks))[::-1]
        self.sequences = {}
        self.plan = None
        self.begin()

    def begin(self):
        self.step += 1
        self.plan = StepPlan(step=self.step)

    def enter(
        self, slot, token_ids, *, compute=None, num_prompt_tokens=None, sample_index=0, table=(), computed=0, **sampling
    ):
        """Puts a sequence into a slot and computes its first tokens: all of them by default."""
        compute = len(token_ids) - computed if compute is None else compute
        table = [*table]
        self._grow(table, computed + compute)
        sequence_id = SequenceId(self.step * 1000 + slot)
        self.plan.new_sequences.append(
            NewSequence(
                sequence_id=sequence_id,
                slot=SlotIndex(slot),
                token_ids=list(token_ids),
                num_prompt_tokens=len(token_ids) if num_prompt_tokens is None else num_prompt_tokens,
                num_computed_tokens=computed,
                block_ids=list(table),
                sampling=SamplingParams(**{"max_tokens": None, "temperature": 0.0, **sampling, "seed": None}),
                seed=sampling.get("seed", 0),
                sample_index=sample_index,
                stop_token_ids=frozenset(sampling.get("stop_token_ids", ())),
            )
        )
        self.sequences[slot] = {"id": sequence_id, "known": len(token_ids), "computed": computed, "table": table}
        self._schedule(slot, compute)
        return sequence_id

    def go(self, slot, compute=1):
        """Computes further tokens of a sequence that is in a slot."""
        sequence = self.sequences[slot]
        added = self._grow(sequence["table"], sequence["computed"] + compute)
        if added:
            self.plan.new_block_ids[SlotIndex(slot)] = added
        self._schedule(slot, compute)

    def release(self, slot):
        """Empties a slot and frees its blocks."""
        self.free_blocks += self.sequences.pop(slot)["table"]
        self.plan.released_slots.append(SlotIndex(slot))

    def fork(self, slot, num_tokens):
        """Table that shares the full blocks below `num_tokens` and has a copy of the partial one."""
        table = self.sequences[slot]["table"]
        shared, partial = divmod(num_tokens, BLOCK_SIZE)
        forked = table[:shared]
        if partial:
            forked.append(self.free_blocks.pop())
            self.plan.block_copies.append((BlockId(table[shared]), BlockId(forked[-1])))
        return forked

    def seal(self):
        """The plan; the next one begins."""
        plan = self.plan
        self.begin()
        return plan

    def _grow(self, table, num_tokens):
        added = [self.free_blocks.pop() for _ in range(-(-num_tokens // BLOCK_SIZE) - len(table))]
        table += added
        return added

    def _schedule(self, slot, compute):
        sequence = self.sequences[slot]
        sequence["computed"] += compute
        samples = sequence["computed"] == sequence["known"]
        sequence["known"] += samples
        self.plan.slots.append(SlotIndex(slot))
        self.plan.sequence_ids.append(sequence["id"])
        self.plan.num_tokens.append(compute)
        self.plan.samples.append(samples)


@pytest.fixture
def model():
    return NaiveModel()


class LaunchingRunner(CudaModelRunner):
    """The GPU's runner on CPU tensors, its kernels under Triton's interpreter."""

    def execute(self, plan):
        return self.finish(self.launch(plan))


@pytest.fixture(params=["cpu", "cuda"])
def make_runner(request):
    """A function that makes a runner with an empty cache; unwritten keys and values are poisoned with NaN."""

    def make(model, *, max_num_seqs=64, num_blocks=60):
        caches = allocate_kv_caches(
            num_layers=NUM_LAYERS,
            num_blocks=num_blocks,
            block_size=BLOCK_SIZE,
            num_kv_heads=NUM_HEADS,
            head_dim=HEAD_DIM,
            dtype=torch.float64,
        )
        for keys, values in caches:
            keys.fill_(torch.nan)
            values.fill_(torch.nan)
        sizes = {"max_num_seqs": max_num_seqs, "max_model_len": MAX_MODEL_LEN, "vocab_size": VOCAB_SIZE}
        if request.param == "cpu":
            return ModelRunner(TorchStepModel(model, caches), caches, **sizes)
        return LaunchingRunner(model, caches, num_heads=NUM_HEADS, **sizes)

    return make


@pytest.fixture
def maker():
    return PlanMaker()


@pytest.fixture(autouse=True, scope="session")
def one_thread():
    """Tiny products do not pay for waking a second thread."""
    torch.set_num_threads(1)
