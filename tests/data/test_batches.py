"""Batches become tensors without a copy on the CPU."""

import contextlib
import types

import numpy as np
import pytest
import torch

from serl_fast.data.batches import BatchReader, TensorStream, to_tensors
from serl_fast.data.pinned import DeviceCopies, PinnedMemory
from serl_fast.replay import BatchStream, ReplayStore


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


STEP = {
    "observations": {"front": np.zeros((4, 4, 3), np.uint8), "state": np.zeros(3, np.float32)},
    "next_observations": {"front": np.zeros((4, 4, 3), np.uint8), "state": np.zeros(3, np.float32)},
    "actions": np.zeros(2, np.float32),
    "rewards": 0.0,
    "terminated": False,
    "truncated": False,
}


def make_store(seed=0):
    store = ReplayStore.from_example(STEP, 100, seed=seed)
    for number in range(50):
        store.append({**STEP, "rewards": float(number)}, continues=False)
    return store


def test_arrays_of_a_stream_share_memory_with_tensors():
    with BatchStream(make_store(), 8) as stream:
        batch = stream.next()
        for tensor in (torch.from_numpy(batch["rewards"]), torch.from_dlpack(batch["rewards"])):
            tensor[0] = 123.0
            assert batch["rewards"][0] == 123.0
            batch["rewards"][0] = 4.0
            assert tensor[0] == 4.0
        del batch
        for _ in range(20):  # the tensor alone keeps the slot
            stream.next()
        assert tensor[0] == 4.0


def test_tensor_stream_on_the_cpu_shares_the_slot():
    direct = make_store()
    with TensorStream(BatchStream(make_store(), 8)) as batches:
        address, nbytes = batches.stream.memory
        for _, batch in zip(range(10), batches, strict=False):
            expected = to_tensors(direct.sample(8))
            assert torch.equal(batch["rewards"], expected["rewards"])
            assert address <= batch["observations"]["front"].data_ptr() < address + nbytes
        assert batches.behind == (0,)
    with pytest.raises(StopIteration):
        next(batches)


def test_tensor_stream_to_another_device_copies():
    with TensorStream(BatchStream(make_store(), 8), "meta") as batches:
        assert batches.next()["observations"]["front"].device.type == "meta"


class FakeCuda:
    """Streams and events that only write down what they are told, and copies that are done when a test says so."""

    def __init__(self):
        self.log, self.done = [], True
        fake = self

        class Stream:
            def __init__(self, device=None, name="side"):
                self.name = name

            def wait_stream(self, other):
                fake.log.append(f"{self.name} waits for {other.name}")

            def wait_event(self, event):
                fake.log.append(f"{self.name} waits for copy {event.number}")

        class Event:
            count = 0

            def __init__(self):
                self.number = Event.count
                Event.count += 1

            def record(self, stream):
                fake.log.append(f"copy {self.number} on {stream.name}")

            def query(self):
                return fake.done

            def synchronize(self):
                fake.log.append(f"host waits for copy {self.number}")

        self.Stream, self.Event, self._main = Stream, Event, Stream(name="main")

    def current_stream(self, device):
        return self._main

    def stream(self, stream):
        return contextlib.nullcontext()


def cuda_like(stream):
    """A TensorStream with the logic for CUDA, on the CPU; what is only asked for, if it is ready, is waited for."""
    batches, fake, following = TensorStream(stream), FakeCuda(), stream.next
    stream.next = lambda timeout: following(60)
    batches._copies = DeviceCopies(stream, torch.device("cpu"), fake)
    return batches, fake


def test_the_next_batch_is_copied_while_one_is_used():
    direct = make_store()
    batches, fake = cuda_like(BatchStream(make_store(), 8))
    with batches:
        seen = []
        for number in range(6):
            batch = batches.next(5)
            fake.log.append(f"update {number}")
            expected = to_tensors(direct.sample(8))
            assert torch.equal(batch["rewards"], expected["rewards"])
            assert torch.equal(batch["observations"]["front"], expected["observations"]["front"])
            seen.append(batch["rewards"].data_ptr())
        assert seen[0] == seen[2] == seen[4] != seen[1] == seen[3] == seen[5]
    assert fake.log[:8] == [
        "side waits for main",
        "copy 0 on side",
        "main waits for copy 0",
        "side waits for main",
        "copy 1 on side",
        "update 0",  # beside copy 1
        "main waits for copy 1",
        "side waits for main",  # update 0 must be done before copy 2 overwrites its tensors
    ]
    assert fake.log[8:10] == ["copy 2 on side", "update 1"]


def test_a_slot_is_given_back_when_its_copy_is_done():
    batches, fake = cuda_like(BatchStream(make_store(), 8, slots=4))
    fake.done = False
    with batches:
        for _ in range(8):
            batches.next(5)
        waits = [line for line in fake.log if line.startswith("host")]
        assert waits[:2] == ["host waits for copy 0", "host waits for copy 1"]
        assert len(batches._copies._pending) <= 4
    assert fake.log[-1].startswith("host waits for copy")  # none is left under way
    assert not batches._copies._pending


def test_the_end_of_a_stream_does_not_swallow_the_batch_in_hand():
    batches, _ = cuda_like(BatchStream(make_store(), 8))
    with batches:
        batches.next(5)
        batches.next(5)
        batches.stream.close()
        batches.next(5)  # copied before
        with pytest.raises(RuntimeError, match="closed"):
            batches.next(5)


class FakeRuntime:
    def __init__(self, code=0):
        self.code, self.calls = code, []

    def cudaHostRegister(self, address, nbytes, flags):
        self.calls.append(("register", address, nbytes, flags))
        return types.SimpleNamespace(value=self.code)

    def cudaHostUnregister(self, address):
        self.calls.append(("unregister", address))
        return 0


def test_slots_are_locked_once_and_unlocked():
    runtime = FakeRuntime()
    with BatchStream(make_store(), 8) as stream:
        address, nbytes = stream.memory
        assert address % 4096 == 0
        pinned = PinnedMemory(*stream.memory, cudart=runtime)
        pinned.close()
        pinned.close()
    assert runtime.calls == [("register", address, nbytes, 0), ("unregister", address)]
    with pytest.raises(RuntimeError, match=r"locking 4096 bytes in memory failed with CUDA error 2; .*pin=False"):
        PinnedMemory(0, 4096, cudart=FakeRuntime(code=2))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="copies that overlap an update need a CUDA device")
@pytest.mark.parametrize("pin", [True, False])
def test_tensor_stream_on_a_cuda_device(pin):
    direct = make_store()
    with TensorStream(BatchStream(make_store(), 8), "cuda", pin=pin) as batches:
        assert torch.from_numpy(batches.stream.next().block).is_pinned() == pin
        direct.sample(8)
        for _, batch in zip(range(50), batches, strict=False):
            expected = to_tensors(direct.sample(8), "cuda")
            assert torch.equal(batch["rewards"], expected["rewards"])
            assert torch.equal(batch["observations"]["front"], expected["observations"]["front"])
