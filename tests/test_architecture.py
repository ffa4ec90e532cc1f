"""The rules of who may import whom and who may touch the host, checked from outside."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
HOST_READS = {"item", "cpu", "numpy", "tolist"}


@pytest.mark.parametrize("package", ["agents", "networks", "kernels"])
def test_no_host_reads_where_the_step_is_defined(package):
    for path in sorted((ROOT / "serl_fast" / package).glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                assert node.func.attr not in HOST_READS, f"{path}:{node.lineno} calls .{node.func.attr}()"


def loaded_by(code: str) -> set[str]:
    """Names of the modules that are loaded after ``code`` ran in a fresh interpreter."""
    report = f"{code}\nimport sys; print('\\n'.join(sys.modules))"
    result = subprocess.run([sys.executable, "-c", report], capture_output=True, text=True, check=True, cwd=ROOT)
    return set(result.stdout.split())


def test_importing_the_package_is_light():
    assert not {"torch", "numpy", "gymnasium"} & loaded_by("import serl_fast")


def test_the_replay_store_needs_numpy_alone():
    loaded = loaded_by("import serl_fast.replay")
    assert "numpy" in loaded
    assert not {"torch", "gymnasium", "tyro", "rich"} & loaded


def test_training_on_tensors_needs_torch_and_numpy_alone():
    code = """
import torch
from serl_fast.agents.hybrid_sac import hybrid_sac
from serl_fast.engine import Engine
import serl_fast.data.batches
engine = Engine(hybrid_sac(4))
state = {"state": torch.zeros(2, 4)}
batch = {"observations": state, "next_observations": state, "actions": torch.zeros(2, 7),
         "rewards": torch.zeros(2), "discounts": torch.zeros(2), "grasp_penalty": torch.zeros(2)}
engine.update(batch)
"""
    assert not {"gymnasium", "mujoco", "tyro", "rich", "tensorboard", "matplotlib"} & loaded_by(code)


def test_robots_need_no_torch():
    assert not {"torch", "serl_fast"} & loaded_by("import serl_robots, serl_robots.operators, serl_robots.experts")


def test_import_contracts_hold():
    command = [str(Path(sys.executable).parent / "lint-imports"), "--no-logo"]
    result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert result.returncode == 0, result.stdout
