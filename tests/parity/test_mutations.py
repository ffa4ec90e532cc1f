"""A wrong line in the package makes the parity runner fail: one textual change at a time, in a copy."""

from __future__ import annotations

import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.parity.library import GOLDEN, HERE

ROOT = HERE.parents[1]
RUN = """
import sys
copy, root, *paths = sys.argv[1:]
# An editable installation would win over the copy.
sys.meta_path[:] = [finder for finder in sys.meta_path if "editable" not in getattr(finder, "__module__", "")]
sys.path[:0] = [copy, root]
import serl_fast
assert serl_fast.__file__.startswith(copy), serl_fast.__file__
from tests.parity.check import main
sys.exit(main(paths))
"""


@dataclass(frozen=True)
class Mutation:
    """One change of one file, and the recordings that must notice it."""

    what: str
    file: str
    old: str
    new: str
    recordings: tuple[str, ...]


MUTATIONS = [
    Mutation(
        "SAME padding before the image instead of after it",
        "networks/resnet10.py",
        "F.pad(x, (left, right, top, bottom))",
        "F.pad(x, (right, left, bottom, top))",
        ("resnet10",),
    ),
    Mutation(
        "LayerNorm with torch's epsilon",
        "networks/mlp.py",
        "LAYER_NORM_EPSILON = 1e-6",
        "LAYER_NORM_EPSILON = 1e-5",
        ("critic",),
    ),
    Mutation(
        "the mean of the target critics instead of their minimum",
        "agents/sac.py",
        'noise.get("critic_members")).amin(0)',
        'noise.get("critic_members")).mean(0)',
        ("agent_small_single_T2",),
    ),
    Mutation(
        "a crop of its own for each camera",
        "agents/parts.py",
        'random_crop(current[key], noise["crop"], padding)',
        'random_crop(current[key], noise["crop"].roll(list(image_keys).index(key), 0), padding)',
        ("augmentation",),
    ),
    Mutation(
        "a gripper's command rounded half up instead of half to even",
        "agents/hybrid_sac.py",
        "arms[..., ARM_DIM].round()",
        "(arms[..., ARM_DIM] + 0.5).floor()",
        ("agent_small_single_T2",),
    ),
    Mutation(
        "the target average left out",
        "engine/step.py",
        "            average_targets(",
        "            (lambda *arguments: None)(",
        ("utd_sac",),
    ),
    Mutation(
        "a skipped network's Adam left out",
        "engine/step.py",
        "gradients = {name: [torch.zeros_like(p) for p in state.parameters] for name, state in adam.items()}",
        "gradients: dict[str, list[Tensor]] = {}",
        ("utd_sac",),
    ),
    Mutation(
        "a sample's log-density without the tanh's slope",
        "networks/policy.py",
        "return torch.tanh(u), (gaussian - log_tanh_slope(u)).sum(-1)",
        "return torch.tanh(u), gaussian.sum(-1)",
        ("policy",),
    ),
    Mutation(
        "the actor's loss kept from the proprioception branch",
        "agents/compat.py",
        'features = networks["encoder"](observations, noise.get("dropout"), detach_images=True)',
        'features = networks["encoder"](observations, noise.get("dropout"), detach_images=True).detach()',
        ("agent_small_sac_redq",),
    ),
    Mutation(
        "the entropy bonus discounted with the rest",
        "agents/sac.py",
        'return batch["rewards"] + batch["discounts"] * value + bonus',
        'return batch["rewards"] + batch["discounts"] * (value + bonus)',
        ("agent_small_sac_redq",),
    ),
    Mutation(
        "Adam's epsilon inside the root",
        "engine/step.py",
        "torch._foreach_div(torch._foreach_sqrt(state.second), correction2)",
        "torch._foreach_div(torch._foreach_sqrt(torch._foreach_add(state.second, 1e-8)), correction2)",
        ("optimizer",),
    ),
]


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    """A copy of the Python package (the recordings concerned need no extension) and how to run the runner on it."""
    copy = tmp_path_factory.mktemp("mutations") / "serl_fast"
    shutil.copytree(ROOT / "serl_fast", copy, ignore=shutil.ignore_patterns("__pycache__", "*.so"))
    return copy


def run(package: Path, recordings: tuple[str, ...]) -> subprocess.CompletedProcess[str]:
    """The runner on recordings of the selection, or of the whole set."""
    paths = [HERE / "data" / name if (HERE / "data" / name).exists() else GOLDEN / name for name in recordings]
    if missing := [path for path in paths if not path.exists()]:
        pytest.skip(f"recordings of the original are not here: {missing[0]} (set SERL_FAST_GOLDEN)")
    command = [sys.executable, "-c", RUN, str(package.parent), str(ROOT), *map(str, paths)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)


@pytest.mark.parametrize("recordings", sorted({mutation.recordings for mutation in MUTATIONS}), ids=", ".join)
def test_the_copy_as_it_is_agrees(package, recordings):
    finished = run(package, recordings)
    assert finished.returncode == 0, finished.stdout + finished.stderr


@pytest.mark.parametrize("mutation", MUTATIONS, ids=[mutation.what for mutation in MUTATIONS])
def test_a_mutation_is_noticed(package, mutation):
    file = package / mutation.file
    text = file.read_text()
    assert text.count(mutation.old) == 1, f"{mutation.file} holds {mutation.old!r} {text.count(mutation.old)} times"
    file.write_text(text.replace(mutation.old, mutation.new))
    try:
        finished = run(package, mutation.recordings)
    finally:
        file.write_text(text)
    assert finished.returncode == 1, finished.stdout + finished.stderr
    assert "beyond tolerance:" in finished.stdout  # and not an error of another kind
    assert "Traceback" not in finished.stdout
