import numpy as np
import torch

from quire.worker.staging import Download, Staging

CPU = torch.device("cpu")


def test_arrays_arrive_as_they_were():
    staging = Staging(CPU, 256)
    arrays = [
        np.arange(7, dtype=np.int32),
        np.zeros((0, 3), np.int32),
        np.arange(6, dtype=np.int64).reshape(2, 3),
        np.array([0.5, -1.0], np.float32),
    ]
    for _ in range(6):
        arrived = staging.upload(arrays)
        assert [tensor.shape for tensor in arrived] == [array.shape for array in arrays]
        for tensor, array in zip(arrived, arrays, strict=True):
            assert np.array_equal(tensor.numpy(), array)


def test_the_first_array_stays_where_it_is():
    staging = Staging(CPU, 64)
    fixed = staging.on_device.view(torch.int32)
    staging.upload([np.arange(16, dtype=np.int32)])
    assert fixed.tolist() == list(range(16))


def test_it_grows():
    staging = Staging(CPU, 16)
    (arrived,) = staging.upload([np.arange(1000, dtype=np.int64)])
    assert arrived.tolist() == list(range(1000))


def test_a_download_keeps_what_was_there():
    tensor = torch.arange(5)
    download = Download(tensor)
    tensor.zero_()
    assert download.numpy().tolist() == [0, 1, 2, 3, 4]
