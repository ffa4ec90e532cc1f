"""Several processes with a share of the batch each equal one process with all of it."""

import math
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from serl_fast.engine import Engine
from serl_fast.engine.ranks import Ranks, SharedSource, device_of_rank
from tests.engine import ranks_worker

TOLERANCE = 1e-6  # relative, of whole networks


def launch(
    directory: Path, execution: str = "eager", compat: str = "", poison: int = -1, block: int = 1, size: int = 2
) -> list[dict]:
    """Run the worker in ``size`` processes; what each left behind."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "tests.engine.ranks_worker", str(directory), execution, compat, str(poison)]
    command.append(str(block))
    processes = [
        subprocess.Popen(command, env={**os.environ, **shared, "RANK": str(rank)}, stderr=subprocess.PIPE, text=True)
        for rank in range(size)
    ]
    for process in processes:
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors
    return [torch.load(directory / f"rank{rank}.pth") for rank in range(size)]


def assert_equal(networks: dict, expected: dict) -> None:
    assert networks.keys() == expected.keys()
    for name, value in expected.items():
        assert (networks[name] - value).norm() <= TOLERANCE * value.norm().clamp(min=1e-3), name


@pytest.mark.parametrize(
    ("execution", "compat"),
    [("eager", ""), ("eager", "hil_serl"), pytest.param("compiled", "", marks=pytest.mark.slow)],
)  # compiled: the critics' step alone, which is half of what there is to compile
def test_two_ranks_equal_one_process_with_the_joint_batch(tmp_path, execution, compat):
    first, second = launch(tmp_path, execution, compat)
    agent = ranks_worker.make_agent(compat or None)
    before = {name: value.clone() for name, value in agent.networks.state_dict().items()}
    metrics = ranks_worker.train(Engine(agent, seed=5), slice(None), actor=execution == "eager")
    assert_equal(first["networks"], agent.networks.state_dict())
    for name, value in first["networks"].items():
        assert torch.equal(value, second["networks"][name]), name
    assert any(not torch.allclose(before[name], value) for name, value in first["networks"].items())
    assert first["metrics"] == second["metrics"]
    losses = {name: value for name, value in metrics.items() if name.endswith("loss")}
    assert losses
    for name, value in losses.items():
        assert math.isclose(first["metrics"][name], value, rel_tol=1e-4, abs_tol=1e-6), name


def test_a_block_of_two_ranks_equals_single_updates_of_one_process(tmp_path):
    first, second = launch(tmp_path, block=2)
    agent = ranks_worker.make_agent()
    ranks_worker.train(Engine(agent, seed=5), slice(None))
    assert_equal(first["networks"], agent.networks.state_dict())
    for name, value in first["networks"].items():
        assert torch.equal(value, second["networks"][name]), name


def test_a_bad_row_of_one_rank_stops_all_at_the_same_update(tmp_path):
    first, second = launch(tmp_path, poison=4)
    assert "loss is nan at update 5" in first["error"]
    assert first["error"] == second["error"]
    assert first["updates"] == second["updates"] == 4
    for name, value in first["networks"].items():
        assert torch.isfinite(value).all()
        assert torch.equal(value, second["networks"][name]), name


def test_a_device_for_all_is_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert device_of_rank(torch.device("cpu")) == torch.device("cpu")
    with pytest.raises(ValueError, match="device cuda:1 is one for all 2 processes; choose 'cuda'"):
        device_of_rank(torch.device("cuda:1"))
    with pytest.raises(ValueError, match="device mps; choose 'cuda' or 'cpu'"):
        device_of_rank(torch.device("mps"))


def test_noise_of_no_row_is_the_same_for_all_and_the_rest_is_shared_out():
    agent = ranks_worker.make_agent()
    joint = agent.draw_noise(torch.Generator().manual_seed(1), 8, torch.device("cpu"))
    parts = []
    for rank in range(2):
        # Two rows for each of as many members: only the shape for another batch size tells them apart.
        ranks = object.__new__(Ranks)
        ranks.rank, ranks.size = rank, 2
        mine = ranks.share_noise(agent, torch.device("cpu"))
        parts.append(mine.draw_noise(torch.Generator().manual_seed(1), 4, torch.device("cpu")))
    for name, value in joint.items():
        if name == "critic_members":
            assert torch.equal(parts[0][name], value)
            assert torch.equal(parts[1][name], value)
        else:
            assert torch.equal(torch.cat([part[name] for part in parts]), value)


def test_what_can_not_be_shared_evenly_is_refused():
    ranks = object.__new__(Ranks)
    ranks.size = 3
    with pytest.raises(ValueError, match="batch_size is 16, which 3 processes can not share evenly; give 15 or 18"):
        ranks.share(16)
    assert ranks.share(18) == 6


def test_ranks_draw_other_rows_from_a_source_on_the_device_and_stay_in_step():
    class Source:
        batch_size = 4

        def draw_noise(self, generator, updates, device):
            return {"rows": torch.randint(100, (updates * self.batch_size,), generator=generator)}

        def batch(self, noise):
            return noise

    drawn, states = [], []
    for rank in range(2):
        generator = torch.Generator().manual_seed(3)
        source = SharedSource(Source(), rank, 2)
        drawn += [source.draw_noise(generator, 2, torch.device("cpu"))["rows"]]
        states.append(generator.get_state())
        assert source.batch_size == 4
    assert drawn[0].shape == (8,)
    assert not torch.equal(*drawn)
    assert torch.equal(*states)
