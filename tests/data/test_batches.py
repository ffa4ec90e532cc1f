"""Batches become tensors without a copy on the CPU."""

import numpy as np
import torch

from serl_fast.data.batches import BatchReader, to_tensors


class Counting:
    """A source whose rows hold the number of the call."""

    calls = 0

    def empty_batch(self, batch_size):
        return {"observations": {"state": np.empty((batch_size, 2), np.float32)}, "rewards": np.empty(batch_size)}

    def sample_into(self, batch):
        self.calls += 1
        batch["observations"]["state"][:] = self.calls
        batch["rewards"][:] = -self.calls


def test_one_set_of_arrays_is_filled_again_and_again():
    reader, source = BatchReader(4), Counting()
    first = reader.read(source)
    assert first["observations"]["state"].tolist() == [[1, 1]] * 4
    second = reader.read(source)
    assert second["rewards"].tolist() == [-2.0] * 4
    assert second["observations"]["state"].data_ptr() == first["observations"]["state"].data_ptr()


def test_another_device_gets_a_copy():
    batch = BatchReader(3, "meta").read(Counting())
    assert batch["observations"]["state"].device.type == "meta"


def test_to_tensors_keeps_structure_and_dtype():
    tensors = to_tensors({"a": {"b": np.zeros(2, np.uint8)}, "c": np.float32(1.0)})
    assert tensors["a"]["b"].dtype == torch.uint8
    assert tensors["c"].item() == 1.0
