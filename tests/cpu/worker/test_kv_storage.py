import torch

from quire.worker.kv_storage import allocate_kv_caches, block_num_bytes
from quire.worker.memory import resident_bytes

GEOMETRY = {"num_layers": 3, "block_size": 4, "num_kv_heads": 2, "head_dim": 8}


def test_shapes_and_zeros():
    caches = allocate_kv_caches(num_blocks=5, dtype=torch.bfloat16, **GEOMETRY)
    assert len(caches) == 3
    for tensor in (tensor for pair in caches for tensor in pair):
        assert tensor.shape == (5, 4, 2, 8)
        assert tensor.dtype == torch.bfloat16
        assert not tensor.any()
        assert tensor.data_ptr() % 64 == 0


def test_memory_is_taken_when_it_is_written():
    before = resident_bytes()
    num_blocks = 2**31 // block_num_bytes(dtype=torch.float32, **GEOMETRY)
    caches = allocate_kv_caches(num_blocks=num_blocks, dtype=torch.float32, **GEOMETRY)
    assert resident_bytes() - before < 2**24
    caches[0][0][: num_blocks // 8].fill_(1.0)
    assert resident_bytes() - before > 2**25
